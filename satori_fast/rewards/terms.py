# SPDX-License-Identifier: Apache-2.0
"""Rewards as named terms: what each source gives, joined, and groups that teach nothing dropped.

A source of reward is a `Reward`: grading (`outcome`), a reward model (`preference`), a user's
function (`user`). Which of them a run uses, and in which order, is `stages.rewards`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from satori_fast.types import RewardBreakdown, Trajectory, groups_of

# A source of reward: its own terms for each trajectory, in their order. What the sources before it
# gave is in `Trajectory.reward`.
Reward = Callable[[Sequence[Trajectory]], Sequence[RewardBreakdown]]


def score(trajectories: Sequence[Trajectory], rewards: Sequence[Reward]) -> list[Trajectory]:
    """The same trajectories with the terms of all `rewards`, added in their order.

    A reward that a trajectory had before is replaced. Each source sees what the ones before it
    gave: a bonus for short right answers reads ``trajectory.reward.correct``. Raises ValueError
    where two sources give a term of one name.
    """
    scored = [trajectory.with_reward(RewardBreakdown({})) for trajectory in trajectories]
    if not scored:
        return scored
    for reward in rewards:
        parts = reward(scored)
        scored = [_with_part(t, part) for t, part in zip(scored, parts, strict=True)]
    return scored


def _with_part(trajectory: Trajectory, part: RewardBreakdown) -> Trajectory:
    before = trajectory.reward
    assert before is not None
    if twice := before.terms.keys() & part.terms.keys():
        raise ValueError(
            f"two rewards give a term {min(twice)!r}: give one of them another name "
            "(reward.functions: name)"
        )
    assert part.segments is None or part.segments.shape == (len(trajectory.segments),)
    assert before.correct is None or part.correct is None, "two rewards grade the final answer"
    segments = before.segments
    if part.segments is not None:
        own = part.segments.astype(np.float32)
        segments = own if segments is None else segments + own
    correct = before.correct if part.correct is None else part.correct
    actions = before.actions if part.actions is None else part.actions
    terms = {**before.terms, **part.terms}
    answered = before.answered if part.answered is None else part.answered
    return trajectory.with_reward(RewardBreakdown(terms, segments, correct, actions, answered))


def drop_uninformative_groups(
    trajectories: Sequence[Trajectory], min_std: float
) -> list[Trajectory]:
    """Keep the groups whose total rewards have a standard deviation above `min_std`.

    In a group where every sibling earned the same, a group baseline leaves no signal.
    """
    totals = np.array([t.reward.total for t in trajectories if t.reward is not None])
    assert len(totals) == len(trajectories)
    groups = groups_of(trajectories)
    kept = {index for group in groups if np.std(totals[group]) > min_std for index in group}
    return [t for index, t in enumerate(trajectories) if index in kept]
