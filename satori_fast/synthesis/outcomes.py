# SPDX-License-Identifier: Apache-2.0
"""Outcomes of problems in the hands of agents, and many problems at work at once.

Problems are worked on side by side, each from its beginning to its end: whoever waits for a
language model lets the others go on. What is done with a problem is `pipeline` (Satori's
demonstrations) and `trials` (S2R's).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from satori_fast.synthesis.agents import Unusable
from satori_fast.types import Demonstration, Problem

DROPPED = "dropped/"
T = TypeVar("T")


@dataclass(slots=True)
class Outcome:
    """Outcome of one problem.

    counts: solutions by grade ("solutions/right"), trajectories by type ("trajectories/II-I"),
    and everything that was dropped, by reason ("dropped/critic_no_step").
    faults: one reply for each reason, to look at.
    """

    problem: Problem
    demonstrations: list[Demonstration] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)

    def drop(self, fault: Unusable) -> None:
        """Count something that could not be used, and keep the first example of its reason."""
        self.counts[DROPPED + fault.reason] += 1
        self.faults.setdefault(fault.reason, fault.text)


async def outcomes_in_order(
    work: Callable[[T], Coroutine[Any, Any, Outcome]],
    items: Iterable[T],
    *,
    num_concurrent: int = 1,
) -> AsyncGenerator[Outcome, None]:
    """Yield what comes of each item, in their order, `num_concurrent` at work at once."""
    waiting = iter(items)
    running: dict[asyncio.Task[Outcome], int] = {}
    finished: dict[int, Outcome] = {}
    num_begun = num_yielded = 0
    try:
        while True:
            for item in waiting:
                running[asyncio.ensure_future(work(item))] = num_begun
                num_begun += 1
                if len(running) == num_concurrent:
                    break
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                finished[running.pop(task)] = task.result()
            while num_yielded in finished:
                yield finished.pop(num_yielded)
                num_yielded += 1
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def problem_stream(seed: int, problem_id: str) -> np.random.Generator:
    """The random stream of a problem: its own, so that a killed run can go on from any problem."""
    return np.random.default_rng([seed, *problem_id.encode()])
