# SPDX-License-Identifier: Apache-2.0
"""analysis.json grows by a stage at a time. The other files are tested by whole runs (test_run)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from satori_fast.evaluation.evaluate import EvaluationResult, evaluate
from satori_fast.grading import GradingPool
from satori_fast.stages.run_folder import record_analysis
from satori_fast.types import Problem
from tests.rollout.scripted_engine import ScriptedEngine
from tests.rollout.test_engine import RENDERER


def evaluated(answers: Sequence[int]) -> EvaluationResult:
    """Of problems "0", "1", ..., whose right answer is 4."""
    problems = [Problem(str(i), f"sum {i}", "4", level="1") for i in range(len(answers))]
    script: Mapping[str, Sequence[str]] = {
        f"sum {i}": [f"\\boxed{{ {answer} }}"] for i, answer in enumerate(answers)
    }
    with GradingPool(num_workers=0) as pool:
        return evaluate(ScriptedEngine(RENDERER, script), problems, max_new_tokens=9, pool=pool)


def stages_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "analysis.json").read_text())["stages"]


def test_a_stage_is_compared_with_the_stages_before_it(tmp_path: Path) -> None:
    record_analysis(tmp_path, "supervised", evaluated([4, 5, 5]))
    record_analysis(tmp_path, "reinforce", evaluated([4, 4, 5]))
    first, second = stages_of(tmp_path)
    assert (first["stage"], second["stage"]) == ("supervised", "reinforce")
    assert first["by_earlier"] == [] and first["correct"] == {"0": True, "1": False, "2": False}
    assert [(g["label"], g["accuracy"]) for g in second["by_earlier"]] == [
        ("none", 0.5),
        ("all", 1.0),
    ]
    assert not list(tmp_path.glob("*.partial"))


def test_a_stage_that_comes_again_replaces_its_entry(tmp_path: Path) -> None:
    record_analysis(tmp_path, "supervised", evaluated([5]))
    record_analysis(tmp_path, "reinforce", evaluated([5]))
    record_analysis(tmp_path, "reinforce", evaluated([4]))
    assert [entry["stage"] for entry in stages_of(tmp_path)] == ["supervised", "reinforce"]
    assert stages_of(tmp_path)[1]["correct"] == {"0": True}
    assert [g["count"] for g in stages_of(tmp_path)[1]["by_earlier"]] == [1]
