# SPDX-License-Identifier: Apache-2.0
"""The table of built-in domains: what its rows draw, say and write."""

from __future__ import annotations

import pytest

from satori_fast.data.domains import ARITHMETIC, DOMAINS
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


def test_demonstrations_are_right_and_in_order() -> None:
    problems = DOMAINS["chains"].problems(20, levels=[5, 9], split="train", seed=1)
    demonstrations = DOMAINS["chains"].demonstrations(problems)
    assert [d.problem for d in demonstrations] == list(problems)
    assert [extract_answer(d.response) for d in demonstrations] == [p.answer for p in problems]


def test_a_pupil_forgets_so_many_swaps_and_goes_on_from_what_he_wrote() -> None:
    domain = DOMAINS["chains"]
    problems = domain.problems(300, levels=(6,), split="train", seed=0)
    swaps: list[bool] = []
    for problem, steps in domain.slipped(problems, 0.7, seed=1):
        expert = domain.solved([problem])
        titles = [step.title for _, solved in expert for step in solved]
        assert [step.title for step in steps] == titles
        value = problem.question.split()[1]
        for step in steps[:-1]:
            words = step.text.split()
            assert value in words[:2] and step.thought == f"{value} {step.title}"
            if step.title == "swap" and value != str(int(value) % 10 * 10 + int(value) // 10):
                swaps.append(words[-1] == value)
            value = words[-1]
        assert steps[-1].text == f"\\boxed{{ {value} }}"
    assert 0.6 < sum(swaps) / len(swaps) < 0.8 and len(swaps) > 300
    assert list(domain.slipped(problems, 0.0, seed=1)) == list(domain.solved(problems))
