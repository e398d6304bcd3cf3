# SPDX-License-Identifier: Apache-2.0
"""Mixture of the problems of a step: whole ones, D+ and D- restarts, in fixed shares.

Every step mixes all origins: batches of one origin let a policy answer the origin instead of the
problem. Each origin keeps its own cursor, so a resumed run takes the same problems.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from satori_fast.data.cursor import ProblemCursor
from satori_fast.types import Problem

logger = logging.getLogger(__name__)

Origin = str
ORIGINS = ORIGINAL, CORRECT, INCORRECT = "original", "restart_correct", "restart_incorrect"


def origin_of(problem: Problem) -> Origin:
    """Buffer that a problem belongs to."""
    if problem.prefix is None or problem.prefix.kind != "restart":
        return ORIGINAL
    return CORRECT if problem.prefix.correct else INCORRECT


class ProblemMixture:
    """Draws problems from several origins with fixed shares.

    weights: relative share of each origin. An origin without problems gives its share to the
    others, and says so. Raises ValueError when nothing is left to draw from.
    """

    def __init__(
        self,
        problems: Mapping[Origin, Sequence[Problem]],
        weights: Mapping[Origin, float],
        *,
        seed: int,
    ) -> None:
        wanted = {origin: weight for origin, weight in weights.items() if weight > 0}
        empty = [origin for origin in wanted if not problems.get(origin)]
        for origin in empty:
            logger.warning("no %s problem: its share goes to the other origins", origin)
        self._weights = {o: w for o, w in wanted.items() if o not in empty}
        if not self._weights:
            raise ValueError("no problem to train on: check data.source and the restart weights")
        self._cursors = {
            origin: ProblemCursor(problems[origin], seed=seed + number)
            for number, origin in enumerate(self._weights)
        }
        self._taken = dict.fromkeys(self._weights, 0)

    def take(self, num_problems: int) -> list[Problem]:
        """The next problems, origins in the order of the weights.

        Over many calls the counts follow the shares exactly: each origin is owed its share of all
        that was ever taken, and what rounding left over goes to whom most is owed.
        """
        total = sum(self._taken.values()) + num_problems
        scale = total / sum(self._weights.values())
        owed = np.array([w * scale - self._taken[o] for o, w in self._weights.items()])
        counts = np.maximum(np.floor(owed), 0).astype(int)
        for i in np.argsort(-(owed - counts), kind="stable")[: num_problems - counts.sum()]:
            counts[i] += 1
        taken: list[Problem] = []
        for origin, count in zip(self._weights, counts, strict=True):
            taken += self._cursors[origin].take(int(count))
            self._taken[origin] += int(count)
        return taken

    def state_dict(self) -> dict[str, Any]:
        """JSON-able position of every cursor."""
        cursors = {origin: cursor.state_dict() for origin, cursor in self._cursors.items()}
        return {"cursors": cursors, "taken": dict(self._taken)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises ValueError for another set of origins."""
        if set(state["cursors"]) != set(self._cursors):
            raise ValueError(
                f"the checkpoint draws from {sorted(state['cursors'])}, this run from "
                f"{sorted(self._cursors)}: the restart buffer changed"
            )
        for origin, cursor in self._cursors.items():
            cursor.load_state_dict(state["cursors"][origin])
        self._taken = dict(state["taken"])
