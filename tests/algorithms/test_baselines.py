# SPDX-License-Identifier: Apache-2.0
"""Baselines of actions against means that a hand computes, over steps and within one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from satori_fast.algorithms.baselines import ContextBaselines, context_keys
from satori_fast.types import Credit, Problem, RewardBreakdown, Segment, SegmentKind, Trajectory

KINDS = {"R": SegmentKind.SOLVE, "V": SegmentKind.VERIFY}
FIRST = ("R-V+R+V+", "R+V+", "R-V-", "R-V+R-V-")
SECOND = ("R+V+", "R-V+R+V+", "R-V-")


def make_actions(pattern: str, *, lengths: tuple[int, ...] | None = None) -> Trajectory:
    """A response of actions that are right or wrong, as "R-V+": one token each unless given."""
    names, marks = pattern[::2], pattern[1::2]
    sizes = lengths or (1,) * len(names)
    stops = np.cumsum(sizes).tolist()
    segments = [
        Segment(KINDS[name], start, stop, "")
        for name, start, stop in zip(names, [0, *stops], stops, strict=False)
    ]
    actions = tuple(mark == "+" for mark in marks)
    return Trajectory(
        problem=Problem(pattern, "q", "a"),
        group_id=0,
        tokens=np.ones(2 + stops[-1], dtype=np.int32),
        prompt_len=2,
        logprobs=np.zeros(stops[-1], np.float32),
        policy_version=0,
        finish="stop",
        segments=tuple(segments),
        reward=RewardBreakdown({}, actions=actions),
    )


def advantages(credits: list[Credit]) -> list[list[float]]:
    return [(c.values - c.baselines).astype(np.float64).round(6).tolist() for c in credits]


def assigned(rule: ContextBaselines, *patterns: str) -> list[list[float]]:
    return advantages(rule.assign([make_actions(pattern) for pattern in patterns]))


def test_the_mean_of_a_step() -> None:
    assert assigned(ContextBaselines(running=False), *FIRST) == [
        [-0.5, 0.666667, 1, 0],
        [1.5, 0],
        [-0.5, -1.333333],
        [-0.5, 0.666667, -1, 0],
    ]


def test_the_mean_of_the_steps_before() -> None:
    rule = ContextBaselines(running=True, min_count=2)
    # Nothing is known yet, and the step itself does not count.
    assert assigned(rule, *FIRST) == [[-1, 1, 1, 1], [1, 1], [-1, -1], [-1, 1, -1, -1]]
    assert assigned(rule, *SECOND) == [[1.5, 1], [-0.5, 0.666667, 1, 1], [-0.5, -1.333333]]
    means = {key: (n, round((2 * r - n) / n, 6)) for key, (n, r) in rule.state_dict().items()}
    assert means == {
        "R": (7, -0.428571),
        "R-V": (5, 0.2),
        "R-V+R": (3, 0.333333),
        "R-V+R+V": (2, 1),
        "R+V": (2, 1),
        "R-V+R-V": (1, -1),
    }


def test_a_resumed_rule_goes_on_with_the_same_bits() -> None:
    whole, resumed = ContextBaselines(min_count=2), ContextBaselines(min_count=2)
    assigned(whole, *FIRST)
    state = json.loads(json.dumps(whole.state_dict()))
    assert all(isinstance(n, int) for counts in state.values() for n in counts)
    resumed.load_state_dict(state)
    trajectories = [make_actions(pattern) for pattern in SECOND]
    for a, b in zip(whole.assign(trajectories), resumed.assign(trajectories), strict=True):
        assert a.baselines.tobytes() == b.baselines.tobytes()
    assert whole.state_dict() == resumed.state_dict()


def test_order_of_trajectories_changes_nothing() -> None:
    for running in (True, False):
        rules = [ContextBaselines(running=running, min_count=1) for _ in range(2)]
        assigned(rules[0], *FIRST)
        assigned(rules[1], *reversed(FIRST))
        assert assigned(rules[0], *SECOND) == assigned(rules[1], *reversed(SECOND))[::-1]


def test_a_context_tells_kinds_apart() -> None:
    # Two solutions in a row must not share the context of a solution and its verification.
    assert context_keys(make_actions("R-R+V+")) == ["R", "R-R", "R-R+V"]
    assert context_keys(make_actions("R-V+R+")) == ["R", "R-V", "R-V+R"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [-1, 1, 1, 1]),
        ({"double_right_verified": True}, [-1, 1, 1, 2]),
        ({"double_flipped": True}, [-1, 1, 2, 1]),
    ],
)
def test_the_two_factors_of_the_released_code(
    options: dict[str, bool], expected: list[float]
) -> None:
    rule = ContextBaselines(min_count=10, **options)
    assert assigned(rule, "R-V+R+V+") == [expected]


def test_actions_that_nobody_judged() -> None:
    trajectory = make_actions("R+").with_reward(RewardBreakdown({"rule": 1.0}))
    with pytest.raises(ValueError, match=r"problem 'R\+' are not judged: .*format = \"trials\""):
        ContextBaselines().assign([trajectory])
