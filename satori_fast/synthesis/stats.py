# SPDX-License-Identifier: Apache-2.0
"""Statistics of a synthesis: what was made, what was dropped and why, what was asked and spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from satori_fast.synthesis.journal import Journal
from satori_fast.synthesis.outcomes import DROPPED, Outcome
from satori_fast.synthesis.pipeline import TRAJECTORY_TYPES


class SynthesisStats:
    """Sums over outcomes and replies.

    prices: per million tokens of prompts and of replies, for each role that is a language model.
    journal: None where there is none. types: of trajectories, in their order; none where agents
    make no demonstrations. stage: whose metrics they are.
    """

    def __init__(
        self,
        prices: Mapping[str, tuple[float, float]],
        journal: Journal | None,
        *,
        types: Sequence[str] = TRAJECTORY_TYPES,
        stage: str = "synthesize",
    ) -> None:
        self.types, self.stage = tuple(types), stage
        self.counts: Counter[str] = Counter()
        self.demonstrations: Counter[str] = Counter(dict.fromkeys(types, 0))
        # One reply for each reason to drop one.
        self.faults: dict[str, str] = {}
        self._prices, self._journal = prices, journal

    def add(self, outcome: Outcome) -> None:
        self.counts.update(outcome.counts)
        self.demonstrations.update(d.trajectory_type for d in outcome.demonstrations)
        self.faults = {**outcome.faults, **self.faults}

    def dropped(self) -> dict[str, int]:
        """Number of dropped solutions by reason, the commonest first."""
        return {
            name.removeprefix(DROPPED): number
            for name, number in self.counts.most_common()
            if name.startswith(DROPPED) and number
        }

    def spent(self) -> dict[str, dict[str, float]]:
        """Requests, retries, tokens and cost of each role, earlier sessions included."""
        if self._journal is None:
            return {}
        usage = {role: self._journal.usage[role] for role in self._prices}
        return {
            role: {**asdict(used), "cost": used.cost(*self._prices[role])}
            for role, used in usage.items()
        }

    def headline(self) -> dict[str, float]:
        """The few numbers beside a progress bar."""
        values: dict[str, float] = {"made": self.demonstrations.total()} if self.types else {}
        values["dropped"] = sum(self.dropped().values())
        spent = self.spent().values()
        if spent:
            values["requests"] = int(sum(numbers["requests"] for numbers in spent))
            values["cost"] = sum(numbers["cost"] for numbers in spent)
        return values

    def metrics(self) -> dict[str, float]:
        """Every number under its full name."""
        made = {"demonstrations": self.demonstrations.total()} if self.types else {}
        values: dict[str, float] = {**made}
        values |= {f"type_{kind}": number for kind, number in self.demonstrations.items()}
        values |= self.counts
        for role, numbers in self.spent().items():
            values |= {f"{role}/{name}": number for name, number in numbers.items()}
        return {f"{self.stage}/{name}": float(number) for name, number in values.items()}
