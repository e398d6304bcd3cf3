# SPDX-License-Identifier: Apache-2.0
"""The table of built-in domains: what its rows draw, say and write."""

from __future__ import annotations

import pytest

from satori_fast.data.chains import parse_chain
from satori_fast.data.domains import ARITHMETIC, DOMAINS
from satori_fast.data.formats import FORMATS
from satori_fast.data.tokenizer import build_word_tokenizer, check_known
from satori_fast.grading import extract_answer

EASIEST = {"arithmetic": 1, "chains": 4, "word_problems": 1}


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_rows_draw_problems_in_their_own_words(name: str) -> None:
    domain = DOMAINS[name]
    problems = domain.problems(20, levels=[EASIEST[name]], split="train", seed=0)
    tokenizer = build_word_tokenizer(domain.words()) if domain.words else None
    for problem in problems:
        assert problem.problem_id.startswith(f"{name}-")
        assert domain.answer(problem.question) == problem.answer
        if tokenizer is not None:
            check_known(tokenizer, problem.question)


def test_who_has_plain_solutions_to_imitate() -> None:
    experts = {name for name, domain in DOMAINS.items() if domain.solution}
    assert experts == {name for name, domain in DOMAINS.items() if domain.steps}
    assert experts == {"chains", "word_problems"}
    assert ARITHMETIC in DOMAINS


def test_what_is_counted_in_which_format() -> None:
    counted = {(name, format) for name, domain in DOMAINS.items() for format in domain.counts}
    assert counted == {("chains", "coat"), ("word_problems", "coat")} and "coat" in FORMATS
    found = DOMAINS["chains"].counts["coat"]("start 37 plus 25", "37 + 25 = 63")
    assert found == {"slips": 1.0, "slips_mended": 0.0, "mends": 0.0, "breaks": 0.0}


@pytest.mark.parametrize(("name", "levels"), [("chains", [5, 9]), ("word_problems", [1, 5])])
def test_demonstrations_are_right_and_in_order(name: str, levels: list[int]) -> None:
    problems = DOMAINS[name].problems(20, levels=levels, split="train", seed=1)
    demonstrations = DOMAINS[name].demonstrations(problems)
    assert [d.problem for d in demonstrations] == list(problems)
    assert [extract_answer(d.response) for d in demonstrations] == [p.answer for p in problems]


def test_a_careless_pupil_slips_where_he_does_not_look_and_goes_on_from_what_he_wrote() -> None:
    domain = DOMAINS["chains"]
    problems = domain.problems(300, levels=(6,), split="train", seed=0)
    kinds: list[tuple[bool, bool]] = []
    for problem, steps in domain.slipped(problems, 0.7, seed=1):
        ((_, expert),) = domain.solved([problem])
        assert [step.title for step in steps] == [step.title for step in expert]
        chain = parse_chain(problem.question)
        value = chain.start
        for step, operation in zip(steps, chain.operations, strict=False):
            right = operation.step(value)
            looked = step.thought == f"{value} {operation.title}"
            assert looked or step.thought == "next"
            assert step.text.split()[:-1] == right.split()[:-1]
            kinds.append((looked, step.text == right))
            value = int(step.text.split()[-1])
        assert steps[-1].text == f"\\boxed{{ {value} }}"
    assert all(right for looked, right in kinds if looked)
    careless = [right for looked, right in kinds if not looked]
    assert 0.67 < len(careless) / len(kinds) < 0.73
    assert sum(careless) < 0.08 * len(careless)  # 77 swapped is 77
    assert list(domain.slipped(problems, 0.0, seed=1)) == list(domain.solved(problems))


def test_a_pupil_who_does_not_look_at_the_story_slips() -> None:
    domain = DOMAINS["word_problems"]
    problems = domain.problems(100, levels=(2,), split="train", seed=0)
    assert list(domain.slipped(problems, 0.0, seed=1)) == list(domain.solved(problems))
    for (_, steps), (_, expert) in zip(
        domain.slipped(problems, 1.0, seed=1), domain.solved(problems), strict=True
    ):
        assert [step.title for step in steps] == [step.title for step in expert]
        assert all(wrong.text != right.text for wrong, right in zip(steps, expert, strict=True))
        assert [step.thought for step in steps[:-1]] == ["Next.", "Next."]
