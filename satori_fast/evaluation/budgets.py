# SPDX-License-Identifier: Apache-2.0
"""Accuracy by token budget and by number of attempts, from the greedy responses that are there.

An answer stands from the token that closes its box until the next box closes: a response cut at a
budget has the answer that stood there. So test-time scaling costs no further sampling. Attempts
here are boxes; those that a format tells apart are `analysis.accuracy_by_attempts`.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from satori_fast.evaluation.statistics import Share

# Token budgets that are shown: doubling, so that a curve over lengths is a line on a log scale.
BUDGETS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclass(frozen=True, slots=True)
class BoxedAnswer:
    """An answer of a response. token: the one that closes its box, counted from 1.

    correct: does the answer match the gold one?
    """

    answer: str
    token: int
    correct: bool


@dataclass(frozen=True, slots=True)
class ScalingPoint:
    """Accuracy of all responses at one budget, in tokens or in attempts.

    right:    responses whose answer at that point is right.
    answered: those that have one. reached: those that go on at least so far.
    """

    budget: int
    right: Share
    answered: Share
    reached: Share


def answer_within(answers: Sequence[BoxedAnswer], budget: int) -> BoxedAnswer | None:
    """The answer that stands after `budget` tokens, None where no box has closed.

    answers: of one response, in order.

    >>> answers = [BoxedAnswer("5", 18, False), BoxedAnswer("7", 40, True)]
    >>> [found and found.answer for found in (answer_within(answers, n) for n in (17, 18, 64))]
    [None, '5', '7']
    """
    closed = bisect.bisect_right(answers, budget, key=lambda answer: answer.token)
    return answers[closed - 1] if closed else None


def answer_after(answers: Sequence[BoxedAnswer], attempts: int) -> BoxedAnswer | None:
    """The answer that stands after so many boxes; the last one where there are fewer."""
    return answers[min(attempts, len(answers)) - 1] if answers else None


def accuracy_by_budget(
    responses: Sequence[Sequence[BoxedAnswer]],
    lengths: Sequence[int],
    *,
    budgets: Sequence[int] = BUDGETS,
) -> list[ScalingPoint]:
    """Accuracy had every response ended after so many tokens, budget by budget.

    lengths: response tokens. Budgets end with the first that no response exceeds: from there on
    nothing changes. None without a response.
    """
    if not lengths:
        return []
    longest = max(lengths)
    useful = sum(budget < longest for budget in budgets) + 1
    points: list[ScalingPoint] = []
    for budget in budgets[:useful]:
        standing = [answer_within(own, budget) for own in responses]
        points.append(_point(budget, standing, sum(length >= budget for length in lengths)))
    return points


def accuracy_by_boxes(responses: Sequence[Sequence[BoxedAnswer]]) -> list[ScalingPoint]:
    """Accuracy had every response ended with its 1st, 2nd, ... box, up to the most there are."""
    points: list[ScalingPoint] = []
    for number in range(1, max(map(len, responses), default=0) + 1):
        standing = [answer_after(own, number) for own in responses]
        points.append(_point(number, standing, sum(len(own) >= number for own in responses)))
    return points


def _point(budget: int, standing: Sequence[BoxedAnswer | None], num_reached: int) -> ScalingPoint:
    n = len(standing)
    return ScalingPoint(
        budget,
        right=Share(sum(answer is not None and answer.correct for answer in standing), n),
        answered=Share(sum(answer is not None for answer in standing), n),
        reached=Share(num_reached, n),
    )
