# SPDX-License-Identifier: Apache-2.0
"""Credit rules against hand-worked numbers and torch's own group statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from satori_fast.algorithms.credit import (
    CreditRule,
    GroupMean,
    LeaveOneOut,
    Terminal,
    bootstrapped,
)
from satori_fast.types import Problem, RewardBreakdown, Segment, SegmentKind, Trajectory

GRPO, GRPO_NO_STD, RLOO = GroupMean(), GroupMean(divide_by_std=False), LeaveOneOut()


def make_trajectory(reward: float | None, group_id: int = 0, num_segments: int = 1) -> Trajectory:
    breakdown = None
    if reward is not None:
        breakdown = RewardBreakdown({"rule": reward}, correct=reward > 0)
    return Trajectory(
        problem=Problem(f"problem-{group_id}", "q", "a"),
        group_id=group_id,
        tokens=np.arange(2 + num_segments, dtype=np.int32),
        prompt_len=2,
        logprobs=np.zeros(num_segments, np.float32),
        policy_version=0,
        finish="stop",
        segments=tuple(Segment(SegmentKind.STEP, i, i + 1, "") for i in range(num_segments)),
        reward=breakdown,
    )


def advantages(rewards: list[float], groups: list[int], rule: CreditRule) -> list[float]:
    trajectories = [make_trajectory(r, g) for r, g in zip(rewards, groups, strict=True)]
    return [float(c.values[0] - c.baselines[0]) for c in rule.assign(trajectories)]


def test_grpo_by_hand() -> None:
    # Mean 1/2, unbiased variance 4 (1/4) / 3 = 1/3, so the advantages are +- sqrt(3) / 2.
    result = advantages([1, 0, 0, 1], [0] * 4, GRPO)
    assert result == pytest.approx([0.866024, -0.866024, -0.866024, 0.866024], abs=2e-6)
    credits = GRPO.assign([make_trajectory(r) for r in (1.0, 0.0, 0.0, 1.0)])
    assert credits[0].values.tolist() == pytest.approx([3**0.5], abs=1e-5)
    assert credits[0].baselines.tolist() == pytest.approx([3**0.5 / 2], abs=1e-5)


def test_grpo_without_std_by_hand() -> None:
    assert advantages([1, 0, 0, 1], [0] * 4, GRPO_NO_STD) == [0.5, -0.5, -0.5, 0.5]


def test_rloo_by_hand() -> None:
    assert advantages([0, 0, 1], [0] * 3, RLOO) == [-0.5, -0.5, 1.0]
    # S2R rewards of +-1, M = 4, one of four right: 1 - (-1), and -1 - (1 - 1 - 1) / 3.
    expected = [2.0, -2 / 3, -2 / 3, -2 / 3]
    assert advantages([1, -1, -1, -1], [0] * 4, RLOO) == pytest.approx(expected)


def test_interleaved_groups_match_torch() -> None:
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat([7, 3, 11], 5)).tolist()
    rewards = rng.normal(size=15).tolist()
    result = advantages(rewards, groups, GRPO)
    for group in (3, 7, 11):
        members = [i for i, g in enumerate(groups) if g == group]
        r = torch.tensor(rewards, dtype=torch.float64)[members]
        expected = (r - r.mean()) / (r.std() + 1e-6)
        assert [result[i] for i in members] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("rule", [GRPO, GRPO_NO_STD, RLOO])
@pytest.mark.parametrize("rewards", [[0.1] * 3, [0.7] * 7, [-1.0 / 3], [0.0, 0.0]])
def test_groups_without_contrast_have_exactly_no_signal(
    rule: CreditRule, rewards: list[float]
) -> None:
    assert advantages(rewards, [0] * len(rewards), rule) == [0.0] * len(rewards)


@pytest.mark.parametrize("rule", [GRPO, GRPO_NO_STD, RLOO])
def test_group_rules_broadcast_over_segments(rule: CreditRule) -> None:
    trajectories = [make_trajectory(1.0, num_segments=3), make_trajectory(0.0, num_segments=2)]
    for credit, length in zip(rule.assign(trajectories), (3, 2), strict=True):
        assert credit.values.dtype == credit.baselines.dtype == np.float32
        assert credit.values.shape == credit.baselines.shape == (length,)
        assert len(set(credit.values.tolist())) == len(set(credit.baselines.tolist())) == 1


def test_terminal_pays_the_last_segment() -> None:
    (credit,) = Terminal().assign([make_trajectory(-0.25, num_segments=3)])
    assert credit.values.tolist() == [0.0, 0.0, -0.25]
    assert credit.baselines.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("rule", [Terminal(), GRPO, GRPO_NO_STD, RLOO])
def test_missing_reward_names_the_problem(rule: CreditRule) -> None:
    trajectories = [make_trajectory(1.0), make_trajectory(None, group_id=4)]
    with pytest.raises(ValueError, match="problem-4"):
        rule.assign(trajectories)


def test_rules_say_what_they_compare_and_remember_nothing() -> None:
    assert not Terminal().compares_siblings and not Terminal().ignores_scale
    for rule in (GRPO, GRPO_NO_STD, RLOO):
        assert rule.compares_siblings and rule.ignores_scale == (rule is GRPO)
        assert rule.state_dict() == {}
        rule.load_state_dict({})


@pytest.mark.parametrize("rule", [GRPO, GRPO_NO_STD, RLOO])
def test_only_the_standard_deviation_hides_a_positive_affine_map(rule: CreditRule) -> None:
    rewards = [0.0, -1.0, -1.0, 0.0, -1.0]
    plain = advantages(rewards, [0] * 5, rule)
    mapped = advantages([3.0 * r + 0.7 for r in rewards], [0] * 5, rule)
    factor = 1.0 if rule.ignores_scale else 3.0
    assert mapped == pytest.approx([factor * a for a in plain], rel=5e-6)


def test_a_cut_response_has_no_reward_of_its_own() -> None:
    ended = make_trajectory(1.5, num_segments=3)
    cut = replace(ended, finish="length")
    credits = Terminal().assign([ended, cut])
    first, second = bootstrapped([ended, cut], credits)
    assert first is credits[0] and not first.goes_on
    assert second.goes_on and not (second.values - second.baselines).any()
    assert credits[1].values[-1] == 1.5  # what was given stays as it is
