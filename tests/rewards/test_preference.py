# SPDX-License-Identifier: Apache-2.0
"""The preference reward by hand: normalised or not, in order, never out of (0, 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from satori_fast.rewards.preference import PreferenceReward, preference_rewards
from satori_fast.rewards.terms import score
from satori_fast.types import (
    Problem,
    RewardBreakdown,
    ScoreStatistics,
    Segment,
    SegmentKind,
    Trajectory,
)


def answer(score: float) -> Trajectory:
    """A trajectory that `by_logprob` scores with `score`."""
    return Trajectory(
        problem=Problem("p", "q", "a"),
        group_id=0,
        tokens=np.array([1, 2], dtype=np.int32),
        prompt_len=1,
        logprobs=np.array([score], dtype=np.float32),
        policy_version=0,
        finish="stop",
        segments=(Segment(SegmentKind.WHOLE, 0, 1, ""),),
    )


def by_logprob(trajectories: Sequence[Trajectory]) -> npt.NDArray[np.float32]:
    return np.array([t.logprobs[0] for t in trajectories], dtype=np.float32)


def test_sigmoid_of_the_score() -> None:
    answers = [answer(0.0), answer(math.log(3.0)), answer(-math.log(3.0))]
    assert preference_rewards(answers, by_logprob, ScoreStatistics()) == pytest.approx(
        [0.5, 0.75, 0.25]
    )


def test_normalised_before_the_sigmoid() -> None:
    # Scores 5, 5 + 2 log 3 and 5 - 2 log 3 with mean 5 and standard deviation 2.
    answers = [answer(5.0 + 2.0 * x) for x in (0.0, math.log(3.0), -math.log(3.0))]
    rewards = preference_rewards(answers, by_logprob, ScoreStatistics(mean=5.0, std=2.0))
    assert rewards == pytest.approx([0.5, 0.75, 0.25])
    # Without statistics the same scores sit in the flat end of the sigmoid.
    assert min(preference_rewards(answers, by_logprob, ScoreStatistics())) > 0.93


def test_extreme_scores_do_not_overflow() -> None:
    assert preference_rewards(
        [answer(1e6), answer(-1e6)], by_logprob, ScoreStatistics()
    ) == pytest.approx([1.0, 0.0])
    assert preference_rewards([], by_logprob, ScoreStatistics()) == []


def test_the_term_carries_its_weight_and_goes_to_its_trajectory() -> None:
    answers = [answer(0.0), answer(math.log(3.0))]
    for weight, expected in ((1.0, [0.5, 0.75]), (0.5, [0.25, 0.375])):
        parts = PreferenceReward(by_logprob, ScoreStatistics(), weight)(answers)
        assert [part.terms["preference"] for part in parts] == pytest.approx(expected)
        assert [(part.correct, part.segments) for part in parts] == [(None, None)] * 2


@pytest.mark.parametrize(
    ("without", "low", "high"),
    [(0.0, 0.0, 1.0), (-1.0, -1.0, 0.0), (0.5, 0.5, 1.5), (-1.5, -1.5, -0.5)],
    ids=["right", "wrong", "D- mended", "D+ spoilt"],
)
def test_with_the_papers_weight_each_case_spans_a_range(
    without: float, low: float, high: float
) -> None:
    def outcome(trajectories: Sequence[Trajectory]) -> list[RewardBreakdown]:
        return [RewardBreakdown({"rule": without}) for _ in trajectories]

    answers = [answer(-1e6), answer(-math.log(3.0)), answer(1e6)]
    scored = score(answers, [outcome, PreferenceReward(by_logprob, ScoreStatistics())])
    totals = [t.reward.total for t in scored if t.reward is not None]
    assert totals == pytest.approx([low, without + 0.25, high])
