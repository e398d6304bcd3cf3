# SPDX-License-Identifier: Apache-2.0
"""Taking what is wanted of the rows of one or several sources, and the books about the rows that
could not be used.

A row that cannot be used is counted in the `SourceReport`, by its reason and with the first row of
each reason, and skipped; a data set that leaves no row is an error that says the same. What a row
means is `sources`, what is wanted `problem_split`.
"""

from __future__ import annotations

import logging
import re
import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

import numpy as np

from satori_fast.data.rows import Fields, GoodRow, Row, row_fields
from satori_fast.data.values import BadRow
from satori_fast.types import Demonstration, Problem

logger = logging.getLogger(__name__)

Item = TypeVar("Item", Problem, Demonstration)

# Why each answer cannot be graded, None where it can: `grading.GradingPool.check_golds`.
CheckAnswers = Callable[[Sequence[str]], list[str | None]]

_CHECKED_TOGETHER = 1024  # answers
_PROGRESS_S = 60.0
# An answer of so many rows and so large a share of them is spoken of, if it is none of few.
_COMMON_ROWS, _COMMON_SHARE, _FEW_ANSWERS = 20, 0.2, 10


@dataclass(slots=True)
class SourceReport:
    """Counts of the rows of one source, read and skipped.

    reasons: how many rows were skipped for each; first: the first such row, and what it holds.
    """

    source: str
    num_rows: int = 0
    num_used: int = 0
    num_skipped: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])
    first: dict[str, str] = field(default_factory=dict[str, str])

    def skip(self, row_number: int, bad: BadRow) -> None:
        self.num_skipped += 1
        self.reasons[bad.reason] += 1
        where = f"row {row_number}"
        self.first.setdefault(bad.reason, f"{where}: {bad.detail}" if bad.detail else where)

    def skipped(self) -> str:
        """ "2 x empty field 'answer' (row 7), 1 x not valid JSON (row 9: trailing comma)"."""
        listed = [(reason, count) for reason, count in self.reasons.most_common()]
        if len(listed) == 1 and self.num_skipped == self.num_rows:
            return f"{listed[0][0]} ({self.first[listed[0][0]]})"
        return ", ".join(f"{count} x {reason} ({self.first[reason]})" for reason, count in listed)

    def by_reason(self) -> dict[str, dict[str, object]]:
        """JSON-able: count and first row of each reason, the commonest first."""
        return {
            reason: {"count": count, "example": self.first[reason]}
            for reason, count in self.reasons.most_common()
        }

    def finish(self) -> None:
        """Log what was skipped; ValueError when that is every row."""
        if not self.num_rows:
            raise ValueError(f"{self.source} holds no row: nothing to read")
        if self.num_skipped == self.num_rows:
            raise ValueError(
                f"{self.source}: 0 of {self.num_rows} rows could be used: {self.skipped()}; "
                "correct the rows or choose another field mapping"
            )
        if self.num_skipped:
            logger.warning(
                "%s: %d of %d rows skipped: %s",
                self.source,
                self.num_skipped,
                self.num_rows,
                self.skipped(),
            )


def joined(reports: Sequence[SourceReport]) -> SourceReport:
    """The books of several sources as one; the first row of a reason says which source it is of."""
    if len(reports) == 1:
        return reports[0]
    whole = SourceReport(" + ".join(report.source for report in reports))
    for report in reports:
        whole.num_rows += report.num_rows
        whole.num_used += report.num_used
        whole.num_skipped += report.num_skipped
        whole.reasons += report.reasons
        for reason, first in report.first.items():
            whole.first.setdefault(reason, f"{report.source}, {first}")
    return whole


class Selection(Protocol):
    """Problems of a source that are taken, in its order. Reading stops when it is full."""

    @property
    def is_full(self) -> bool: ...

    def takes(self, problem: Problem) -> bool: ...

    def gives_back(self, problem: Problem) -> None:
        """A problem that was taken turned out not to be gradable."""
        ...


class FirstProblems:
    """Takes the first `limit` problems, all without one."""

    def __init__(self, limit: int | None) -> None:
        self._limit, self._num_taken = limit, 0

    @property
    def is_full(self) -> bool:
        return self._limit is not None and self._num_taken >= self._limit

    def takes(self, problem: Problem) -> bool:
        self._num_taken += 1
        return True

    def gives_back(self, problem: Problem) -> None:
        self._num_taken -= 1


@dataclass(frozen=True, slots=True)
class _Candidate(Generic[Item]):
    number: int
    item: Item
    report: SourceReport

    @property
    def problem(self) -> Problem:
        return self.item if isinstance(self.item, Problem) else self.item.problem


