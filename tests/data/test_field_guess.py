# SPDX-License-Identifier: Apache-2.0
"""Guesses for rows as people have them: flat, nested, conversations, and rows with nothing."""

from __future__ import annotations

from typing import Any

import pytest

from satori_fast.data.field_guess import GuessedFields, guess_fields

GSM8K = {"question": "2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}
MATH = {"problem": "2 + 3?", "solution": "It is $\\boxed{5}$.", "level": "1"}
VERL = {
    "data_source": "gsm8k",
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"}],
    "reward_model": {"style": "rule", "ground_truth": "5"},
}
SHARE = {"conversations": [{"from": "human", "value": "2 + 3?"}], "answer": 5}
PLAIN = {"id": 1, "Question": "2 + 3?", "Rationale": "Two and three is five.", "Answer": 5}
PAIRS = {"input": "2 + 3?", "output": "5"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (GSM8K, GuessedFields("question", "answer", "hashes", "answer")),
        (MATH, GuessedFields("problem", "solution", "boxed", "solution")),
        (
            VERL,
            GuessedFields("prompt[1].content", "reward_model.ground_truth", "plain", None),
        ),
        (PLAIN, GuessedFields("Question", "Answer", "plain", "Rationale")),
        (PAIRS, GuessedFields("input", "output", "plain", None)),
        (SHARE, None),  # no name says that it is a question
        ({"a": 1, "b": 2}, None),
        ({"question": "2 + 3?"}, None),
    ],
)
def test_one_kind_of_row(row: dict[str, Any], expected: GuessedFields | None) -> None:
    assert guess_fields([row] * 5) == expected


def test_a_field_that_most_rows_leave_empty_is_none() -> None:
    rows = [{**PLAIN, "Answer": None, "target": 5}] * 4 + [{**PLAIN, "target": None}]
    guessed = guess_fields(rows)
    assert guessed is not None and guessed.answer == "target"


def test_the_last_question_of_a_conversation_is_asked() -> None:
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"))]
    row = {"messages": [*turns, {"role": "user", "content": "c"}], "label": "d"}
    guessed = guess_fields([row])
    assert guessed is not None and guessed.question == "messages[2].content"


def test_no_rows() -> None:
    assert guess_fields([]) is None


def test_the_guess_is_a_mapping() -> None:
    guessed = guess_fields([PLAIN])
    assert guessed is not None
    mapping = guessed.mapping
    assert (mapping.question, mapping.answer, mapping.response) == (
        "Question",
        "Answer",
        "Rationale",
    )
