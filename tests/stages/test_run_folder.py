# SPDX-License-Identifier: Apache-2.0
"""analysis.json grows by a stage at a time; what a resumed run may change, and what metrics are
sent to. The other files are tested by whole runs (test_run)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from satori_fast.config import Config, ConfigError
from satori_fast.config_sections import LoggingConfig, ProfilingConfig
from satori_fast.evaluation.evaluate import EvaluationResult, evaluate
from satori_fast.grading import GradingPool
from satori_fast.profiling.metrics import MetricsWriter
from satori_fast.stages.run_folder import open_folder, open_sinks, open_writer, record_analysis
from satori_fast.types import Problem, StepReport
from tests.profiling.test_sinks import free_port, scraped
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


def test_a_resumed_run_may_be_watched_otherwise_but_not_compute_otherwise(tmp_path: Path) -> None:
    config = Config.example()
    open_folder(tmp_path / "run", config, resume=False)
    with MetricsWriter(tmp_path / "run", tensorboard=False) as writer:
        writer.write(StepReport("rl", 0, {}, {}))
    watched = {
        "profiling": ProfilingConfig(trace=True),
        "logging": LoggingConfig(tensorboard=False),
    }
    open_folder(tmp_path / "run", config.model_copy(update=watched), resume=True)
    with pytest.raises(ConfigError, match="differs from this config"):
        open_folder(tmp_path / "run", config.model_copy(update={"seed": 7}), resume=True)


def test_metrics_go_where_the_config_says(tmp_path: Path) -> None:
    port = free_port()
    logging = LoggingConfig(tensorboard=False, prometheus_port=port)
    config = Config.example().model_copy(update={"logging": logging, "name": "here"})
    with open_writer(tmp_path, ["rl"], {}, config=config, resume=False) as writer:
        writer.write(StepReport("rl", 0, {"update/loss": 2.0}, {}))
        assert 'satori_fast_update_loss{run="here",stage="rl"} 2.0' in scraped(port)
        with pytest.raises(ConfigError, match="choose another port"):
            open_sinks(tmp_path, config)
    assert not (tmp_path / "tensorboard").exists()
