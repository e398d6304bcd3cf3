# SPDX-License-Identifier: Apache-2.0
"""Signals of segments, read back from packed batches, against what went into them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from satori_fast.algorithms.advantages import AdvantageRule, estimate_advantages
from satori_fast.algorithms.credit import GroupMean
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.experience.signal import segment_signals
from satori_fast.types import RewardBreakdown
from tests.algorithms.test_advantages import alone, make_trajectory


def test_every_rank_has_the_signals_of_its_own_microbatches() -> None:
    shapes = [[3], [2, 5], [1, 1, 4], [6], [2, 2]]
    rewards = [0.0, 1.0, -1.0, 1.0, 0.5]
    trajectories = [
        make_trajectory(2, shape).with_reward(RewardBreakdown({"rule": reward}))
        for shape, reward in zip(shapes, rewards, strict=True)
    ]
    given = RewardBreakdown({"rule": 0.5}, segments=np.array([0.25, -0.5], np.float32))
    trajectories[-1] = replace(trajectories[-1], reward=given)
    credits = GroupMean(divide_by_std=True).assign(trajectories)
    found = {}
    for rank in range(2):
        spec = PackingSpec(16, 2, data_parallel_size=2, data_parallel_rank=rank, pad_to_multiple=8)
        batches = pack(trajectories, credits, spec, "token")
        advantages = estimate_advantages(batches, AdvantageRule("spread"), alone)
        own = segment_signals(trajectories, credits, batches, advantages)
        assert not own.keys() & found.keys()
        found |= own
    assert sorted(found) == [0, 1, 2, 3, 4]
    mean, std = np.mean(rewards), np.std(rewards, ddof=1)
    for place, (shape, reward) in enumerate(zip(shapes, rewards, strict=True)):
        signal, same = found[place], np.ones(len(shape))
        # What the rule compared, not the process rewards that it does not read.
        expected = reward * same
        assert signal.rewards == pytest.approx(expected, abs=1e-6)
        assert signal.baselines == pytest.approx(mean * same, abs=1e-6)
        assert signal.advantages == pytest.approx((reward - mean) / std * same, abs=1e-5)
        assert signal.weights.tolist() == same.tolist()


def test_without_batches_there_is_no_signal() -> None:
    assert segment_signals([], [], [], []) == {}
