# SPDX-License-Identifier: Apache-2.0
"""Grading beside decoding: responses are judged in a thread while others are sampled.

Comparing runs in the processes of the grading pool, so the thread takes little of the sampler's
time. What is judged, and how, is `results` and `judging`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from satori_fast.evaluation.benchmark_sets import BenchmarkSet
from satori_fast.evaluation.code_answers import CallRunner
from satori_fast.evaluation.judging import Judge
from satori_fast.evaluation.responses import Response
from satori_fast.evaluation.results import Judged, judge_responses
from satori_fast.grading import GradingPool

_JUDGED_TOGETHER = 64  # responses of one benchmark


class Judges:
    """Judges responses to several benchmarks, as they come.

    unreadable: why golds of some problems cannot be read (`golds`). Use `result` once, at the end,
    and `close` in any case.
    """

    def __init__(
        self,
        sets: Sequence[BenchmarkSet],
        pool: GradingPool,
        unreadable: Mapping[str, str],
        runner: CallRunner,
    ) -> None:
        self._sets = {each.benchmark.name: each for each in sets}
        self._judges = {
            name: Judge(each, pool, unreadable, runner) for name, each in self._sets.items()
        }
        self._waiting: defaultdict[str, list[Response]] = defaultdict(list)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judging")
        self._futures: list[tuple[str, Future[list[Judged]]]] = []

    def add(self, responses: Iterable[Response]) -> None:
        """Have responses judged; they are on disk."""
        for response in responses:
            waiting = self._waiting[response.benchmark]
            waiting.append(response)
            if len(waiting) >= _JUDGED_TOGETHER:
                self._submit(response.benchmark)

    def result(self) -> dict[str, list[Judged]]:
        """All that was judged, by benchmark; waits for it."""
        for name in list(self._waiting):
            self._submit(name)
        judged: dict[str, list[Judged]] = {name: [] for name in self._sets}
        for name, future in self._futures:
            judged[name] += future.result()
        for own in judged.values():
            own.sort(key=lambda each: (each.item.row, each.response.sample))
        return judged

    def close(self) -> None:
        """Drop what is not judged."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _submit(self, name: str) -> None:
        responses = self._waiting.pop(name, [])
        if responses:
            future = self._thread.submit(
                judge_responses, self._sets[name], responses, self._judges[name]
            )
            self._futures.append((name, future))
