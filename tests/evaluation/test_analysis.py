# SPDX-License-Identifier: Apache-2.0
"""Analyses of answers written by hand: changes, verdicts, and accuracy by groups."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from satori_fast.data.formats.coat import COAT
from satori_fast.evaluation.analysis import (
    Attempt,
    SelfCorrection,
    VerdictQuality,
    accuracy_by,
    accuracy_by_attempts,
    accuracy_by_length,
    analyse,
    earlier_pass_rates,
    self_correction,
    verdict_quality,
)
from satori_fast.types import Problem, Segment, SegmentKind, Trajectory


def attempts(*answers: str) -> list[Attempt]:
    """The right answer is 4."""
    return [Attempt(answer, answer == "4") for answer in answers]


ANSWERS = [
    attempts(),
    attempts("5"),
    attempts("4", "4"),
    attempts("5", "5"),
    attempts("4", "5", "4"),
    attempts("5", "6", "4"),
    attempts("4", "5"),
    attempts("5", "6"),
]


def test_first_and_last_answer_of_those_that_reflected() -> None:
    changes = self_correction(ANSWERS)
    assert changes == SelfCorrection(
        wrong_to_right=1, right_to_wrong=1, wrong_to_wrong=1, right_unchanged=2, wrong_unchanged=1
    )
    assert changes.num_reflected == 6
    assert self_correction([]).num_reflected == 0


def test_verdicts_are_told_by_what_came_of_each_answer() -> None:
    quality = verdict_quality(ANSWERS)
    # On wrong ones: 5-5 kept; 5-4, 5-6, 6-4 and 5-6 changed. On right ones: 4-4 kept; 4-5 twice.
    assert quality == VerdictQuality(num_on_wrong=5, num_changed=4, num_on_right=3, num_kept=1)
    assert quality.error_recall == 0.8 and quality.right_kept == pytest.approx(1 / 3)
    nothing = verdict_quality([attempts("4")])
    assert nothing.error_recall is None and nothing.right_kept is None


def test_a_right_answer_in_other_words_is_kept() -> None:
    assert verdict_quality([[Attempt("1/2", True), Attempt("0.5", True)]]).right_kept == 1.0


def test_accuracy_by_attempts_of_one_response() -> None:
    # Boxes: wrong, wrong, right.
    found = accuracy_by_attempts([attempts("5", "6", "4")])
    assert [(k.attempts, k.accuracy) for k in found] == [(1, 0.0), (2, 0.0), (3, 1.0)]
    assert accuracy_by_attempts([]) == accuracy_by_attempts([attempts()]) == []


def test_a_response_with_fewer_attempts_stands_by_its_last() -> None:
    found = accuracy_by_attempts(ANSWERS)
    # First ones right: 4-4, 4-5-4, 4-5. Second ones: 4-4 stays. Third ones: 4-5-4 and 5-6-4 too.
    # That 5-5 and 4-4 repeat their last answer is no second attempt.
    assert [(k.attempts, k.num_made, k.accuracy) for k in found] == [
        (1, 7, 3 / 8), (2, 4, 1 / 8), (3, 2, 3 / 8),
    ]  # fmt: skip
    assert found[1].standard_error == pytest.approx((1 / 8 * 7 / 8 / 8) ** 0.5)


def test_a_confirmed_answer_is_one_attempt_and_one_found_again_is_two() -> None:
    (only,) = accuracy_by_attempts([attempts("4", "4")])
    assert (only.attempts, only.num_made) == (1, 1)
    again = accuracy_by_attempts([attempts("5", "5", "4")])
    assert [k.accuracy for k in again] == [0.0, 0.0, 1.0]


def test_length_bins_have_like_counts_and_lose_nothing() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.permutation(800) + 10
    correct = lengths < 410
    bins = accuracy_by_length(lengths.tolist(), correct.tolist(), num_bins=8)
    assert [g.count for g in bins] == [100] * 8
    assert [g.accuracy for g in bins] == [1.0] * 4 + [0.0] * 4
    assert bins[0].label == "10-109" and bins[0].mean == 59.5
    halves = accuracy_by_length(lengths.tolist(), (lengths % 2 == 0).tolist(), num_bins=2)
    assert halves[0].standard_error == pytest.approx((0.25 / 400) ** 0.5)


@pytest.mark.parametrize(
    ("lengths", "labels"),
    [
        ([7] * 20, ["7"]),
        ([], []),
        ([3], ["3"]),
        # A limit of 50 tokens that many responses reach.
        ([*range(10, 30), *[50] * 20], ["10-14", "15-19", "20-24", "25-29", "50"]),
        # One long response does not get a bin.
        ([*range(10, 29), 99], ["10-14", "15-19", "20-24", "25-99"]),
    ],
)
def test_bins_of_equal_lengths(lengths: list[int], labels: list[str]) -> None:
    num_bins = 8 if 50 in lengths else 4
    bins = accuracy_by_length(lengths, [True] * len(lengths), num_bins=num_bins)
    assert [g.label for g in bins] == labels
    assert sum(g.count for g in bins) == len(lengths)


def test_labels_are_in_the_order_of_their_numbers() -> None:
    labels = ["Level 10", "Level 2", "", "Level 2"]
    groups = accuracy_by(labels, [True, True, True, False])
    assert [(g.label, g.count, g.accuracy) for g in groups] == [
        ("Level 2", 2, 0.5),
        ("Level 10", 1, 1.0),
    ]
    assert accuracy_by(["", ""], [True, False]) == []


def test_lengths_are_those_of_each_label() -> None:
    hard, easy = accuracy_by(
        ["2", "1", "", "2"], [True] * 4, order=["2", "1"], lengths=[3, 5, 9, 7]
    )
    assert (hard.label, hard.mean_tokens, hard.tokens_standard_error) == ("2", 5.0, 2 / 2**0.5)
    assert (easy.label, easy.mean_tokens, easy.tokens_standard_error) == ("1", 5.0, 0.0)
    assert accuracy_by(["2"], [True])[0].mean_tokens is None


def test_pass_rates_count_the_evaluations_that_had_the_problem() -> None:
    earlier = [{"a": True, "b": False, "c": True}, {"a": True, "b": False, "c": False, "d": True}]
    assert earlier_pass_rates(["a", "b", "c", "d", "e"], earlier) == [
        "all", "none", "some", "all", "",
    ]  # fmt: skip
    assert earlier_pass_rates(["a"], []) == [""]


def trajectory(number: int, *, reflections: int, tokens: int) -> Trajectory:
    segments = [Segment(SegmentKind.CONTINUE, 0, tokens - reflections, "x")]
    start = tokens - reflections
    segments += [
        Segment(SegmentKind.REFLECT, start + i, start + i + 1, "<|reflect|> y")
        for i in range(reflections)
    ]
    return Trajectory(
        problem=Problem(f"p{number}", "q", "4", level=str(number % 2 + 1)),
        group_id=number,
        tokens=np.zeros(tokens + 1, np.int32),
        prompt_len=1,
        logprobs=np.zeros(tokens, np.float32),
        policy_version=0,
        finish="stop",
        segments=tuple(segments),
    )


def test_everything_fits_json_and_agrees_with_its_parts() -> None:
    trajectories = [trajectory(n, reflections=n % 6, tokens=10 + n) for n in range(8)]
    correct = [bool(own) and own[-1].correct for own in ANSWERS]
    earlier = [{f"p{n}": n < 4 for n in range(8)}]
    analysis = analyse(trajectories, ANSWERS, correct, format=COAT, earlier=earlier)
    assert json.loads(json.dumps(analysis, allow_nan=False)) == analysis
    changes = self_correction(ANSWERS)
    assert analysis["changes"] == asdict(changes) | {"num_reflected": 6}
    assert analysis["verdicts"]["error_recall"] == 0.8
    assert [g["label"] for g in analysis["by_reflections"]] == ["0", "1", "2", "3+"]
    assert [g["count"] for g in analysis["by_reflections"]] == [2, 2, 1, 3]
    assert [(g["label"], g["count"]) for g in analysis["by_level"]] == [("1", 4), ("2", 4)]
    # Responses of 10 to 17 tokens, in turn of level 1 and 2.
    assert [g["mean_tokens"] for g in analysis["by_level"]] == [13.0, 14.0]
    assert [g["mean_tokens"] for g in analysis["by_earlier"]] == [15.5, 11.5]
    assert [(k["attempts"], k["num_made"]) for k in analysis["by_attempts"]] == [
        (1, 7), (2, 4), (3, 2),
    ]  # fmt: skip
    assert [(g["label"], g["count"]) for g in analysis["by_earlier"]] == [("none", 4), ("all", 4)]
    assert sum(g["count"] for g in analysis["by_length"]) == 8
    assert analysis["correct"] == {f"p{n}": c for n, c in enumerate(correct)}
    assert analyse(trajectories, ANSWERS, correct, format=COAT)["by_earlier"] == []
