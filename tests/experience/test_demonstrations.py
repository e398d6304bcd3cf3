# SPDX-License-Identifier: Apache-2.0
"""Demonstrations come once an epoch, without credit, and resume."""

from __future__ import annotations

from satori_fast.data.prompts import encode_demonstration
from satori_fast.experience.demonstrations import DemonstrationSource
from satori_fast.types import Demonstration, Problem
from tests.rollout.test_engine import RENDERER
from tests.rollout.test_restarting import NoWeights

TRAJECTORIES = [
    encode_demonstration(Demonstration(Problem(str(i), "sum 1", "1"), "p"), RENDERER, group_id=i)
    for i in range(5)
]


def test_each_comes_once_an_epoch_and_a_saved_state_goes_on() -> None:
    source = DemonstrationSource(TRAJECTORIES, batch_size=2, seed=1)
    first = source.next(0)
    assert first.credits is None and first.sampled == first.trajectories
    assert first.num_tokens == sum(len(t.tokens) for t in first.trajectories)
    resumed = DemonstrationSource(TRAJECTORIES, batch_size=2, seed=1)
    resumed.load_state_dict(source.state_dict())
    seen = [t.group_id for t in first.trajectories]
    for step in (1, 2):
        expected = source.next(step).trajectories
        assert [t.group_id for t in resumed.next(step).trajectories] == [
            t.group_id for t in expected
        ]
        seen += [t.group_id for t in expected]
    assert sorted(seen[:5]) == [0, 1, 2, 3, 4]
    assert source.sync(NoWeights(), version=1) is None
