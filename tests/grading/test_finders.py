# SPDX-License-Identifier: Apache-2.0
"""Answers where models write them: hand-picked texts, and the pool that grades by a finder."""

from __future__ import annotations

import pytest

from satori_fast.grading import AnswerFinder, GradingPool, answer_finder, extract_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 4", "4"),
        ("It costs 3 * $1,250.50.", "1,250.50"),
        ("x = -3.", "-3"),
        ("from 5-3", "3"),
        ("(2)-7", "7"),
        ("minus: \u22124", "-4"),
        ("3 of 4 is 3/4", "3/4"),
        ("1.5e-3 m", "1.5e-3"),
        ("in 2024, 12,34", "34"),
        ("7 eggs, then v2", "7"),
        ("12 apples", "12"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_last_number(text: str, answer: str | None) -> None:
    assert answer_finder("last_number").find(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2 = 4\n#### 4", "4"),
        ("#### 1\nno\n#### 1,200 \nmore", "1,200"),
        ("####$5", "5"),
        ("####", None),
        ("### 4", None),
    ],
)
def test_what_stands_after_hashes(text: str, answer: str | None) -> None:
    assert answer_finder("hashes").find(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 4", "4"),
        ("Answer: 4\nAnswer:  five apples ", "five apples"),
        ("Answer: ", None),
        ("the answer is 4", None),
    ],
)
def test_a_pattern_of_ones_own(text: str, answer: str | None) -> None:
    finder = answer_finder("Answer:(.*)")
    assert finder.find(text) == answer
    assert finder.shown == "a match of 'Answer:(.*)'"


def test_a_box_is_what_it_was() -> None:
    finder = answer_finder("boxed")
    assert finder.find is extract_answer and finder.shown == r"a \boxed{}" and finder.is_marked


def test_a_cut_response_ends_with_a_number_that_is_no_answer() -> None:
    def answers(finder: AnswerFinder) -> list[str | None]:
        return [finder.answer("4 #### 5", is_cut=is_cut) for is_cut in (False, True)]

    assert answers(answer_finder("last_number")) == ["5", None]
    assert answers(answer_finder("hashes")) == ["5", "5"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "last_numbr",
            "none of boxed, last_number, hashes; the nearest is 'last_number'; a ",
        ),
        ("Answer: .*", "a pattern has one group in parentheses, the answer"),
        ("(a)(b)", "a pattern has one group"),
        ("Answer: (", "no regular expression either: missing"),
    ],
)
def test_what_is_neither_a_name_nor_a_pattern(name: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        answer_finder(name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_pool_grades_what_its_finder_finds() -> None:
    pairs = [("so 4", "4"), ("it is 1,200", "1200"), ("none", "4"), (r"\boxed{4} or 5", "4")]
    with GradingPool(0, finder=answer_finder("last_number")) as pool:
        verdicts = pool.grade_many(pairs)
    assert [v.reason for v in verdicts] == ["match", "match", "no_answer", "mismatch"]
    assert [v.extracted for v in verdicts] == ["4", "1,200", None, "5"]
