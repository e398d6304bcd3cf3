# SPDX-License-Identifier: Apache-2.0
"""Outcome rewards: was the final answer right, and did reflection help (Satori, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from satori_fast.data.prompts import answered_text
from satori_fast.grading import Grader
from satori_fast.types import Problem, RewardBreakdown, Trajectory


@dataclass(frozen=True, slots=True)
class OutcomeReward:
    """Verdict on the final answer, with the terms "rule" and "reflection"; a weight of 0 leaves a
    term out.

    What is graded is `data.prompts.answered_text`. rule_weight: factor of `right` or `wrong`, the
    rewards of the final answer: 0 and -1 in Satori, 1 and -1 in S2R. reflection_bonus: Satori's
    beta. With both weights 0 the verdict is all that is given, and a problem
    without an answer is left ungraded; otherwise it is a ValueError.
    """

    grader: Grader
    rule_weight: float = 1.0
    reflection_bonus: float = 0.5
    right: float = 0.0
    wrong: float = -1.0

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[RewardBreakdown]:
        graded = [n for n, trajectory in enumerate(trajectories) if self._is_gradable(trajectory)]
        pairs = [(self._answered(trajectories[n]), _gold(trajectories[n])) for n in graded]
        verdicts = self.grader.grade_many(pairs)
        parts = [RewardBreakdown({})] * len(trajectories)
        for number, verdict in zip(graded, verdicts, strict=True):
            part = self.of_verdict(trajectories[number].problem, verdict.correct)
            parts[number] = replace(part, answered=verdict.reason != "no_answer")
        return parts

    def of_verdict(self, problem: Problem, correct: bool) -> RewardBreakdown:
        """The terms of a verdict. With the defaults they are Satori's reward without the preference
        term, ``c - 1 + bonus``.

        >>> from satori_fast.grading import GradingPool
        >>> from satori_fast.types import Prefix
        >>> start = Prefix("5<|reflect|>", "restart", correct=False)
        >>> problem = Problem("1", "2 + 2", "4", start)
        >>> reward = OutcomeReward(GradingPool(0)).of_verdict(problem, True)
        >>> reward.terms, reward.total
        ({'rule': 0.0, 'reflection': 0.5}, 0.5)
        """
        terms: dict[str, float] = {}
        if self.rule_weight:
            terms["rule"] = self.rule_weight * (self.right if correct else self.wrong)
        if self.reflection_bonus:
            terms["reflection"] = reflection_bonus(problem, correct, scale=self.reflection_bonus)
        return RewardBreakdown(terms, correct=correct)

    def _answered(self, trajectory: Trajectory) -> str:
        """What is graded; nothing, where the length limit cut a response that marks no answer."""
        is_cut = trajectory.finish == "length" and not self.grader.finder.is_marked
        return "" if is_cut else answered_text(trajectory)

    def _is_gradable(self, trajectory: Trajectory) -> bool:
        if trajectory.problem.answer is not None:
            return True
        if self.rule_weight or self.reflection_bonus:
            raise ValueError(
                f"problem {trajectory.problem.problem_id!r} has no answer to grade against: give "
                "it one, or set reward.rule_weight = 0 and reward.reflection_bonus = 0"
            )
        return False


def _gold(trajectory: Trajectory) -> str:
    gold = trajectory.problem.answer
    assert gold is not None
    return gold


def reflection_bonus(problem: Problem, correct: bool, *, scale: float) -> float:
    """Satori's reflection bonus, nonzero only for a restart.

    +scale when a restart from a wrong solution (D-) ends right, -scale when one from a right
    solution (D+) ends wrong, else 0.

    >>> from satori_fast.types import Prefix
    >>> wrong_start = Problem("1", "2 + 2", "4", Prefix("5<|reflect|>", "restart", correct=False))
    >>> reflection_bonus(wrong_start, True, scale=0.5)
    0.5
    """
    if problem.prefix is None or problem.prefix.kind != "restart":
        return 0.0
    if problem.prefix.correct is False and correct:
        return scale
    if problem.prefix.correct is True and not correct:
        return -scale
    return 0.0
