# SPDX-License-Identifier: Apache-2.0
"""Taking what is wanted of a source's rows, and the books about the rows that could not be used.

A row that cannot be used is counted in the `SourceReport`, by its reason and with the first row of
each reason, and skipped; a data set that leaves no row is an error that says the same. What a row
means is `sources`, what is wanted `problem_split`.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

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

    @property
    def problem(self) -> Problem:
        return self.item if isinstance(self.item, Problem) else self.item.problem


def collect(
    rows: Iterable[tuple[int, Row]],
    make: Callable[[GoodRow, int], Item],
    report: SourceReport,
    *,
    check_fields: Callable[[Fields], None],
    selection: Selection,
    check_answers: CheckAnswers | None,
) -> list[Item]:
    """Items of the rows that `selection` takes, until it is full.

    rows:  (number, row); `make` makes an item of a good one, or raises `BadRow`.
    check_fields: raises ValueError when the fields that are in any row are not enough.
    check_answers: None: every answer is taken.
    """
    items: list[Item] = []
    pending: list[_Candidate[Item]] = []
    checker = _Checker(check_answers, report, selection)
    names, telling = set[str](), list[GoodRow]()
    said = time.monotonic()
    for number, row in rows:
        report.num_rows += 1
        if time.monotonic() - said > _PROGRESS_S:
            said = time.monotonic()
            logger.info("%s: %d rows read, %d taken", report.source, report.num_rows, len(items))
        try:
            if isinstance(row, BadRow):
                raise row
            if not row.keys() <= names:
                names |= row.keys()
                telling.append(row)  # the first row with some field
            candidate = _Candidate(number, make(row, number))
        except BadRow as bad:
            report.skip(number, bad)
            continue
        if not selection.takes(candidate.problem):
            continue
        pending.append(candidate)
        if len(pending) >= _CHECKED_TOGETHER or selection.is_full:
            items += checker.gradable(pending)
            pending = []
            if selection.is_full:
                break
    items += checker.gradable(pending)
    report.num_used = len(items)
    if telling:
        check_fields(row_fields(telling))
    report.finish()
    return items


class _Checker:
    """Asks of each distinct answer once whether it can be graded."""

    def __init__(
        self, check: CheckAnswers | None, report: SourceReport, selection: Selection
    ) -> None:
        self._check, self._report, self._selection = check, report, selection
        self._known: dict[str, str | None] = {}

    def gradable(self, candidates: Sequence[_Candidate[Item]]) -> list[Item]:
        """The items whose answers can be graded; the others are given back and reported."""
        if self._check is None:
            return [candidate.item for candidate in candidates]
        answers = dict.fromkeys(c.problem.answer or "" for c in candidates)
        new = [answer for answer in answers if answer not in self._known]
        self._known.update(zip(new, self._check(new) if new else [], strict=True))
        kept: list[Item] = []
        for candidate in candidates:
            reason = self._known[candidate.problem.answer or ""]
            if reason is None:
                kept.append(candidate.item)
            else:
                self._selection.gives_back(candidate.problem)
                self._report.skip(candidate.number, BadRow("answer cannot be graded", reason))
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
