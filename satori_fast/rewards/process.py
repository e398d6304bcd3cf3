# SPDX-License-Identifier: Apache-2.0
"""Process rewards: was each solution right, and did each verification say so (S2R, section 2.3).

For responses that tell solutions from verifications (`data.formats.trials`). What an action earns
against what was expected of it is `algorithms.baselines`; the reward of the final answer is
`rewards.outcome`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from satori_fast.grading import Grader
from satori_fast.types import RewardBreakdown, SegmentKind, Trajectory

RIGHT, WRONG = 1.0, -1.0


@dataclass(frozen=True, slots=True)
class ProcessReward:
    """Verdict on each action of a response, and its reward: 1 where it is right, else -1. No terms.

    A solution is right where its own boxed answer is. A verification is right where its verdict is
    the truth about the solution before it; wrong where it decides nothing, stands after another
    verification, or has no solution before it. An action that the length limit cut is wrong,
    whatever it says: it did not come to its end. Responses to problems without an answer get
    nothing.
    """

    grader: Grader

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[RewardBreakdown]:
        pairs = [
            (segment.text, trajectory.problem.answer)
            for trajectory in trajectories
            if trajectory.problem.answer is not None
            for segment in trajectory.segments
            if segment.kind is SegmentKind.SOLVE
        ]
        verdicts = (verdict.correct for verdict in self.grader.grade_many(pairs))
        return [self._judged(trajectory, verdicts) for trajectory in trajectories]

    def _judged(self, trajectory: Trajectory, verdicts: Iterator[bool]) -> RewardBreakdown:
        """verdicts: on solutions, those of this trajectory next."""
        if trajectory.problem.answer is None:
            return RewardBreakdown({})
        actions = judge_actions(trajectory, verdicts)
        rewards = np.where(actions, RIGHT, WRONG).astype(np.float32)
        return RewardBreakdown({}, segments=rewards, actions=actions)


def judge_actions(trajectory: Trajectory, solutions: Iterator[bool]) -> tuple[bool, ...]:
    """Whether each segment of a trajectory is right, by the rules of `ProcessReward`.

    solutions: whether the answer of each SOLVE segment is right, in order.
    """
    actions: list[bool] = []
    truth: bool | None = None  # of the solution that waits for a verification
    for segment in trajectory.segments:
        if segment.kind is SegmentKind.SOLVE:
            truth = next(solutions)
            actions.append(truth)
        else:
            actions.append(truth is not None and segment.verdict is truth)
            truth = None
    if trajectory.finish == "length":
        actions[-1] = False
    return tuple(actions)
