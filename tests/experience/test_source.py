# SPDX-License-Identifier: Apache-2.0
"""From samples to experience: groups that are kept, credit, and figures taken along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from satori_fast.algorithms.credit import GroupMean, Terminal
from satori_fast.experience.source import Judge, first_groups, num_groups
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.types import RewardBreakdown, Trajectory
from tests.test_types import example_trajectory

# Rewards by group: two groups with a signal, one without.
REWARDS = {5: [1.0, 0.0], 2: [0.5, 0.5], 9: [0.0, 3.0]}


def scored(rewards: dict[int, list[float]]) -> list[Trajectory]:
    return [
        replace(example_trajectory(), group_id=group, reward=RewardBreakdown({"rule": value}))
        for group, values in rewards.items()
        for value in values
    ]


def ids(trajectories: Sequence[Trajectory]) -> list[int]:
    return [t.group_id for t in trajectories]


def judge(min_group_std: float | None) -> Judge:
    rule = GroupMean(divide_by_std=False)
    return Judge(list, rule, min_group_std, SpanRecorder().span, lambda: {"grading/graded": 6.0})


@pytest.mark.parametrize(
    ("min_std", "kept"),
    [(None, [5, 5, 2, 2, 9, 9]), (1e-6, [5, 5, 9, 9]), (1.0, [9, 9]), (1.5, [])],
)
def test_groups_are_kept_by_their_standard_deviation(
    min_std: float | None, kept: list[int]
) -> None:
    assert ids(judge(min_std).informative(scored(REWARDS))) == kept


def test_experience_has_credit_for_what_is_kept_and_all_that_was_counted() -> None:
    everything = scored(REWARDS)
    rule = judge(1e-6)
    kept = rule.informative(everything)
    made = rule.experience(kept, everything, policy_version=7, stats={"rollout/kept": 2 / 3})
    assert (made.trajectories, made.sampled) == (tuple(kept), tuple(everything))
    assert made.credits is not None
    advantages = [np.unique(c.values - c.baselines).tolist() for c in made.credits]
    assert advantages == [[0.5], [-0.5], [-1.5], [1.5]]
    assert made.policy_version == 7
    assert made.stats == {"rollout/kept": 2 / 3, "grading/graded": 6.0}


def test_the_first_groups_are_those_that_came_first() -> None:
    one, two, three = (scored({g: r}) for g, r in REWARDS.items())
    # Siblings need not stand together.
    mixed = [one[0], two[0], one[1], three[0], two[1], three[1]]
    assert num_groups(mixed) == 3
    assert ids(first_groups(mixed, 2)) == [5, 2, 5, 2]
    assert first_groups(mixed, 9) == mixed and first_groups(mixed, 0) == []


def cut_one() -> list[Trajectory]:
    """The first response of group 5 was cut at the length limit."""
    first, *others = scored(REWARDS)
    return [replace(first, finish="length"), *others]


def test_cut_responses_are_left_out_of_their_groups() -> None:
    """Alone in its group, a sibling has nothing to be compared with."""
    masked = replace(judge(1e-6), cut="drop")
    assert ids(judge(1e-6).informative(cut_one())) == [5, 5, 9, 9]
    assert ids(masked.informative(cut_one())) == [9, 9]
    assert ids(replace(judge(None), cut="drop").informative(cut_one())) == [5, 2, 2, 9, 9]


def test_cut_responses_are_valued_by_the_critic() -> None:
    kept = cut_one()
    rule = replace(judge(None), credit=Terminal(), cut="bootstrap")
    made = rule.experience(kept, kept, policy_version=0, stats={})
    assert made.credits is not None and made.trajectories == tuple(kept)
    assert [c.goes_on for c in made.credits] == [True] + [False] * 5
    assert [float(c.values[-1]) for c in made.credits] == [0.0, 0.0, 0.5, 0.5, 0.0, 3.0]
