# SPDX-License-Identifier: Apache-2.0
"""Counts of verdicts against those of a hand: a group of four, and responses in disorder."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from satori_fast.evaluation.verification import (
    VerificationCounts,
    count_verifications,
    trial_figures,
)
from satori_fast.types import Finish
from tests.rewards.test_process import judged

# The answer is p q. Rewards -1 +1 +1 +1; +1 +1; -1 -1; -1 +1 -1 -1.
GROUP = (
    r"\boxed{ p r } wait 7 + 9 = 16 over again \boxed{ p q } wait 7 + 1 = 8 right",
    r"\boxed{ p q } wait 7 + 1 = 8 right",
    r"\boxed{ q r } wait 1 + 9 = 10 right",
    r"\boxed{ p r } wait 7 + 9 = 16 over again \boxed{ q r } wait 1 + 9 = 10 right",
)


def test_the_worked_group() -> None:
    counts = count_verifications(map(judged, GROUP))
    assert counts == VerificationCounts(
        num_responses=4,
        num_solutions=6,
        num_verifications=6,
        num_on_right=2,
        num_confirmed=2,
        num_on_wrong=4,
        num_refuted=2,
        num_accepted=4,
        num_first_right=1,
        num_broken=0,
        num_first_wrong=3,
        num_corrected=1,
    )
    rates = counts.rates()
    assert rates == {
        "verification_accuracy": pytest.approx(0.666667, abs=1e-6),
        "accuracy_on_right": 1.0,
        "error_recall": 0.5,
        "correct_precision": 0.5,
        "wrong_to_right": pytest.approx(1 / 3),
        "right_to_wrong": 0.0,
    }
    assert counts.metrics("rollout")["rollout/verifications"] == 6.0
    figures = trial_figures(map(judged, GROUP))
    # 2, 1, 1, 2 solutions: standard deviation 1/2.
    assert (figures["trials"], figures["trials_standard_error"]) == (1.5, 0.25)
    assert figures == {**figures, **rates, **asdict(counts)}
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.parametrize(
    ("text", "finish", "counted"),
    [
        # No verification: the solution is first and last.
        (r"\boxed{ p q }", "stop", {"num_solutions": 1, "num_first_right": 1}),
        (r"\boxed{ p r }", "stop", {"num_solutions": 1, "num_first_wrong": 1}),
        # Undecided: neither true nor accepted.
        (
            r"\boxed{ p q } wait 7 + 1 = 8",
            "stop",
            {"num_solutions": 1, "num_verifications": 1, "num_on_right": 1, "num_first_right": 1},
        ),
        # Given up although it was right; the second solution has no verification.
        (
            r"\boxed{ p q } wait wrong again \boxed{ p r }",
            "stop",
            {
                "num_solutions": 2,
                "num_verifications": 1,
                "num_on_right": 1,
                "num_first_right": 1,
                "num_broken": 1,
            },
        ),
        # The second verification has no solution of its own, so that its verdict is not true.
        (
            r"\boxed{ p q } wait right wait right",
            "stop",
            {
                "num_solutions": 1,
                "num_verifications": 2,
                "num_on_right": 1,
                "num_confirmed": 1,
                "num_accepted": 2,
                "num_first_right": 1,
            },
        ),
        # No solution at all.
        ("wait right", "stop", {"num_verifications": 1, "num_accepted": 1}),
        # A verdict in an action that was cut is not heard.
        (
            r"\boxed{ p q } wait right",
            "length",
            {"num_solutions": 1, "num_verifications": 1, "num_on_right": 1, "num_first_right": 1},
        ),
        # Nor is an answer in it right.
        (
            r"\boxed{ p r } wait wrong again \boxed{ p q }",
            "length",
            {
                "num_solutions": 2,
                "num_verifications": 1,
                "num_on_wrong": 1,
                "num_refuted": 1,
                "num_first_wrong": 1,
            },
        ),
    ],
)
def test_disorder(text: str, finish: Finish, counted: dict[str, Any]) -> None:
    expected = VerificationCounts(num_responses=1, **counted)
    assert count_verifications([judged(text, finish=finish)]) == expected


def test_counts_of_two_sets_add_up() -> None:
    made = [judged(text) for text in GROUP]
    parts = count_verifications(made[:1]) + count_verifications(made[1:])
    assert parts == count_verifications(made)


def test_what_was_not_judged_is_left_out() -> None:
    ungraded = judged(GROUP[0], answer=None)
    assert count_verifications([ungraded]) == VerificationCounts()
    assert count_verifications([ungraded]).metrics("eval") == {"eval/verifications": 0.0}
    figures = trial_figures([ungraded])
    assert figures["trials"] is None and figures["error_recall"] is None
    assert trial_figures([ungraded, judged(GROUP[0])])["trials"] == 2.0
