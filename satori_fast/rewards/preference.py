# SPDX-License-Identifier: Apache-2.0
"""The preference reward: how good an outcome reward model finds a solution (Satori, section 4.2).

The model is given as a `Scorer`: what it is, and how it is packed and shared out over ranks, is
not decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from satori_fast.types import RewardBreakdown, ScoreStatistics, Trajectory

# An outcome reward model: the raw score of each trajectory, [N] in their order.
Scorer = Callable[[Sequence[Trajectory]], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class PreferenceReward:
    """Term "preference": `preference_rewards` times `weight`, which is 1 in the paper."""

    scorer: Scorer
    statistics: ScoreStatistics
    weight: float = 1.0

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[RewardBreakdown]:
        values = preference_rewards(trajectories, self.scorer, self.statistics)
        return [RewardBreakdown({"preference": self.weight * value}) for value in values]


def preference_rewards(
    trajectories: Sequence[Trajectory], scorer: Scorer, statistics: ScoreStatistics
) -> list[float]:
    """sigmoid((score - mean) / std) of each trajectory, in (0, 1).

    statistics: of the reward model's scores, as Satori's code has it; `ScoreStatistics()` for the
    plain sigmoid(score) of the paper, which saturates where scores are far from 0.
    """
    scores = np.asarray(scorer(trajectories), dtype=np.float64)
    assert scores.shape == (len(trajectories),), scores.shape
    normalized = (scores - statistics.mean) / statistics.std
    # tanh does not overflow, whatever the score.
    rewards: list[float] = (0.5 + 0.5 * np.tanh(0.5 * normalized)).tolist()
    return rewards
