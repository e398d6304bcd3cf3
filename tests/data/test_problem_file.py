# SPDX-License-Identifier: Apache-2.0
"""Problems as JSON rows, and the folder that keeps a run's problems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.data.problem_file import (
    keep_problems,
    problem_from_row,
    problem_to_row,
    read_problems,
    read_skipped,
)
from satori_fast.types import Prefix, Problem

TRAINING = [Problem("a/1", "caf\u00e9\u2028\n?", "1", level="Level 5"), Problem("a/2", "q", None)]
HELDOUT = [Problem("a/3", "\U0001f600", "\\frac{1}{2}")]

texts = st.text(st.characters(exclude_categories=["Cs"]))
prefixes = st.builds(
    Prefix,
    text=texts,
    kind=st.sampled_from(["restart", "step"]),
    correct=st.none() | st.booleans(),
    target=st.none() | texts,
)
problems = st.builds(
    Problem,
    problem_id=texts,
    question=texts,
    answer=st.none() | texts,
    prefix=st.none() | prefixes,
    level=texts,
)


@settings(deadline=None)
@given(problems)
def test_a_problem_reads_back_from_its_row(problem: Problem) -> None:
    row = json.loads(json.dumps({**problem_to_row(problem), "more": 1}))
    assert problem_from_row(row) == problem
    assert problem_from_row(asdict(problem)) == problem  # as in a step's state of rollouts


def test_rows_are_plain_and_those_of_earlier_restarts_are_read() -> None:
    assert problem_to_row(HELDOUT[0]) == {
        "problem_id": "a/3",
        "question": "\U0001f600",
        "answer": "\\frac{1}{2}",
    }
    row = {"problem_id": "1", "question": "q", "answer": "a", "prefix": "p", "correct": True}
    assert problem_from_row(row) == Problem("1", "q", "a", Prefix("p", "restart", correct=True))


class Source:
    """Makes the problems and counts how often it was asked."""

    def __init__(self) -> None:
        self.num_read = 0

    def __call__(self) -> tuple[Sequence[Problem], Sequence[Problem]]:
        self.num_read += 1
        return TRAINING, HELDOUT


def test_problems_are_made_once_for_a_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, source = tmp_path / "data", Source()
    files = keep_problems(folder, {"source": "x", "limit": 3}, source)
    assert keep_problems(folder, {"source": "x", "limit": 3}, source) == files
    assert read_problems(folder, files) == (TRAINING, HELDOUT)
    assert source.num_read == 1 and not caplog.messages
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").split("\n")
    assert json.loads(lines[0])["question"] == TRAINING[0].question and "caf\u00e9" in lines[0]
    assert keep_problems(folder, {"source": "y", "limit": 3}, source) == files
    assert source.num_read == 2
    assert "read again, because of: source" in caplog.text


def test_what_was_left_out_on_the_way_is_kept_with_the_problems(tmp_path: Path) -> None:
    folder, left_out = tmp_path / "data", {"no answer": {"count": 2, "example": "row 7"}}
    assert read_skipped(folder) == {}
    files = keep_problems(folder, {"source": "x"}, Source())
    assert read_skipped(folder) == {}
    assert keep_problems(folder, {"source": "y"}, Source(), skipped=lambda: left_out) == files
    assert read_skipped(folder) == left_out


@pytest.mark.parametrize("name", ["train.jsonl", "heldout.jsonl", "key.json"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_folder_is_made_again(tmp_path: Path, name: str, damage: str) -> None:
    folder, source = tmp_path / "data", Source()
    files = keep_problems(folder, {"source": "x"}, source)
    if damage == "cut":
        (folder / name).write_bytes((folder / name).read_bytes()[:-5])
    else:
        (folder / name).unlink()
    assert keep_problems(folder, {"source": "x"}, source) == files
    assert read_problems(folder, files) == (TRAINING, HELDOUT)
    assert source.num_read == 2


def test_a_failed_reading_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    files = keep_problems(folder, {"source": "x"}, Source())

    def fail() -> tuple[Sequence[Problem], Sequence[Problem]]:
        raise ValueError("no row")

    with pytest.raises(ValueError, match="no row"):
        keep_problems(folder, {"source": "y"}, fail)
    assert read_problems(folder, files) == (TRAINING, HELDOUT)
