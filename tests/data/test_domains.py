# SPDX-License-Identifier: Apache-2.0
"""The table of built-in domains: what its rows draw, say and write."""

from __future__ import annotations

import pytest

from satori_fast.data.chains import parse_chain
from satori_fast.data.domains import ARITHMETIC, DOMAINS
from satori_fast.data.formats import FORMATS
from satori_fast.data.tokenizer import build_word_tokenizer, check_known
from satori_fast.grading import extract_answer

EASIEST = {"arithmetic": 1, "chains": 4}


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_rows_draw_problems_in_their_own_words(name: str) -> None:
    domain = DOMAINS[name]
    problems = domain.problems(20, levels=[EASIEST[name]], split="train", seed=0)
    tokenizer = build_word_tokenizer(domain.words())
    for problem in problems:
        assert problem.problem_id.startswith(f"{name}-")
        check_known(tokenizer, problem.question)


def test_who_has_plain_solutions_to_imitate() -> None:
    assert {name for name, domain in DOMAINS.items() if domain.solution} == {"chains"}
    assert ARITHMETIC in DOMAINS


def test_what_is_counted_in_which_format() -> None:
    counted = {(name, format) for name, domain in DOMAINS.items() for format in domain.counts}
    assert counted == {("chains", "coat")} and "coat" in FORMATS
    found = DOMAINS["chains"].counts["coat"]("start 37 plus 25", "37 + 25 = 63")
    assert found == {"slips": 1.0, "slips_mended": 0.0}


def test_demonstrations_are_right_and_in_order() -> None:
    problems = DOMAINS["chains"].problems(20, levels=[5, 9], split="train", seed=1)
    demonstrations = DOMAINS["chains"].demonstrations(problems)
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
