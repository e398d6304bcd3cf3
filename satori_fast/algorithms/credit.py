# SPDX-License-Identifier: Apache-2.0
"""Credit rules: what each segment earned and what was expected of it, from whole groups, on the
host.

Group statistics live here, before packing, because packing scatters the siblings of a group over
microbatches and ranks. Not for dropping groups without signal (`rewards.terms`), nor for anything
per token (`algorithms.advantages`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from satori_fast.types import Credit, Trajectory, groups_of

Rewards = npt.NDArray[np.float64]

# Added to the standard deviation of a group, so that a group of equal rewards divides by no zero.
STD_EPSILON = 1e-6


class CreditRule(ABC):
    """Base class of the rules that turn rewards into `Credit`.

    A run makes one (`Recipe.credit`) and gives it every step's trajectories, the same on every
    rank. A rule that remembers something from step to step overrides `state_dict` and
    `load_state_dict`; what it remembers is saved with the checkpoints, and must not depend on the
    rank.

    compares_siblings: whether a trajectory alone in its group has no signal.
    reads_actions:     whether it needs responses whose actions are judged (`RewardBreakdown`).
    """

    compares_siblings: ClassVar[bool] = False
    reads_actions: ClassVar[bool] = False

    @abstractmethod
    def assign(self, trajectories: Sequence[Trajectory]) -> list[Credit]:
        """One `Credit` per trajectory, in order. Raises ValueError where a reward is missing."""

    @property
    def ignores_scale(self) -> bool:
        """Whether r and a r + b, with a > 0 and b the same for a whole group, give one signal."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """State of the rule, JSON-able."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        assert not state, state


@dataclass(frozen=True, slots=True)
class Terminal(CreditRule):
    """Total reward on the last segment, 0 before it, baselines 0 (in PPO the critic is one)."""

    def assign(self, trajectories: Sequence[Trajectory]) -> list[Credit]:
        rewards = total_rewards(trajectories)
        return [_terminal(t, r) for t, r in zip(trajectories, rewards, strict=True)]


class GroupRule(CreditRule):
    """Base class of rules that compare the total rewards r of a group, one value per trajectory.

    Groups are formed by `group_id`. A group of one, or of equal rewards, has nothing to compare:
    its values equal its baselines to the last bit.
    """

    compares_siblings = True

    @abstractmethod
    def compare(self, rewards: Rewards) -> tuple[Rewards, Rewards]:
        """Values and baselines of the members of one group, whose rewards are not all equal."""

    def scale(self, rewards: Rewards) -> float:
        """Divisor of values and baselines in `compare`."""
        return 1.0

    def assign(self, trajectories: Sequence[Trajectory]) -> list[Credit]:
        rewards = total_rewards(trajectories)
        values, baselines, scales = rewards.copy(), rewards.copy(), np.ones_like(rewards)
        for members in groups_of(trajectories):
            group = rewards[members]
            # The rounded mean of equal numbers can miss them by an ulp, which 1 / STD_EPSILON
            # blows up.
            if group.min() < group.max():
                values[members], baselines[members] = self.compare(group)
                scales[members] = self.scale(group)
        return [
            _broadcast(t, *of_one)
            for t, *of_one in zip(trajectories, values, baselines, scales, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class GroupMean(GroupRule):
    """Group mean as the baseline, on every segment: values r, baselines mean(group).

    divide_by_std: divide both by the group's standard deviation + 1e-6, the unbiased one (n - 1),
                   as TRL and verl take it from torch (GRPO, DeepSeekMath, arXiv 2402.03300);
                   without it the rule is that of Dr.GRPO (arXiv 2503.20783).

    Example: rewards 1, 0, 0, 1 of one group give advantages of +- 0.866024, or of +- 1/2.
    """

    divide_by_std: bool = True

    @property
    def ignores_scale(self) -> bool:
        return self.divide_by_std

    def compare(self, rewards: Rewards) -> tuple[Rewards, Rewards]:
        mean = np.full_like(rewards, rewards.mean())
        if not self.divide_by_std:
            return rewards, mean
        scale = self.scale(rewards)
        return rewards / scale, mean / scale

    def scale(self, rewards: Rewards) -> float:
        return float(rewards.std(ddof=1)) + STD_EPSILON if self.divide_by_std else 1.0


@dataclass(frozen=True, slots=True)
class LeaveOneOut(GroupRule):
    """Mean of the other members as the baseline, on every segment (RLOO, arXiv 2402.14740; S2R,
    arXiv 2502.12853).

    Example: rewards 0, 0, 1 of one group give advantages -1/2, -1/2, 1.
    """

    def compare(self, rewards: Rewards) -> tuple[Rewards, Rewards]:
        return rewards, (rewards.sum() - rewards) / (len(rewards) - 1)


def bootstrapped(trajectories: Sequence[Trajectory], credits: Sequence[Credit]) -> list[Credit]:
    """The credits, in which responses that the length limit cut have no reward at their end: it is
    not known, and the critic's value of the state after it stands there (`Credit.goes_on`)."""
    return [
        _unended(credit) if trajectory.finish == "length" else credit
        for trajectory, credit in zip(trajectories, credits, strict=True)
    ]


def _unended(credit: Credit) -> Credit:
    values = credit.values.copy()
    values[-1] = credit.baselines[-1]
    return replace(credit, values=values, goes_on=True)


def total_rewards(trajectories: Sequence[Trajectory]) -> Rewards:
    """Total reward of each trajectory, float64 [N]; ValueError, naming the problem, for none."""
    return np.array([_total_reward(t) for t in trajectories], dtype=np.float64)


def _total_reward(trajectory: Trajectory) -> float:
    if trajectory.reward is None:
        raise ValueError(
            f"a trajectory of problem {trajectory.problem.problem_id!r} has no reward: score the "
            "rollout before credit is assigned"
        )
    return trajectory.reward.total


def _broadcast(trajectory: Trajectory, value: float, baseline: float, scale: float) -> Credit:
    shape = len(trajectory.segments)
    return Credit(
        values=np.full(shape, value, dtype=np.float32),
        baselines=np.full(shape, baseline, dtype=np.float32),
        scale=float(scale),
    )


def _terminal(trajectory: Trajectory, reward: float) -> Credit:
    values = np.zeros(len(trajectory.segments), dtype=np.float32)
    values[-1] = reward
    return Credit(values=values, baselines=np.zeros_like(values))
