# SPDX-License-Identifier: Apache-2.0
"""Boxes in a response: what counts as one, the answer that stands at a place, and linear memory."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.grading.boxes import extract_answer, extract_answers, standing_answers


@pytest.mark.parametrize(
    ("text", "answer", "answers"),
    [
        (r"so \boxed{5}", "5", ["5"]),
        (r"\boxed{1} wait \boxed{2} no \boxed{3}", "3", ["1", "2", "3"]),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}", [r"\frac{1}{\sqrt{2}}"]),
        (r"\boxed{\boxed{7}}", "7", ["7"]),
        (r"\boxed{x = \boxed{7}} and \boxed{8}", "8", ["7", "8"]),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", [r"\{1, 2\}"]),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right.", [r"\left\{ x \right."]),
        (r"\boxed{a \\}", r"a \\", [r"a \\"]),
        ("\\boxed{\n1 + \n2\n}", "1 + \n2", ["1 + \n2"]),
        (r"\boxed {4}", "4", ["4"]),
        (r"{ \boxed{5}", "5", ["5"]),
        (r"} \boxed{5}", "5", ["5"]),
        (r"\boxed{1} then \boxed{2", None, ["1"]),
        (r"\boxed{1 then \boxed{2}", "2", ["2"]),
        (r"\boxed{1} in \boxed{}.", None, ["1"]),
        (r"\\boxed{5}", "5", ["5"]),
        (r"\fbox{5}", "5", ["5"]),
        (r"\boxed 5", "5", ["5"]),
        (r"\boxed5.", "5", ["5"]),
        (r"\boxed 72 apples", "72", ["72"]),
        (r"\boxed -1.5", "-1.5", ["-1.5"]),
        (r"\boxed 1,234", "1,234", ["1,234"]),
        (r"\boxed\frac{1}{2}", r"\frac{1}{2}", [r"\frac{1}{2}"]),
        (r"\boxed B.", "B", ["B"]),
        (r"\boxed{1} or \boxed 2", "2", ["1", "2"]),
        (r"\boxed{1}, in \boxed notation", "1", ["1"]),
        (r"\boxed{\{\boxed 3\}}", "3", ["3"]),
        (r"\boxed{1\\}", r"1\\", [r"1\\"]),
        (r"\boxed{1\}", None, []),
        (r"\boxedx{5}", None, []),
        (r"\mathbox{5}", None, []),
        (r"boxed{5}", None, []),
        ("<answer>5</answer>", None, []),
        ("#### 5", None, []),
        ("Answer: 5", None, []),
        ("the answer is 42", None, []),
        ("", None, []),
    ],
)
def test_extraction(text: str, answer: str | None, answers: list[str]) -> None:
    assert extract_answer(text) == answer
    assert extract_answers(text) == answers


PIECES = [r"\boxed{", r"\boxed 7", r"\fbox{", "{", "}", "\\", "1", "x ", "<|reflect|>", " "]


@given(st.lists(st.sampled_from(PIECES), max_size=30))
@settings(max_examples=200, deadline=None)
def test_standing_answers_are_those_of_the_text_so_far(pieces: list[str]) -> None:
    text = "".join(pieces)
    starts = [len("".join(pieces[:place])) for place, p in enumerate(pieces) if p.startswith("<")]
    assert standing_answers(text, starts) == [extract_answer(text[:start]) for start in starts]


@given(st.lists(st.sampled_from(PIECES), max_size=30))
@settings(max_examples=200, deadline=None)
def test_the_answer_is_the_last_of_the_answers(pieces: list[str]) -> None:
    text = "".join(pieces)
    answer = extract_answer(text)
    assert answer is None or extract_answers(text)[-1] == answer


@pytest.mark.parametrize("closed", [True, False])
def test_nested_boxes_take_linear_memory(closed: bool) -> None:
    count = 20_000
    text = r"\boxed{" * count + "1" + "}" * count * closed
    tracemalloc.start()
    try:
        assert extract_answer(text) == ("1" if closed else None)
        assert extract_answers(text) == ["1"] * closed
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400 * count  # one slice for each box: 80,000 bytes times as many


def test_runs_of_backslashes_are_one_step() -> None:
    assert extract_answer("\\" * 1_000_000) is None
    assert extract_answer(r"\boxed" + " " * 1_000_000) is None
