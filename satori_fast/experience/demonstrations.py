# SPDX-License-Identifier: Apache-2.0
"""Experience that somebody wrote: demonstrations to imitate, with nothing to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from satori_fast.data.cursor import ProblemCursor
from satori_fast.rollout.restarting import ServedWeights
from satori_fast.types import Experience, Trajectory


class DemonstrationSource:
    """Hands out demonstrations, each once per epoch."""

    def __init__(self, demonstrations: Sequence[Trajectory], *, batch_size: int, seed: int) -> None:
        self._cursor = ProblemCursor(demonstrations, seed=seed)
        self._batch_size = batch_size

    def next(self, step: int) -> Experience:
        """The next demonstrations, without credit."""
        return Experience(tuple(self._cursor.take(self._batch_size)))

    def sync(self, weights: ServedWeights, *, version: int) -> None:
        """Nothing: nobody samples."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: where the cursor stands."""
        return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._cursor.load_state_dict(state)
