# SPDX-License-Identifier: Apache-2.0
"""SRL's worked numbers: from similarities to kept groups and advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from satori_fast.algorithms.recipe import RECIPES, effective_recipe
from satori_fast.rewards.terms import drop_uninformative_groups
from satori_fast.types import Problem, RewardBreakdown, Segment, SegmentKind, Trajectory

SRL = RECIPES["srl"]
EPSILON = 0.01


def group(rewards: Sequence[float]) -> list[Trajectory]:
    return [
        Trajectory(
            problem=Problem("p", "q", None),
            group_id=0,
            tokens=np.zeros(2, dtype=np.int32),
            prompt_len=1,
            logprobs=np.zeros(1, dtype=np.float32),
            policy_version=0,
            finish="stop",
            segments=(Segment(SegmentKind.STEP, 0, 1, "x"),),
            reward=RewardBreakdown({"similarity": reward}),
        )
        for reward in rewards
    ]


@pytest.mark.parametrize(
    ("rewards", "deviation", "advantages"),
    [
        ([1.0, 0.8, 0.8, 0.4], 0.217945, [0.993395, 0.198679, 0.198679, -1.390753]),
        ([0.4, 0.4, 0.4, -1.0], 0.606218, [0.499999] * 3 + [-1.499998]),
        ([0.8, 0.8, 0.6, 0.6], 0.1, [0.866018] * 2 + [-0.866018] * 2),
    ],
)
def test_a_group_that_differs_is_kept_and_compared(
    rewards: list[float], deviation: float, advantages: list[float]
) -> None:
    assert float(np.std(rewards)) == pytest.approx(deviation, abs=1e-6)
    trajectories = group(rewards)
    assert SRL.min_group_std == EPSILON
    assert drop_uninformative_groups(trajectories, EPSILON) == trajectories
    credits = SRL.credit().assign(trajectories)
    found = [float(credit.values[0] - credit.baselines[0]) for credit in credits]
    assert found == pytest.approx(advantages, abs=1e-6)


def test_a_group_that_hardly_differs_is_dropped() -> None:
    rewards = [0.5] * 7 + [0.51]
    assert float(np.std(rewards)) == pytest.approx(0.003307, abs=1e-6)
    assert drop_uninformative_groups(group(rewards), 0.01) == []
    assert len(drop_uninformative_groups(group(rewards), 1e-6)) == 8


def test_the_row_is_grpo_with_a_wider_filter() -> None:
    grpo = RECIPES["grpo"]
    assert replace(SRL, name="grpo", paper=grpo.paper, credit=grpo.credit, min_group_std=1e-6) == (
        grpo
    )
    assert SRL.credit() == grpo.credit() and SRL.kl_coefficient == 0.0 and not SRL.needs
    assert effective_recipe("srl", temperature=1.0).min_group_std == 0.01
