# SPDX-License-Identifier: Apache-2.0
"""Final answers: finding them in a response and deciding whether they equal the gold answer.

This is the only grader: training rewards and evaluation call the same functions. The answer is the
content of the last ``\\boxed{}`` of the whole response; there is no fallback to the last number.

Two cheap tests (the same text, the same plain number) settle most answers in the caller. The others
are read form by form (`grading_forms`, `grading_equality`), their expressions by math-verify's
parser (`grading_algebra`); `grading_spelling` brings both sides to one spelling first.

Sampled answers can keep a computer algebra system busy for ever (``9^{9^{9^{9}}}``), so
`GradingPool` grades in killable processes (`grading_worker`).

Not here: rewards (`rewards.outcome`) and running code that a model wrote (`evaluation.sandbox`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

from satori_fast.grading_algebra import UnreadableError
from satori_fast.grading_boxes import extract_answer, extract_answers, standing_answers
from satori_fast.grading_equality import check_readable, same_answer
from satori_fast.grading_spelling import clean, key, number
from satori_fast.grading_worker import Worker

__all__ = [
    "Grader",
    "GradingPool",
    "Verdict",
    "check_gold",
    "equivalent",
    "extract_answer",
    "extract_answers",
    "grade",
    "standing_answers",
]

Reason = Literal["match", "mismatch", "no_answer", "timeout", "crash"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The grade of one response.

    extracted: content of the last box, None when there is none.
    reason:    only "match" is right; "timeout" and "crash": the grading had to be killed, or died.
    """

    correct: bool
    extracted: str | None
    reason: Reason


class Grader(Protocol):
    """Grades many responses; `GradingPool` is one."""

    def grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]: ...


# An answer that is much longer than the gold one is wrong: nobody writes it, and reading it costs
# seconds ("1,1,1,..." to the end of the response).
_SHORT_ANSWER, _LONGER_THAN_GOLD = 1_000, 4


def _decide(answer: str, gold: str) -> bool | None:
    """Equality where it is cheap to see; None where the answers must be read."""
    if not gold.strip() or not answer.strip():
        return False
    if len(answer) > _SHORT_ANSWER + _LONGER_THAN_GOLD * len(gold):
        return False
    answer, gold = clean(answer), clean(gold)
    if not gold or not answer:
        return False
    if key(answer) == key(gold):
        return True
    answer_number, gold_number = number(answer), number(gold)
    if answer_number is not None and gold_number is not None:
        return answer_number == gold_number
    return None


@lru_cache(maxsize=65_536)
def equivalent(answer: str, gold: str) -> bool:
    """Does `answer` equal `gold`? Both are bare answers, without box or dollar signs (allowed).

    Runs in the caller, without a time limit: use `GradingPool` for answers that a model wrote.
    """
    decided = _decide(answer, gold)
    return same_answer(clean(answer), clean(gold)) if decided is None else decided


def check_gold(gold: str) -> None:
    """Raise ValueError unless `gold` can be graded: a plain number, plain words or an expression.

    Meant for load time: an answer that cannot be read would count every response as wrong. Runs in
    the caller, without a time limit: `GradingPool.check_golds` for many.
    """
    fault = gold_fault(gold)
    if fault is not None:
        raise ValueError(f"the gold answer {gold[:200]!r} {fault}")


def gold_fault(gold: str) -> str | None:
    """Why `gold` cannot be graded, None where it can."""
    cleaned = clean(gold)
    if not cleaned:
        return "is empty"
    try:
        check_readable(cleaned)
    except UnreadableError:
        return "cannot be read as an expression"
    except RecursionError:
        return "is too deep to read"
    return None


def grade(response: str, gold: str) -> Verdict:
    """Grade a whole response in the caller, without a time limit (see `GradingPool`)."""
    answer = extract_answer(response)
    if answer is None:
        return Verdict(False, None, "no_answer")
    return _verdict(answer, equivalent(answer, gold))


def _verdict(answer: str, same: bool) -> Verdict:
    return Verdict(same, answer, "match" if same else "mismatch")


def _completed(verdict: Verdict) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future


class GradingPool:
    """Grades responses in `num_workers` killable processes, from any thread of the caller.

    timeout_s: CPU seconds per answer (CPU, so that a busy machine does not turn right answers into
        wrong ones) and ten times that in wall-clock seconds. A worker that exceeds it is killed and
        started again; the answer is wrong with reason "timeout".
    num_workers = 0 grades in the caller, without a time limit: for tests and trusted text.

    Processes start at the first answer that needs one. Verdicts are cached by (answer, gold), at
    most `cache_size` of them; crashes are tried again. `graded`, `no_answers`, `timeouts` and
    `crashes` count responses, so their ratios are shares; `cache_hits` counts answers met again.
    """

    def __init__(
        self, num_workers: int = 1, timeout_s: float = 5.0, *, cache_size: int = 65_536
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, got {timeout_s}")
        self.timeout_s = timeout_s
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
        answer = extract_answer(response)
        if answer is None:
            graded = _completed(Verdict(False, None, "no_answer"))
        elif (same := _decide(answer, gold)) is not None:
            graded = _completed(_verdict(answer, same))
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

    def check_golds(self, golds: Sequence[str]) -> list[str | None]:
        """Why each gold answer cannot be graded, in a few words, in order; None for one that can.

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
                future = _completed(_verdict(answer, equivalent(answer, gold)))
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
