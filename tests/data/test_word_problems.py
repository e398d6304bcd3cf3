# SPDX-License-Identifier: Apache-2.0
"""Word problems: solved by hand and by Python's own arithmetic, slips of the stated kinds, true
verifications."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from satori_fast.data.formats.trials import PAPER
from satori_fast.data.stories import Story, parse_story
from satori_fast.data.word_problems import (
    CONFIRMING,
    LEVELS,
    RESOLVING,
    Equation,
    WordProblems,
    careless_steps,
    confirming_text,
    draw_slip,
    draw_story,
    equations,
    expert_steps,
    resolving_text,
    right_equation,
    slips,
    solution_text,
    step_thoughts,
    step_titles,
)
from satori_fast.grading import check_gold, extract_answer, grade
from satori_fast.types import Problem

STORY = parse_story(
    "Mia keeps 14 shells in a box. Then she finds 10 more in the attic. Later, Mia gives half of "
    "them to Leo. Leo is 12 years old. How many shells does she have in the end?"
)


def problems(num: int, *, split: str = "train", seed: int = 0) -> list[Problem]:
    return list(WordProblems(num, levels=sorted(LEVELS), split=split, seed=seed))  # type: ignore[arg-type]


def drawn(count: int, *, seed: int = 0) -> list[Story]:
    rng = np.random.default_rng(seed)
    return [draw_story(LEVELS[1 + i % len(LEVELS)], rng) for i in range(count)]


def held(text: str) -> list[bool]:
    """Whether each ``a op b = c`` of a text is true, by Python."""
    found = re.findall(r"(\d+ [-+*/] \d+) = (\d+)", text)
    assert len(found) == text.count("=")
    return [eval(left) == int(right) for left, right in found]


# --- problems ------------------------------------------------------------------------------------


def test_problems_of_all_levels_are_what_they_say() -> None:
    for problem in problems(200):
        story = parse_story(problem.question)
        level = LEVELS[int(problem.level or "")]
        assert len(story.events) == level.num_steps
        assert (story.aside is not None) == level.has_aside
        assert problem.answer == story.answer and problem.problem_id.startswith("word_problems-")
        check_gold(story.answer)
        # Nothing stands in the way of plain words: numbers are small, and plural.
        assert all(2 <= value <= level.largest <= 150 for value in story.values)
        assert all(2 <= number <= 60 for number in story.numbers)
        kinds = Counter(event.kind for event in story.events)
        assert kinds["multiply"] <= 1 and kinds["divide"] <= 1


def test_training_and_held_out_problems_share_no_calculation() -> None:
    def calculations(split: str) -> set[tuple[object, ...]]:
        stories = [parse_story(problem.question) for problem in problems(500, split=split)]
        return {(s.start, *((e.kind, e.number) for e in s.events)) for s in stories}

    assert not calculations("train") & calculations("heldout")


def test_every_level_has_problems_for_a_long_run() -> None:
    for level in LEVELS:
        assert len(WordProblems(4000, levels=[level], split="train", seed=0)) == 4000
        assert len(WordProblems(400, levels=[level], split="heldout", seed=0)) == 400


def test_no_wording_is_rare() -> None:
    told = Counter(
        (story.theme, event.kind, event.wording) for story in drawn(8000) for event in story.events
    )
    assert len(told) == 168 and min(told.values()) >= 20


# --- solutions -----------------------------------------------------------------------------------


def test_a_solution_by_hand() -> None:
    assert expert_steps(STORY) == (
        "She finds 10 more, so she has 14 + 10 = 24 shells.",
        "She gives half of them to Leo, so she has 24 / 2 = 12 shells.",
        "The answer is \\boxed{12}.",
    )
    assert solution_text(STORY) == " ".join(expert_steps(STORY))
    assert step_titles(STORY) == ("Add 10", "Divide by 2", "Give the answer")
    assert step_thoughts(STORY) == (
        "She finds 10 more. So I add 10 to 14.",
        "She gives half of them to Leo. So I divide 24 by 2.",
        "That was all of it, and 12 is left.",
    )


def test_solutions_are_true_and_graded_right() -> None:
    for problem in problems(200):
        story = parse_story(problem.question)
        text = solution_text(story)
        assert problem.answer is not None and grade(text, problem.answer).correct
        assert held(text) == [True] * len(story.events)
        assert len(step_titles(story)) == len(step_thoughts(story)) == len(expert_steps(story))


def test_equations_are_read_wherever_they_stand() -> None:
    assert equations("So 14 + 9 = 24, and 24*2 =48; 5 + 1 is none; 7 / 2 = 3.") == [
        Equation(14, "add", 9, 24),
        Equation(24, "multiply", 2, 48),
        Equation(7, "divide", 2, 3),
    ]
    assert [str(each) for each in equations(solution_text(STORY))] == [
        "14 + 10 = 24",
        "24 / 2 = 12",
    ]
    assert not Equation(14, "add", 9, 24).is_true and Equation(14, "subtract", 9, 5).is_true


# --- slips ---------------------------------------------------------------------------------------


def test_slips_by_hand() -> None:
    found = slips(STORY, 0, 14)
    # 14 * 10 = 140 and 14 - 10 = 4 lead on, 14 / 10 is no whole number.
    assert list(map(str, found["operation"])) == ["14 - 10 = 4", "14 * 10 = 140"]
    # The 2 of "half", Leo's 12 years, and 14 itself.
    assert list(map(str, found["number"])) == ["14 + 2 = 16", "14 + 12 = 26", "14 + 14 = 28"]
    # Half of them are given away: odd numbers do not lead on.
    assert [each.result for each in found["result"]] == [14, 22, 26, 34]
    last = slips(STORY, 1, 24)
    assert [each.result for each in last["result"]] == [2, 10, 11, 13, 14, 22]
    assert list(map(str, last["operation"])) == ["24 + 2 = 26", "24 - 2 = 22", "24 * 2 = 48"]


def test_a_slip_is_always_possible_leads_on_and_never_cancels() -> None:
    rng = np.random.default_rng(0)
    for story in drawn(1500):
        value = story.start
        for place, event in enumerate(story.events):
            right = right_equation(story, place, value)
            assert right is not None  # every slip before has led on
            slip = draw_slip(story, place, value, rng)
            assert slip.value == value and slip != right
            assert 2 <= slip.result <= 300 and slip.result != story.values[place + 1]
            wrong = (slip.kind != event.kind) + (slip.number != event.number) + (not slip.is_true)
            assert wrong == 1  # of one kind each
            value = slip.result
        assert str(value) != story.answer


def test_kinds_of_slips_are_equally_likely() -> None:
    rng = np.random.default_rng(0)
    drawn_slips = [draw_slip(STORY, 0, 14, rng) for _ in range(3000)]
    kinds = Counter(
        "result" if not slip.is_true else "operation" if slip.kind != "add" else "number"
        for slip in drawn_slips
    )
    assert all(900 < count < 1100 for count in kinds.values()) and len(kinds) == 3


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_careless_pupil_slips_where_he_does_not_look(share: float) -> None:
    rng = np.random.default_rng(1)
    careless = total = 0
    for story in drawn(300):
        steps, thoughts = careless_steps(story, share, rng)
        assert len(steps) == len(thoughts) == len(story.events) + 1
        value = story.start
        for place, (step, thought) in enumerate(zip(steps[:-1], thoughts, strict=False)):
            (written,) = equations(step)
            is_right = written == right_equation(story, place, value)
            assert (thought == "Next.") == (not is_right)
            assert is_right == (f" {value}" in f" {thought}" and thought.endswith("."))
            careless, total = careless + (not is_right), total + 1
            value = written.result
        assert extract_answer(steps[-1]) == str(value)
        assert thoughts[-1] == f"That was all of it, and {value} is left."
    assert abs(careless / total - share) < 4 * np.sqrt(share * (1 - share) / total) + 1e-9
    assert share or careless_steps(STORY, share, rng) == (expert_steps(STORY), step_thoughts(STORY))


# --- verifications -------------------------------------------------------------------------------


def test_verifications_by_hand() -> None:
    assert confirming_text(STORY, 12) == (
        "I go back from 12: 12 * 2 = 24, 24 - 10 = 14. The story begins with 14, so the answer is "
        "correct."
    )
    assert confirming_text(STORY, 4) == (
        "I go back from 4: 4 * 2 = 8, 8 - 10 is below zero. So the answer is incorrect."
    )
    assert resolving_text(STORY, 13) == (
        "I solve it again: 14 + 10 = 24, 24 / 2 = 12. That is not 13, so the answer is incorrect."
    )
    doubled = parse_story(
        "A farm has 7 goats. Their number doubles by spring. How many goats are there in the end?"
    )
    assert confirming_text(doubled, 15) == (
        "I go back from 15: 15 / 2 is no whole number. So the answer is incorrect."
    )


@pytest.mark.parametrize("write", [confirming_text, resolving_text])
def test_verifications_are_true_and_read_by_the_format(write: object) -> None:
    assert callable(write)
    opening = CONFIRMING if write is confirming_text else RESOLVING
    for seed, story in enumerate(drawn(200)):
        right = int(story.answer)
        for answer in (right, right + 1, right + 1 + seed, max(0, right - 3)):
            text = write(story, answer)
            assert text.startswith(opening) and all(held(text))
            assert PAPER.verdict(text) is (answer == right)


@pytest.mark.parametrize("write", [confirming_text, resolving_text])
def test_a_slip_is_the_last_result_and_spoils_the_verdict(write: object) -> None:
    assert callable(write)
    for story in drawn(200):
        right = int(story.answer)
        for answer in (right, right + 1):
            text = write(story, answer, slips=True)
            if "below zero" in text or "no whole number" in text:
                assert write is confirming_text and PAPER.verdict(text) is False
                continue
            *before, last = held(text)
            assert all(before) and not last
            assert PAPER.verdict(text) is (answer != right)
