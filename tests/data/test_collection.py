# SPDX-License-Identifier: Apache-2.0
"""The books of a source: what was skipped, why, and in which row first."""

from __future__ import annotations

import logging

import pytest

from satori_fast.data.collection import FirstProblems, SourceReport, collect
from satori_fast.data.rows import Fields, GoodRow, Row
from satori_fast.data.values import BadRow
from satori_fast.types import Problem


def make(row: GoodRow, number: int) -> Problem:
    if row["answer"] is None:
        raise BadRow("empty field 'answer'")
    return Problem(str(number), "q", row["answer"])


def take(rows: list[Row], limit: int | None = None) -> tuple[list[Problem], SourceReport]:
    report = SourceReport("here")
    seen: list[Fields] = []
    problems = collect(
        enumerate(rows, start=1),
        make,
        report,
        check_fields=seen.append,
        selection=FirstProblems(limit),
        check_answers=lambda answers: ["odd" if a == "1" else None for a in answers],
    )
    assert seen == [Fields(("answer",))]
    return problems, report


def test_reasons_are_counted_with_their_first_row(caplog: pytest.LogCaptureFixture) -> None:
    rows: list[Row] = [
        {"answer": "1"},
        {"answer": "2"},
        {"answer": None},
        BadRow("not valid JSON", "cut off"),
        {"answer": None},
        {"answer": "1"},
    ]
    with caplog.at_level(logging.WARNING):
        problems, report = take(rows)
    assert [p.problem_id for p in problems] == ["2"]
    assert caplog.messages == [
        "here: 5 of 6 rows skipped: 2 x empty field 'answer' (row 3), "
        "2 x answer cannot be graded (row 1: odd), 1 x not valid JSON (row 4: cut off)"
    ]
    assert (report.num_rows, report.num_used, report.num_skipped) == (6, 1, 5)


def test_reading_stops_at_the_limit_and_no_row_later() -> None:
    rows: list[Row] = [{"answer": a} for a in "1213232"]
    problems, report = take(rows, limit=2)
    assert [p.problem_id for p in problems] == ["2", "4"]
    assert report.num_rows == 4


def test_no_row_at_all_and_no_good_row() -> None:
    with pytest.raises(ValueError, match="here holds no row"):
        SourceReport("here").finish()
    with pytest.raises(ValueError) as caught:
        take([{"answer": "1"}, {"answer": "1"}])
    assert str(caught.value).startswith(
        "here: 0 of 2 rows could be used: answer cannot be graded (row 1: odd); correct the rows"
    )
