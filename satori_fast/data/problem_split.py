# SPDX-License-Identifier: Apache-2.0
"""Training and held-out problems of a data set: disjoint, no question trained on twice an epoch.

The source, one data set or a pool of several, is read once, for both halves, and no further than
until enough problems are found: the first thousands of a data set with millions of rows cost what
thousands cost. Problems keep the order of their source.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

from satori_fast.data.collection import Selection, SourceReport
from satori_fast.data.cursor import is_heldout
from satori_fast.data.prompts import PromptRenderer
from satori_fast.types import Problem

logger = logging.getLogger(__name__)


def question_key(question: str) -> str:
    """Key that two writings of one question share: its words, without spacing and case."""
    return " ".join(question.split()).casefold()


class Reader(Protocol):
    """`sources.load_problems` of one source, or `sources.load_pool` of several."""

    def __call__(self, *, selection: Selection) -> tuple[list[Problem], SourceReport]: ...


class _Half:
    """The first `limit` problems (None: all) whose prompt is short enough.

    once: of each question only the first.
    """

    def __init__(
        self, what: str, limit: int | None, renderer: PromptRenderer, *, once: bool = True
    ) -> None:
        self._what, self._limit, self._renderer = what, limit, renderer
        self._met: set[str] | None = set() if once else None
        self._num_taken = self._num_repeated = self._num_too_long = 0

    @property
    def is_full(self) -> bool:
        return self._limit is not None and self._num_taken >= self._limit

    def takes(self, problem: Problem, key: str) -> bool:
        if self.is_full:
            return False
        if self._met is not None:
            if key in self._met:
                self._num_repeated += 1
                return False
            self._met.add(key)
        if not self._renderer.fits(problem):
            self._num_too_long += 1
            return False
        self._num_taken += 1
        return True

    def gives_back(self) -> None:
        self._num_taken -= 1

    def finish(self, source: SourceReport, *, num_asked: int = 0) -> None:
        """Log what was left out; ValueError, with all of it, when nothing is left.

        num_asked: rows that ask a question of a benchmark.
        """
        if self._num_repeated:
            logger.info("%d %s rows repeat a question", self._num_repeated, self._what)
        reasons = {
            "repeat a question": self._num_repeated,
            "ask a question of data.eval_source": num_asked,
            f"skipped: {source.skipped()}": source.num_skipped,
        }
        left_out = [f"{count} {reason}" for reason, count in reasons.items() if count]
        rows = f" of the {source.num_rows} rows of {source.source}"
        _report_lengths(
            self._what,
            self._num_taken,
            self._num_too_long,
            self._renderer,
            rows=f"{rows} ({'; '.join(left_out)})" if left_out else rows,
        )


class _HashSplit:
    """Both halves of one source, by the hash of a question."""

    def __init__(self, training: _Half, heldout: _Half, fraction: float) -> None:
        self._training, self._heldout, self._fraction = training, heldout, fraction

    @property
    def is_full(self) -> bool:
        return self._training.is_full and self._heldout.is_full

    def half_of(self, problem: Problem) -> _Half:
        is_out = is_heldout(question_key(problem.question), self._fraction)
        return self._heldout if is_out else self._training

    def takes(self, problem: Problem) -> bool:
        return self.half_of(problem).takes(problem, question_key(problem.question))

    def gives_back(self, problem: Problem) -> None:
        self.half_of(problem).gives_back()


class _Benchmark:
    """The first problems of a benchmark as they were published; `asked` gets every question."""

    def __init__(self, heldout: _Half) -> None:
        self.is_full = False
        self.asked: set[str] = set()
        self._heldout = heldout

    def takes(self, problem: Problem) -> bool:
        key = question_key(problem.question)
        self.asked.add(key)
        return self._heldout.takes(problem, key)

    def gives_back(self, problem: Problem) -> None:
        self._heldout.gives_back()


class _Unasked:
    """Training problems whose question is none of `asked`."""

    def __init__(self, training: _Half, asked: set[str]) -> None:
        self._training, self._asked = training, asked
        self.num_asked = 0

    @property
    def is_full(self) -> bool:
        return self._training.is_full

    def takes(self, problem: Problem) -> bool:
        key = question_key(problem.question)
        if key in self._asked:
            self.num_asked += 1
            return False
        return self._training.takes(problem, key)

    def gives_back(self, problem: Problem) -> None:
        self._training.gives_back()


def fitting(problems: Iterable[Problem], renderer: PromptRenderer, *, what: str) -> list[Problem]:
    """Select problems whose prompt is short enough for `renderer`; the log counts the others."""
    taken = list(problems)
    kept = [problem for problem in taken if renderer.fits(problem)]
    _report_lengths(what, len(kept), len(taken) - len(kept), renderer)
    return kept


def split_problems(
    read: Reader,
    read_benchmark: Reader | None,
    renderer: PromptRenderer,
    *,
    heldout_fraction: float,
    num_train: int | None,
    num_heldout: int,
) -> tuple[list[Problem], list[Problem]]:
    """(training, held-out) problems, at most `num_train` (None: all) and `num_heldout`.

    read:      `load_problems` of the training source: partial(load_problems, source, mapping).
    read_benchmark: the same of problems that are only evaluated on: the first of them are held out,
               and no question of any is trained on. None: a `heldout_fraction` of the source's own
               questions is held out, by their hash.
    Prompts too long for `renderer` are left out. What is left out is logged.
    Errors: those of `load_problems`; ValueError when a half is empty.
    """
    training_half = _Half("training", num_train, renderer)
    if read_benchmark is None:
        heldout_half = _Half("held-out", num_heldout, renderer)
        halves = _HashSplit(training_half, heldout_half, heldout_fraction)
        both, report = read(selection=halves)
        heldout_half.finish(report)
        training_half.finish(report)
        heldout = [problem for problem in both if halves.half_of(problem) is heldout_half]
        return [problem for problem in both if halves.half_of(problem) is training_half], heldout
    heldout_half = _Half("held-out", num_heldout, renderer, once=False)
    benchmark = _Benchmark(heldout_half)
    heldout, report = read_benchmark(selection=benchmark)
    heldout_half.finish(report)
    unasked = _Unasked(training_half, benchmark.asked)
    training, report = read(selection=unasked)
    training_half.finish(report, num_asked=unasked.num_asked)
    if unasked.num_asked:
        logger.warning(
            "%d training rows ask a question of data.eval_source: not trained on",
            unasked.num_asked,
        )
    return training, heldout


def _report_lengths(
    what: str,
    num_kept: int,
    num_too_long: int,
    renderer: PromptRenderer,
    *,
    rows: str = "",
) -> None:
    """rows: "of the 12 rows of FILE (7 skipped: why)", for an error."""
    longest = renderer.max_prompt_tokens
    if num_too_long:
        logger.warning(
            "%d %s problems have a prompt above data.max_prompt_tokens = %d: left out",
            num_too_long,
            what,
            longest,
        )
    if num_kept:
        return
    if num_too_long:
        fits = f"no {what} problem{rows} fits data.max_prompt_tokens = {longest}"
        raise ValueError(f"{fits}: raise it")
    raise ValueError(
        f"no {what} problem is left{rows}: check data.source and data.heldout_fraction"
    )
