# SPDX-License-Identifier: Apache-2.0
"""The sum of the reward terms, term by term, and the filter of groups that teach nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from satori_fast.data.prompts import full_response
from satori_fast.grading import Grader, Verdict
from satori_fast.rewards.outcome import reflection_bonus, rule_reward
from satori_fast.types import RewardBreakdown, Trajectory


@dataclass(frozen=True, slots=True)
class RewardTerms:
    """Which terms count and how much; 0 switches a term off.

    rule:             factor of the rule reward.
    reflection_bonus: Satori's beta.
    preference:       factor of the preference reward, which needs a reward model; the paper: 1.
    """

    rule: float = 1.0
    reflection_bonus: float = 0.5
    preference: float = 0.0


def score(
    trajectories: Sequence[Trajectory],
    terms: RewardTerms,
    pool: Grader,
    *,
    preferences: Sequence[float] | None = None,
) -> list[Trajectory]:
    """The same trajectories with their `reward`. The whole solution is graded, prefix included.

    preferences: `preference_rewards` of the trajectories; None where the term is off.
    """
    if preferences is None:
        if terms.preference:
            raise ValueError("the preference reward is on, but there are no preferences to weigh")
        preferences = [0.0] * len(trajectories)
    verdicts = grade_trajectories(trajectories, pool)
    return [
        trajectory.with_reward(breakdown(trajectory, verdict.correct, terms, preference=preference))
        for trajectory, verdict, preference in zip(trajectories, verdicts, preferences, strict=True)
    ]


def grade_trajectories(trajectories: Sequence[Trajectory], pool: Grader) -> list[Verdict]:
    """A verdict for each trajectory. Raises ValueError for a problem without an answer."""
    pairs: list[tuple[str, str]] = []
    for trajectory in trajectories:
        gold = trajectory.problem.answer
        if gold is None:
            raise ValueError(
                f"problem {trajectory.problem.problem_id!r} has no answer: it cannot be rewarded"
            )
        pairs.append((full_response(trajectory), gold))
    return pool.grade_many(pairs)


def breakdown(
    trajectory: Trajectory, correct: bool, terms: RewardTerms, *, preference: float = 0.0
) -> RewardBreakdown:
    """Satori's reward with a weight for each term; all weights are 1 in the paper:

    r = rule (c - 1) + bonus + preference sigmoid(score).

    >>> from satori_fast.types import Prefix, Problem, Segment, SegmentKind
    >>> wrong_start = Problem("1", "2 + 2", "4", Prefix("5<|reflect|>", "restart", correct=False))
    >>> whole = (Segment(SegmentKind.WHOLE, 0, 1, "4"),)
    >>> mended = Trajectory(wrong_start, 0, np.zeros(3), 2, np.zeros(1), 0, "stop", whole)
    >>> breakdown(mended, True, RewardTerms(preference=1.0), preference=0.75).total
    1.25
    """
    rule = terms.rule * rule_reward(correct)
    bonus = reflection_bonus(trajectory.problem, correct, scale=terms.reflection_bonus)
    weighted = terms.preference * preference
    return RewardBreakdown(
        rule=rule,
        reflection=bonus,
        preference=weighted,
        similarity=0.0,
        segments=np.zeros(len(trajectory.segments), dtype=np.float32),
        total=rule + bonus + weighted,
        correct=correct,
    )


def drop_uninformative_groups(
    trajectories: Sequence[Trajectory], min_std: float
) -> list[Trajectory]:
    """Keep the groups whose total rewards have a standard deviation above `min_std`.

    In a group where every sibling earned the same, a group baseline leaves no signal.
    """
    totals: dict[int, list[float]] = {}
    for trajectory in trajectories:
        assert trajectory.reward is not None
        totals.setdefault(trajectory.group_id, []).append(trajectory.reward.total)
    informative = {group for group, values in totals.items() if np.std(values) > min_std}
    return [t for t in trajectories if t.group_id in informative]
