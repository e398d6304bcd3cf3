# SPDX-License-Identifier: Apache-2.0
"""Rewards computed while other responses are still being sampled.

A reward that looks at one response at a time need not wait for the slowest of a step: a thread
computes it as soon as the response is whole. The values are those of the reward itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np

from satori_fast.rewards.terms import Reward
from satori_fast.types import RewardBreakdown, Trajectory


@dataclass(frozen=True, slots=True)
class _Begun:
    """A response at work. tokens: its own array, by which it is known; kept, so that no other array
    can take its place."""

    tokens: np.ndarray
    value: Future[Sequence[RewardBreakdown]]


@dataclass(frozen=True)
class ScoredAhead:
    """A reward of single responses that can be begun before it is asked for. Implements `Reward`.

    reward: gives the terms of a response whatever others are asked for beside it.
    timed:  times what the asker still waits for.

    An error of the reward is raised when the value is asked for.
    """

    reward: Reward
    timed: Callable[[], AbstractContextManager[object]] = nullcontext
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="reward")
    )
    _begun: dict[int, _Begun] = field(default_factory=dict[int, _Begun])

    def begin(self, trajectory: Trajectory) -> None:
        """Compute the reward of a response that is whole, in the thread."""
        value = self._thread.submit(self.reward, [trajectory])
        self._begun[id(trajectory.tokens)] = _Begun(trajectory.tokens, value)

    def __call__(self, trajectories: Sequence[Trajectory]) -> Sequence[RewardBreakdown]:
        """The reward of each response; those not begun are computed now. What else was begun is
        forgotten."""
        with self.timed():
            begun = [self._begun.get(id(t.tokens)) for t in trajectories]
            self._begun.clear()
            rest = [t for t, work in zip(trajectories, begun, strict=True) if work is None]
            late = iter(self.reward(rest) if rest else ())
            return [next(late) if work is None else work.value.result()[0] for work in begun]
