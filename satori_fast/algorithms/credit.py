# SPDX-License-Identifier: Apache-2.0
"""What each segment earned and what was expected of it: `Credit`, from whole groups, on the host.

Group statistics live here, before packing, because packing scatters the siblings of a group over
microbatches and ranks. Not for dropping groups without signal (`rewards.terms`), nor for anything
per token (`algorithms.advantages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from satori_fast.types import Credit, Trajectory

CreditRule = Literal["terminal", "grpo", "grpo_no_std", "rloo", "ones"]
Rewards = npt.NDArray[np.float64]

# Added to the standard deviation of a group, so that a group of equal rewards divides by no zero.
STD_EPSILON = 1e-6


def assign_credit(trajectories: Sequence[Trajectory], rule: CreditRule) -> list[Credit]:
    """One `Credit` per trajectory, in order. ``r`` is the total reward of a trajectory.

    "terminal":    values r on the last segment, 0 before it; baselines 0 (in PPO the critic is
                   the baseline).
    "grpo":        values r / s, baselines mean(group) / s on every segment, with s the group's
                   standard deviation + 1e-6; the unbiased estimator (n - 1), as TRL and verl take
                   from torch (DeepSeekMath, arXiv 2402.03300).
    "grpo_no_std": values r, baselines mean(group) (Dr.GRPO, arXiv 2503.20783).
    "rloo":        values r, baselines the mean of the other members (arXiv 2402.14740; S2R, arXiv
                   2502.12853).
    "ones":        values 1, baselines 0; needs no reward (imitation).

    Groups are formed by `group_id`. A group of one, or of equal rewards, has nothing to compare:
    its values equal its baselines to the last bit. Raises ValueError where a reward is missing.

    Example: rewards 0, 0, 1 of one group give rloo advantages -1/2, -1/2, 1.
    """
    if rule not in get_args(CreditRule):
        raise ValueError(f"credit rule {rule!r} is unknown: use one of {get_args(CreditRule)}")
    if rule == "ones":
        return [_broadcast(trajectory, 1.0, 0.0) for trajectory in trajectories]
    rewards = np.array([_total_reward(t) for t in trajectories], dtype=np.float64)
    if rule == "terminal":
        return [_terminal(t, r) for t, r in zip(trajectories, rewards, strict=True)]
    values, baselines = rewards.copy(), rewards.copy()
    for members in _groups(trajectories):
        values[members], baselines[members] = _compare(rewards[members], rule)
    return [
        _broadcast(t, value, baseline)
        for t, value, baseline in zip(trajectories, values, baselines, strict=True)
    ]


def _compare(rewards: Rewards, rule: CreditRule) -> tuple[Rewards, Rewards]:
    """Values and baselines of the members of one group."""
    # The rounded mean of equal numbers can miss them by an ulp, which 1 / STD_EPSILON blows up.
    if rewards.min() == rewards.max():
        return rewards, rewards
    mean = np.full_like(rewards, rewards.mean())
    if rule == "grpo":
        scale = rewards.std(ddof=1) + STD_EPSILON
        return rewards / scale, mean / scale
    if rule == "grpo_no_std":
        return rewards, mean
    assert rule == "rloo", rule
    return rewards, (rewards.sum() - rewards) / (len(rewards) - 1)


def _groups(trajectories: Sequence[Trajectory]) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for index, trajectory in enumerate(trajectories):
        members.setdefault(trajectory.group_id, []).append(index)
    return list(members.values())


def _total_reward(trajectory: Trajectory) -> float:
    if trajectory.reward is None:
        raise ValueError(
            f"a trajectory of problem {trajectory.problem.problem_id!r} has no reward: score the "
            "rollout before assign_credit"
        )
    return trajectory.reward.total


def _broadcast(trajectory: Trajectory, value: float, baseline: float) -> Credit:
    shape = len(trajectory.segments)
    return Credit(
        values=np.full(shape, value, dtype=np.float32),
        baselines=np.full(shape, baseline, dtype=np.float32),
    )


def _terminal(trajectory: Trajectory, reward: float) -> Credit:
    values = np.zeros(len(trajectory.segments), dtype=np.float32)
    values[-1] = reward
    return Credit(values=values, baselines=np.zeros_like(values))
