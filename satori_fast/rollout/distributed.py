# SPDX-License-Identifier: Apache-2.0
"""Requests shared out over data-parallel ranks: an engine around the one of each rank.

Seeds belong to requests, and every rank gets every completion: so a run of several processes takes
the same samples, and then the same steps, as a run of one. Not for what an engine does when it dies
(`restarting`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Protocol, TypeVar

from satori_fast.data.prompts import PromptRenderer
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rollout.engine import Completion, Engine, Request, SamplingParams
from satori_fast.rollout.weight_sync import WeightSink

Item = TypeVar("Item")


class Ranks(Protocol):
    """The part of `backbone.parallel.ParallelState` that an engine needs."""

    @property
    def data_size(self) -> int: ...

    @property
    def data_rank(self) -> int: ...

    def all_gather(self, value: Item) -> list[Item]: ...

    def from_main(self, action: Callable[[], Item]) -> Item: ...

    def on_main(self, action: Callable[[], object]) -> None: ...

    def any_rank(self, flag: bool) -> bool: ...


class WrappedEngine(Engine):
    """An engine around another: everything but `generate` is the inner one's."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner

    @property
    def renderer(self) -> PromptRenderer:
        return self.inner.renderer

    @renderer.setter
    def renderer(self, renderer: PromptRenderer) -> None:
        self.inner.renderer = renderer

    @property
    def max_seqlen(self) -> int:
        return self.inner.max_seqlen

    @property
    def policy_version(self) -> int:
        return self.inner.policy_version

    @policy_version.setter
    def policy_version(self, version: int) -> None:
        self.inner.policy_version = version

    @property
    def num_passes(self) -> int:
        return self.inner.num_passes

    @property
    def is_shared(self) -> bool:
        return self.inner.is_shared

    @property
    def can_restart(self) -> bool:
        return self.inner.can_restart

    def weight_sink(self) -> WeightSink | None:
        return self.inner.weight_sink()

    def restart(self) -> None:
        self.inner.restart()

    def sleep(self) -> None:
        self.inner.sleep()

    def wake(self) -> None:
        self.inner.wake()

    def close(self) -> None:
        self.inner.close()


class Distributed(WrappedEngine):
    """An engine that shares requests out over data-parallel ranks; all get all completions.

    Where every process has the same engine (`Engine.is_shared`), the main one alone asks it.
    Requests with the same prompt stay together, so that an engine computes its keys and values
    once. Span "sample" is a rank's own part: what it leaves of the span around it is waiting for
    the others.
    """

    def __init__(self, inner: Engine, ranks: Ranks, spans: SpanRecorder) -> None:
        super().__init__(inner)
        self._ranks = ranks
        self._spans = spans

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion); as they finish on one rank, in order on several."""
        ranks = self._ranks
        if self.inner.is_shared:
            yield from ranks.from_main(lambda: list(self.inner.generate(requests, sampling)))
            return
        if ranks.data_size == 1:
            yield from self.inner.generate(requests, sampling)
            return
        own = shares(requests, ranks.data_size)[ranks.data_rank]
        with self._spans.span("sample"):
            done = {
                own[position]: completion
                for position, completion in self.inner.generate(
                    [requests[i] for i in own], sampling
                )
            }
        everything: dict[int, Completion] = {}
        for part in ranks.all_gather(done):
            everything |= part
        yield from sorted(everything.items())


def shares(requests: Sequence[Request], num_ranks: int) -> list[list[int]]:
    """Indices of the requests of each rank: prompts are dealt out in turn, siblings together."""
    dealt: list[list[int]] = [[] for _ in range(num_ranks)]
    prompts = groupby(range(len(requests)), key=lambda i: requests[i].prompt_ids)
    for number, (_, siblings) in enumerate(prompts):
        dealt[number % num_ranks] += siblings
    return dealt
