# SPDX-License-Identifier: Apache-2.0
"""Training and held-out problems of a data set: disjoint, no question trained on twice an epoch.

Reading stops when enough problems are found, so the first thousands of a data set with millions of
rows cost what thousands cost. Problems keep the order of their source.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from satori_fast.data.coat import PromptRenderer
from satori_fast.data.cursor import is_heldout
from satori_fast.data.sources import SourceReport
from satori_fast.types import Problem

logger = logging.getLogger(__name__)


def question_key(question: str) -> str:
    """What two writings of one question share: its words, without spacing and case."""
    return " ".join(question.split()).casefold()


class Reader(Protocol):
    """`sources.load_problems` of one source."""

    def __call__(
        self, *, limit: int | None, select: Callable[[Problem], bool]
    ) -> tuple[list[Problem], SourceReport]: ...


class _Selection:
    """Takes the first problem of each question of one half, and counts the others.

    belongs: whether the question of a key is of this half.
    """

    def __init__(self, belongs: Callable[[str], bool], renderer: PromptRenderer) -> None:
        self._belongs, self._renderer = belongs, renderer
        self._met: set[str] = set()
        self._num_repeated = self._num_too_long = 0
        self.num_of_others = 0

    def __call__(self, problem: Problem) -> bool:
        key = question_key(problem.question)
        if not self._belongs(key):
            self.num_of_others += 1
        elif key in self._met:
            self._num_repeated += 1
        else:
            self._met.add(key)
            if self._renderer.fits(problem):
                return True
            self._num_too_long += 1
        return False

    def report(self, what: str, num_taken: int) -> None:
        """Log what was left out; ValueError when nothing is left."""
        if self._num_repeated:
            logger.info("%d %s rows repeat a question", self._num_repeated, what)
        _report_lengths(what, num_taken, self._num_too_long, self._renderer)


def fitting(problems: Iterable[Problem], renderer: PromptRenderer, *, what: str) -> list[Problem]:
    """Those whose prompt is short enough for `renderer`; the others are counted in the log."""
    taken = list(problems)
    kept = [problem for problem in taken if renderer.fits(problem)]
    _report_lengths(what, len(kept), len(taken) - len(kept), renderer)
    return kept


def split_problems(
    read: Reader,
    benchmark: Sequence[Problem] | None,
    renderer: PromptRenderer,
    *,
    heldout_fraction: float,
    num_train: int | None,
    num_heldout: int,
) -> tuple[list[Problem], list[Problem]]:
    """(training, held-out) problems, at most `num_train` (None: all) and `num_heldout`.

    read:      `load_problems` of the training source: partial(load_problems, source, mapping).
    benchmark: all problems that may be evaluated on, as they were published: the first of them are
               held out, and no question of any is trained on. None: a `heldout_fraction` of the
               source's own questions is held out, by their hash.
    Prompts too long for `renderer` are left out. What is left out is logged.
    Errors: those of `load_problems`; ValueError when a half is empty.
    """

    def by_hash(key: str) -> bool:
        return is_heldout(key, heldout_fraction)

    if benchmark is None:
        heldout_choice = _Selection(by_hash, renderer)
        heldout, _ = read(limit=num_heldout, select=heldout_choice)
        heldout_choice.report("held-out", len(heldout))
        choice = _Selection(lambda key: not by_hash(key), renderer)
    else:
        heldout = fitting(benchmark, renderer, what="held-out")[:num_heldout]
        asked = {question_key(problem.question) for problem in benchmark}
        choice = _Selection(lambda key: key not in asked, renderer)
    training, _ = read(limit=num_train, select=choice)
    choice.report("training", len(training))
    if benchmark is not None and choice.num_of_others:
        logger.warning(
            "%d training rows ask a question of data.eval_source: not trained on",
            choice.num_of_others,
        )
    return training, heldout


def _report_lengths(what: str, num_kept: int, num_too_long: int, renderer: PromptRenderer) -> None:
    longest = renderer.max_prompt_tokens
    if num_too_long:
        logger.warning(
            "%d %s problems have a prompt above data.max_prompt_tokens = %d: left out",
            num_too_long,
            what,
            longest,
        )
    if not num_kept:
        raise ValueError(
            f"no {what} problem fits data.max_prompt_tokens = {longest}: raise it"
            if num_too_long
            else f"no {what} problem is left: check data.source and data.heldout_fraction"
        )