@dataclass(slots=True)
class RowStream(Generic[Item]):
    """The rows of one source on their way to items, read no further than they are asked for.

    rows:  (number, row); `make` makes an item of a good one, or raises `BadRow`.
    check_fields: raises ValueError when the fields that are in any row are not enough.
    """

    rows: Iterable[tuple[int, Row]]
    make: Callable[[GoodRow, int], Item]
    report: SourceReport
    check_fields: Callable[[Fields], None]
    is_begun: bool = False
    _telling: list[GoodRow] = field(default_factory=list[GoodRow])

    def candidates(self) -> Iterator[_Candidate[Item]]:
        """Yield an item of each good row; the others go into the books."""
        self.is_begun = True
        names, said = set[str](), time.monotonic()
        report = self.report
        for number, row in self.rows:
            report.num_rows += 1
            if time.monotonic() - said > _PROGRESS_S:
                said = time.monotonic()
                logger.info(
                    "%s: %d rows read, %d taken", report.source, report.num_rows, report.num_used
                )
            try:
                if isinstance(row, BadRow):
                    raise row
                if not row.keys() <= names:
                    names |= row.keys()
                    self._telling.append(row)  # the first row with some field
                candidate = _Candidate(number, self.make(row, number), report)
            except BadRow as bad:
                report.skip(number, bad)
                continue
            yield candidate

    def finish(self) -> None:
        """Log what was skipped; ValueError when that is every row, or a field is missing."""
        if self._telling:
            self.check_fields(row_fields(self._telling))
        if self.is_begun:  # a pool may be full before the first row of a source
            self.report.finish()


def collect(
    rows: Iterable[tuple[int, Row]],
    make: Callable[[GoodRow, int], Item],
    report: SourceReport,
    *,
    check_fields: Callable[[Fields], None],
    selection: Selection,
    check_answers: CheckAnswers | None,
) -> list[Item]:
    """Items of the rows that `selection` takes, until it is full; arguments as of `RowStream`.

    check_answers: None: every answer is taken.
    """
    stream = RowStream(rows, make, report, check_fields)
    return collect_mixed([stream], [1.0], selection=selection, check_answers=check_answers, seed=0)


def collect_mixed(
    streams: Sequence[RowStream[Item]],
    weights: Sequence[float],
    *,
    selection: Selection,
    check_answers: CheckAnswers | None,
    seed: int,
) -> list[Item]:
    """Items of several sources that `selection` takes, until it is full, mixed by weight.

    Before each item a stream is drawn, with a probability in proportion to its weight among the
    streams that are not exhausted; it gives its next item that `selection` takes, and is exhausted
    when it has none. Items whose answers cannot be graded are left out afterwards, without another
    draw in their place. seed: of the draws; the same seed and streams give the same items.
    """
    items: list[Item] = []
    pending: list[_Candidate[Item]] = []
    checker = _Checker(check_answers, selection)
    rng = np.random.default_rng(seed)
    live = {number: stream.candidates() for number, stream in enumerate(streams)}
    while live:
        drawn = _draw([*live], weights, rng)
        found = next((each for each in live[drawn] if selection.takes(each.problem)), None)
        if found is None:
            del live[drawn]
        else:
            pending.append(found)
        if len(pending) >= _CHECKED_TOGETHER or selection.is_full or not live:
            items += checker.gradable(pending)
            pending = []
            if selection.is_full:
                break
    for stream in streams:
        stream.finish()
    return items


def _draw(numbers: Sequence[int], weights: Sequence[float], rng: np.random.Generator) -> int:
    """One of `numbers`, in proportion to its weight."""
    ends = list(accumulate(weights[number] for number in numbers))
    return numbers[bisect(ends, rng.random() * ends[-1], hi=len(ends) - 1)]


class _Checker:
    """Asks of each distinct answer once whether it can be graded."""

    def __init__(self, check: CheckAnswers | None, selection: Selection) -> None:
        self._check, self._selection = check, selection
        self._known: dict[str, str | None] = {}

    def gradable(self, candidates: Sequence[_Candidate[Item]]) -> list[Item]:
        """The items whose answers can be graded; the others are given back and reported."""
        if self._check is not None:
            answers = dict.fromkeys(c.problem.answer or "" for c in candidates)
            new = [answer for answer in answers if answer not in self._known]
            self._known.update(zip(new, self._check(new) if new else [], strict=True))
        kept: list[Item] = []
        for candidate in candidates:
            reason = self._known.get(candidate.problem.answer or "")
            if reason is None:
                candidate.report.num_used += 1
                kept.append(candidate.item)
            else:
                self._selection.gives_back(candidate.problem)
                bad = BadRow("answer cannot be graded", reason)
                candidate.report.skip(candidate.number, bad)
        return kept


def warn_of_a_common_answer(source: str, problems: Sequence[Problem]) -> None:
    """Say that one answer is that of a large part of the rows: it may stand for a missing one.

    Small whole numbers, and data sets with a handful of different answers (yes or no, letters), are
    like that by nature; not where one answer is that of nearly all rows.
    """
    answers = Counter(problem.answer or "" for problem in problems)
    answer, count = answers.most_common(1)[0] if answers else ("", 0)
    share = count / max(1, len(problems))
    if count < _COMMON_ROWS or share <= _COMMON_SHARE:
        return
    is_natural = len(answers) <= _FEW_ANSWERS or re.fullmatch(r"-?\d{1,3}", answer)
    if share > 0.9 or not is_natural:
        logger.warning(
            "%s: %r is the answer of %d of %d problems: does it stand for a missing answer? If so, "
            "remove those rows",
            source,
            answer,
            count,
            len(problems),
        )
