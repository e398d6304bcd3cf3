# SPDX-License-Identifier: Apache-2.0
"""The books of a source: what was skipped, why, and in which row first."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from satori_fast.data.collection import (
    FirstProblems,
    RowStream,
    SourceReport,
    collect,
    collect_mixed,
    joined,
)
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


def stream(name: str, answers: list[str]) -> RowStream[Problem]:
    rows: list[Row] = [{"answer": answer} for answer in answers]
    report = SourceReport(name)
    return RowStream(enumerate(rows, start=1), make, report, lambda fields: None)


def mixed(
    streams: list[RowStream[Problem]], weights: list[float], limit: int | None, *, seed: int = 3
) -> list[str]:
    problems = collect_mixed(
        streams,
        weights,
        selection=FirstProblems(limit),
        check_answers=lambda answers: ["odd" if a == "1" else None for a in answers],
        seed=seed,
    )
    return [problem.answer or "" for problem in problems]


def test_shares_of_a_pool_follow_the_weights_until_a_source_is_exhausted() -> None:
    streams = [stream("a", ["a"] * 4000), stream("b", ["b"] * 4000), stream("c", ["c"] * 10)]
    taken = mixed(streams, [3.0, 1.0, 4.0], 2010)
    assert Counter(taken)["c"] == 10 and "c" not in taken[60:]
    # Binomial of 2,000 at 3/4: mean 1,500, standard deviation 19.4.
    assert abs(Counter(taken)["a"] - 1500) < 80
    assert [s.report.num_rows for s in streams] == [Counter(taken)[x] for x in "abc"]
    # In the order of each source, to its end.
    whole = mixed([stream("a", ["2", "3", "4"]), stream("b", ["5", "6"])], [1.0, 9.0], None)
    assert [x for x in whole if x < "5"] == ["2", "3", "4"]
    assert [x for x in whole if x > "4"] == ["5", "6"]


def test_a_pool_is_the_same_for_the_same_seed() -> None:
    def pool(seed: int) -> list[str]:
        streams = [stream("a", ["a"] * 50), stream("b", ["b"] * 50)]
        return mixed(streams, [1.0, 1.0], None, seed=seed)

    assert pool(1) == pool(1) != pool(2)


def test_books_of_a_pool_name_the_source_and_one_that_gives_nothing_is_an_error() -> None:
    streams = [stream("a", ["2", "1", "3"]), stream("b", ["4", "1", "1"])]
    assert sorted(mixed(streams, [1.0, 1.0], None)) == ["2", "3", "4"]
    whole = joined([each.report for each in streams])
    assert (whole.num_rows, whole.num_used, whole.num_skipped) == (6, 3, 3)
    assert whole.skipped() == "3 x answer cannot be graded (a, row 2: odd)"
    with pytest.raises(ValueError, match="b: 0 of 1 rows could be used"):
        mixed([stream("a", ["2"]), stream("b", ["1"])], [1.0, 1.0], None)


def test_a_source_that_is_not_needed_is_not_read() -> None:
    streams = [stream("a", ["2"]), stream("b", ["3"])]
    (answer,) = mixed(streams, [1.0, 1.0], 1)
    read = {"2": [1, 0], "3": [0, 1]}[answer]
    assert [each.report.num_rows for each in streams] == read
