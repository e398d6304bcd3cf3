# SPDX-License-Identifier: Apache-2.0
"""Grading shared out over data-parallel ranks, with the same verdicts on every rank.

Rewards must not differ between processes that then step together, also where a time limit decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from satori_fast.grading import GradingPool, Reason, Verdict
from satori_fast.rollout.distributed import Ranks


class SharedGrader:
    """A `GradingPool` on every data-parallel rank, each with its share of the answers.

    reasons: of the verdicts of the last call.
    """

    def __init__(self, pool: GradingPool, ranks: Ranks) -> None:
        self.pool = pool
        self.reasons: Counter[Reason] = Counter()
        self._ranks = ranks

    def grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        """A verdict for each (response, gold), in order."""
        verdicts = self._grade_many(pairs)
        self.reasons = Counter(verdict.reason for verdict in verdicts)
        return verdicts

    def _grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        size, rank = self._ranks.data_size, self._ranks.data_rank
        if size == 1:
            return self.pool.grade_many(pairs)
        everything = list(pairs)
        parts = self._ranks.all_gather(self.pool.grade_many(everything[rank::size]))
        return [parts[i % size][i // size] for i in range(len(everything))]
