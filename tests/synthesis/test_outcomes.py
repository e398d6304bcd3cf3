# SPDX-License-Identifier: Apache-2.0
"""Outcomes come back as they were, behind the problems that they are of."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from satori_fast.synthesis.outcomes import OutcomeFile
from satori_fast.synthesis.pipeline import Outcome
from satori_fast.types import Demonstration, Problem

PROBLEMS = [Problem(f"p{i}", f"{i} + 1", str(i + 1)) for i in range(3)]
OUTCOMES = [
    Outcome(
        problem,
        [Demonstration(problem, f"a<|reflect|> b \\boxed{{{problem.answer}}}", "II-I")],
        Counter({"solutions/right": 2, "dropped/leak": 1}),
        {"leak": "the ground truth"},
    )
    for problem in PROBLEMS
]


def test_outcomes_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "finished.jsonl"
    with closing(OutcomeFile(path, PROBLEMS)) as file:
        file.append(OUTCOMES[0])
        file.append(OUTCOMES[1])
    path.write_bytes(path.read_bytes() + b'{"problem_id": "p2", "dem')
    with closing(OutcomeFile(path, PROBLEMS)) as file:
        assert file.outcomes == OUTCOMES[:2]
        file.append(OUTCOMES[2])
    with closing(OutcomeFile(path, PROBLEMS)) as file:
        assert file.outcomes == OUTCOMES


def test_other_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "finished.jsonl"
    with closing(OutcomeFile(path, PROBLEMS)) as file:
        file.append(OUTCOMES[0])
    with pytest.raises(ValueError, match="its problem 1 is 'p0', which the data does not have"):
        OutcomeFile(path, PROBLEMS[1:])
    with pytest.raises(ValueError, match="resume with the same data"):
        OutcomeFile(path, [])
