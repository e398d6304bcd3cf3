# SPDX-License-Identifier: Apache-2.0
"""Grading shared out over data-parallel ranks, with the same verdicts on every rank.

Rewards must not differ between processes that then step together, also where a time limit decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from satori_fast.grading import AnswerFinder, GradingPool, Reason, Verdict
from satori_fast.rollout.distributed import Ranks


class SharedGrader:
    """A `GradingPool` on every data-parallel rank, each with its share of the answers.

    reasons: of all verdicts since `take_figures`.
    """

    def __init__(self, pool: GradingPool, ranks: Ranks) -> None:
        self.pool = pool
        self.reasons: Counter[Reason] = Counter()
        self._ranks = ranks

    @property
    def finder(self) -> AnswerFinder:
        """The place of the answer in a response."""
        return self.pool.finder

    def grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        """A verdict for each (response, gold), in order."""
        verdicts = self._grade_many(pairs)
        self.reasons.update(verdict.reason for verdict in verdicts)
        return verdicts

    def take_figures(self) -> dict[str, float]:
        """Counts of verdicts since the last time, under metric names: a grader that kills answers
        must be seen, and a response without a box is another fault than a wrong answer."""
        reasons, self.reasons = self.reasons, Counter()
        return {
            "grading/graded": float(reasons.total()),
            "grading/no_answer": float(reasons["no_answer"]),
            "grading/timeouts": float(reasons["timeout"]),
            "grading/crashes": float(reasons["crash"]),
        }

    def _grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        size, rank = self._ranks.data_size, self._ranks.data_rank
        if size == 1:
            return self.pool.grade_many(pairs)
        everything = list(pairs)
        parts = self._ranks.all_gather(self.pool.grade_many(everything[rank::size]))
        return [parts[i % size][i // size] for i in range(len(everything))]
