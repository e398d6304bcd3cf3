# SPDX-License-Identifier: Apache-2.0
"""Terms of several sources are joined in order, and groups that teach nothing are dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from satori_fast.rewards.terms import drop_uninformative_groups, score
from satori_fast.types import RewardBreakdown, Trajectory
from tests.algorithms.test_advantages import make_trajectory


def constant(*parts: RewardBreakdown):
    """A source that gives these, whatever the trajectories are."""

    def reward(trajectories: Sequence[Trajectory]) -> list[RewardBreakdown]:
        assert len(trajectories) == len(parts)
        return list(parts)

    return reward


def rewards_of(scored: Sequence[Trajectory]) -> list[RewardBreakdown]:
    return [t.reward for t in scored if t.reward is not None]


def test_terms_are_joined_in_the_order_of_their_sources() -> None:
    trajectories = [make_trajectory(2, [1, 2]), make_trajectory(2, [3])]
    graded = constant(
        RewardBreakdown({"rule": 0.0}, correct=True), RewardBreakdown({"rule": -1.0}, correct=False)
    )
    length = constant(RewardBreakdown({"length": 0.1}), RewardBreakdown({"length": 0.2}))
    first, second = rewards_of(score(trajectories, [graded, length]))
    assert list(first.terms.items()) == [("rule", 0.0), ("length", 0.1)]
    assert (first.total, first.correct, first.segments) == (0.1, True, None)
    assert (second.total, second.correct) == (-1.0 + 0.2, False)
    assert list(rewards_of(score(trajectories, [length, graded]))[0].terms) == ["length", "rule"]
    assert [t.reward for t in trajectories] == [None, None]
    # What a trajectory had before is no part of it.
    again = score(score(trajectories, [graded]), [length])
    assert rewards_of(again)[0] == RewardBreakdown({"length": 0.1})
    assert score([], [graded]) == []
    assert rewards_of(score(trajectories, [])) == [RewardBreakdown({})] * 2


def test_the_total_is_added_from_left_to_right() -> None:
    terms = {"a": 1e16, "b": 1.0, "c": -1e16}
    assert RewardBreakdown(terms).total == 1e16 + 1.0 - 1e16 == 0.0 != math.fsum(terms.values())
    assert RewardBreakdown({}).total == 0.0


def test_a_source_sees_what_the_ones_before_it_gave() -> None:
    def when_right(trajectories: Sequence[Trajectory]) -> list[RewardBreakdown]:
        return [
            RewardBreakdown({"bonus": 2.0 * (t.reward is not None and t.reward.correct is True)})
            for t in trajectories
        ]

    graded = constant(RewardBreakdown({}, correct=True), RewardBreakdown({}, correct=False))
    scored = score([make_trajectory(2, [1])] * 2, [graded, when_right])
    assert [r.total for r in rewards_of(scored)] == [2.0, 0.0]


def test_values_of_segments_are_added_and_stay_out_of_the_total() -> None:
    trajectories = [make_trajectory(2, [1, 2, 1])] * 2
    values = np.array([1.0, -1.0, 0.5], np.float32)
    process = constant(RewardBreakdown({}, values), RewardBreakdown({}))
    both = constant(RewardBreakdown({"format": -1.0}, 2 * values), RewardBreakdown({"format": 0.0}))
    first, second = rewards_of(score(trajectories, [process, both]))
    assert first.segments is not None and first.segments.dtype == np.float32
    np.testing.assert_array_equal(first.segments, 3 * values)
    assert first.total == -1.0 and second.segments is None
    # Nothing graded these: SRL's case.
    assert (first.correct, second.correct) == (None, None)


def test_a_name_that_is_given_twice_is_refused() -> None:
    one = constant(RewardBreakdown({"rule": 0.0, "length": 1.0}))
    with pytest.raises(ValueError, match="two rewards give a term 'length': give one of them"):
        score([make_trajectory(2, [1])], [one, constant(RewardBreakdown({"length": 1.0}))])


def graded_group(group_id: int, *correct: bool) -> list[Trajectory]:
    plain = replace(make_trajectory(2, [1]), group_id=group_id)
    return [plain.with_reward(RewardBreakdown({"rule": right - 1.0})) for right in correct]


def test_groups_without_a_difference_are_dropped() -> None:
    mixed = graded_group(1, True, False, False)
    everything = [*graded_group(0, True, True), *mixed, *graded_group(2, False, False, False)]
    assert drop_uninformative_groups(everything, 0.0) == mixed
    # Siblings need not be neighbours, and the order stays.
    shuffled = [everything[i] for i in (2, 0, 5, 3, 1, 6, 4, 7)]
    assert drop_uninformative_groups(shuffled, 0.0) == [everything[i] for i in (2, 3, 4)]


def test_threshold_is_exclusive_and_below_zero_keeps_all() -> None:
    half = graded_group(0, True, False)  # standard deviation 0.5
    assert drop_uninformative_groups(half, 0.49) == half
    assert drop_uninformative_groups(half, 0.5) == []
    alone = graded_group(1, True)
    assert drop_uninformative_groups([*half, *alone], -1.0) == [*half, *alone]
    assert drop_uninformative_groups(alone, 0.0) == []
    assert drop_uninformative_groups([], 0.0) == []
