# SPDX-License-Identifier: Apache-2.0
"""Many answers graded in processes that can be killed.

Sampled answers can keep a computer algebra system busy for ever (``9^{9^{9^{9}}}``). What counts as
right is `verdict`; a process and its time limit are `worker`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from satori_fast.grading.finders import BOXED, AnswerFinder
from satori_fast.grading.lenient import lenient_cheaply, lenient_equal
from satori_fast.grading.spelling import clean, number
from satori_fast.grading.verdict import Verdict, decided_cheaply, equivalent, gold_fault, verdict_of
from satori_fast.grading.worker import Worker


def _completed(verdict: Verdict) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future


class GradingPool:
    """Grades responses in `num_workers` killable processes, from any thread of the caller.

    timeout_s: CPU seconds per answer (CPU, so that a busy machine does not turn right answers into
        wrong ones) and ten times that in wall-clock seconds. A worker that exceeds it is killed and
        started again; the answer is wrong with reason "timeout".
    finder: where the answer of a response stands.
    num_workers = 0 grades in the caller, without a time limit: for tests and trusted text.

    Processes start at the first answer that needs one. Verdicts are cached by (answer, gold), at
    most `cache_size` of them; crashes are tried again. `graded`, `no_answers`, `timeouts` and
    `crashes` count responses, so their ratios are shares; `cache_hits` counts answers met again.
    """

    def __init__(
        self,
        num_workers: int = 1,
        timeout_s: float = 5.0,
        *,
        cache_size: int = 65_536,
        finder: AnswerFinder = BOXED,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, got {timeout_s}")
        self.timeout_s = timeout_s
        self.finder = finder
        self.graded = self.no_answers = self.timeouts = self.crashes = self.cache_hits = 0
        self._cache_size = cache_size
        self._cache: OrderedDict[tuple[str, str], Future[Verdict]] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self._workers = [Worker(timeout_s) for _ in range(num_workers)]
        self._idle = list(self._workers)  # pop and append are atomic
        # One thread per worker waits for its reply; the thread pool gives futures and laziness.
        self._threads = (
            ThreadPoolExecutor(num_workers, thread_name_prefix="grading") if num_workers else None
        )

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, response: str, gold: str) -> Future[Verdict]:
        """Start grading `response`; the result() of the future is its `Verdict`."""
        if self._closed:
            raise ValueError("the grading pool is closed: grade inside its `with` block")
        answer = self.finder.find(response)
        if answer is None:
            graded = _completed(Verdict(False, None, "no_answer"))
        elif (same := decided_cheaply(answer, gold)) is not None:
            graded = _completed(verdict_of(answer, same))
        else:
            graded = self._look_up(answer, gold)
        # Answers in flight share one grading; each response still has a future of its own, which
        # completes after it has been counted.
        future: Future[Verdict] = Future()
        graded.add_done_callback(lambda done: self._finish(done, future))
        return future

    def grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of (response, gold) pairs, in order."""
        futures = [self.submit(response, gold) for response, gold in pairs]
        return [future.result() for future in futures]

    def compare_leniently(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether each (answer, gold) pair is equal to `lenient_equal`; not where it takes too
        long. Answers are bare, without a response around them."""
        if self._closed:
            raise ValueError("the grading pool is closed: compare answers inside its `with` block")
        if self._threads is None:
            return [lenient_equal(answer, gold) for answer, gold in pairs]
        decided = [
            cheap
            if (cheap := lenient_cheaply(answer, gold)) is not None
            else self._threads.submit(self._compare_in_worker, answer, gold)
            for answer, gold in pairs
        ]
        return [each if isinstance(each, bool) else each.result() for each in decided]

    def check_golds(self, golds: Sequence[str]) -> list[str | None]:
        """Fault of each gold answer that cannot be graded, in a few words; None for one that can.

        Runs in the workers under the time limit: `check_gold` would hang on a tower of powers.
        """
        if self._closed:
            raise ValueError(
                "the grading pool is closed: check gold answers inside its `with` block"
            )
        if self._threads is None:
            return [gold_fault(gold) for gold in golds]
        checked = [
            None if number(clean(gold)) is not None else self._threads.submit(self._check, gold)
            for gold in golds
        ]
        return [future.result() if future is not None else None for future in checked]

    def close(self) -> None:
        """Kill the workers. What was submitted and is not graded raises CancelledError."""
        self._closed = True
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            for worker in self._workers:
                worker.retire()
            self._threads.shutdown(wait=True)

    def _look_up(self, answer: str, gold: str) -> Future[Verdict]:
        with self._lock:
            future = self._cache.get((answer, gold))
            if future is not None:
                self._cache.move_to_end((answer, gold))
                self.cache_hits += 1
                return future
            if self._threads is not None:
                future = self._threads.submit(self._grade_in_worker, answer, gold)
            else:
                future = _completed(verdict_of(answer, equivalent(answer, gold)))
            self._cache[answer, gold] = future
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
            return future

    def _grade_in_worker(self, answer: str, gold: str) -> Verdict:
        worker = self._idle.pop()
        try:
            reason = worker.grade(answer, gold)
        finally:
            self._idle.append(worker)
        if reason == "crash":
            with self._lock:
                self._cache.pop((answer, gold), None)
        return Verdict(reason == "match", answer, reason)

    def _compare_in_worker(self, answer: str, gold: str) -> bool:
        worker = self._idle.pop()
        try:
            return worker.grade(answer, gold, lenient=True) == "match"
        finally:
            self._idle.append(worker)

    def _check(self, gold: str) -> str | None:
        worker = self._idle.pop()
        try:
            fault = worker.check(gold)
        finally:
            self._idle.append(worker)
        if fault == "timeout":
            return f"takes longer than {self.timeout_s:g} s to read"
        if fault == "crash":
            return "its reader crashed: too large or too deep"
        return fault or None

    def _finish(self, graded: Future[Verdict], future: Future[Verdict]) -> None:
        try:
            verdict = graded.result()
        except Exception as error:
            future.set_exception(error)
            return
        with self._lock:
            self.graded += 1
            self.no_answers += verdict.reason == "no_answer"
            self.timeouts += verdict.reason == "timeout"
            self.crashes += verdict.reason == "crash"
        future.set_result(verdict)
