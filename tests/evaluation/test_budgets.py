# SPDX-License-Identifier: Apache-2.0
"""Answers that stood at a budget: the worked example, and what brute force finds."""

from hypothesis import given
from hypothesis import strategies as st

from satori_fast.evaluation.budgets import (
    BoxedAnswer,
    accuracy_by_boxes,
    accuracy_by_budget,
    answer_after,
    answer_within,
)

WORKED = [BoxedAnswer("4", 18, False), BoxedAnswer("6", 40, False), BoxedAnswer("5", 62, True)]


def test_the_worked_response() -> None:
    within = [answer_within(WORKED, budget) for budget in (10, 20, 50, 64)]
    assert [found and found.correct for found in within] == [None, False, False, True]
    after = [answer_after(WORKED, attempts) for attempts in (1, 2, 3)]
    assert [found and found.correct for found in after] == [False, False, True]
    assert answer_after([], 1) is None


def test_curves_over_responses() -> None:
    responses = [WORKED, [BoxedAnswer("5", 9, True)], []]
    points = accuracy_by_budget(responses, [64, 12, 30], budgets=(10, 20, 50, 64, 128))
    assert [(p.budget, p.right.k, p.answered.k, p.reached.k) for p in points] == [
        (10, 1, 1, 3),
        (20, 1, 2, 2),
        (50, 1, 2, 1),
        (64, 2, 2, 1),
    ]
    assert {p.right.n for p in points} == {3}
    boxes = accuracy_by_boxes(responses)
    assert [(p.budget, p.right.k, p.reached.k) for p in boxes] == [(1, 1, 2), (2, 1, 1), (3, 2, 1)]
    assert accuracy_by_budget([], []) == accuracy_by_boxes([[], []]) == []


@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=8, unique_by=lambda x: x[0]),
    st.integers(0, 60),
)
def test_the_answer_within_a_budget_is_the_last_that_closed(
    closings: list[tuple[int, bool]], budget: int
) -> None:
    answers = [BoxedAnswer(str(token), token, right) for token, right in sorted(closings)]
    before = [answer for answer in answers if answer.token <= budget]
    assert answer_within(answers, budget) == (before[-1] if before else None)
