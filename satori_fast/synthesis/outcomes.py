# SPDX-License-Identifier: Apache-2.0
"""Outcomes of finished problems, in their order, so that a resumed run begins behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from satori_fast.synthesis.pipeline import Outcome
from satori_fast.synthesis.record_file import RecordFile
from satori_fast.types import Demonstration, Problem


class OutcomeFile:
    """The outcomes of the first of `problems`.

    Raises ValueError when the file is of other problems.
    """

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self.outcomes: list[Outcome] = []
        self._problems = problems
        self._path = path
        self._file = RecordFile(path, self._read)

    def append(self, outcome: Outcome) -> None:
        self._file.append(_record(outcome))
        self.outcomes.append(outcome)

    def close(self) -> None:
        self._file.close()

    def _read(self, record: dict[str, Any], place: int) -> None:
        number = len(self.outcomes)
        problem = self._problems[number] if number < len(self._problems) else None
        if problem is None or problem.problem_id != record["problem_id"]:
            raise ValueError(
                f"{self._path}: its problem {number + 1} is {record['problem_id']!r}, which the "
                "data does not have in that place: resume with the same data"
            )
        self.outcomes.append(_outcome(record, problem))


def _record(outcome: Outcome) -> dict[str, Any]:
    return {
        "problem_id": outcome.problem.problem_id,
        "demonstrations": [
            {"trajectory_type": d.trajectory_type, "response": d.response}
            for d in outcome.demonstrations
        ],
        "counts": outcome.counts,
        "faults": outcome.faults,
    }


def _outcome(record: dict[str, Any], problem: Problem) -> Outcome:
    demonstrations = [Demonstration(problem, **fields) for fields in record["demonstrations"]]
    return Outcome(problem, demonstrations, Counter(record["counts"]), record["faults"])
