# SPDX-License-Identifier: Apache-2.0
"""Benchmarks that a run's evaluations ask as well: read before training, graded, recorded."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.config import Config, ConfigError
from satori_fast.evaluation.protocols import protocol_named
from satori_fast.profiling.metrics import read_metrics
from satori_fast.stages import run_stages
from satori_fast.stages.run import build_run
from satori_fast.stages.run_benchmarks import RunBenchmarks
from satori_fast.types import Problem
from tests.rollout.scripted_engine import ScriptedEngine
from tests.rollout.test_engine import RENDERER
from tests.stages.test_evaluator import ANSWERS, evaluator_of, served
from tests.stages.test_run import tiny_config


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with four questions by the name of GSM8K: `ANSWERS` has right ones to two, a wrong
    one, and none to a question that is longer than any prompt may be."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"question": question, "answer": f"#### {question[-1]}"} for question in ANSWERS]
    rows.append({"question": "sum 1 " * 400, "answer": "#### 1"})
    (folder / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def config_of(tmp_path: Path, data: Path, *benchmarks: dict[str, Any]) -> Config:
    config = tiny_config(tmp_path)
    changed = config.model_dump()
    changed["evaluation"] |= {"benchmarks": benchmarks, "data_dir": str(data)}
    return Config.model_validate(changed)


def test_every_question_counts_and_shares_have_intervals(tmp_path: Path, data: Path) -> None:
    config = config_of(tmp_path, data, {"name": "gsm8k", "max_new_tokens": 9})
    benchmarks = RunBenchmarks(config, initialize_parallel(seed=0))
    engine = ScriptedEngine(RENDERER, ANSWERS)
    (figures,) = benchmarks.measure(engine, tmp_path).values()
    assert engine.sampling is not None and engine.sampling.temperature == 0
    assert [request.max_new_tokens for request in engine.requests] == [9, 9, 9]  # not the long one
    assert figures["protocol"] == "config" and figures["partial"]
    assert (figures["accuracy"]["value"], figures["accuracy"]["n"]) == (0.5, 4)
    assert figures["accuracy"]["interval"] == pytest.approx([0.150039, 0.849961], abs=1e-6)
    assert figures["no_answer"]["value"] == 0.0 and figures["mean_tokens"] > 0


def test_a_protocol_of_its_own_asks_in_its_own_words(tmp_path: Path, data: Path) -> None:
    config = config_of(tmp_path, data, {"name": "gsm8k", "protocol": "satori", "limit": 2})
    RENDERER.tokenizer.save_pretrained(tmp_path)
    engine = ScriptedEngine(RENDERER, defaultdict(lambda: [r"\boxed{ 1 }"]))
    (figures,) = (
        RunBenchmarks(config, initialize_parallel(seed=0)).measure(engine, tmp_path).values()
    )
    assert (figures["protocol"], figures["accuracy"]["value"]) == ("satori", 0.5)
    own = protocol_named("satori").renderer(RENDERER.tokenizer, tmp_path, max_prompt_tokens=200)
    wanted = [tuple(own.prompt_ids(Problem("", question, ""))) for question in ("sum 1", "sum 2")]
    assert sorted(request.prompt_ids for request in engine.requests) == sorted(wanted)
    assert {request.stop_ids for request in engine.requests} == {own.stop_ids}


def test_they_stand_beside_the_held_out_problems(tmp_path: Path, data: Path) -> None:
    with build_run(config_of(tmp_path, data, {"name": "gsm8k", "limit": 3})) as run:
        restarting, _ = served()
        result = evaluator_of(run).evaluate(restarting)
        assert result.correct == (True, False, True)
        assert result.metrics()["benchmark/gsm8k/accuracy"] == pytest.approx(2 / 3)
        assert {"benchmark/gsm8k/truncated", "benchmark/gsm8k/no_answer"} <= result.metrics().keys()
        assert run.books.spans.end_step().spans_s["benchmarks"] > 0


def test_a_run_records_them(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_stages(config_of(tmp_path, data, {"name": "gsm8k"}))
    lines = read_metrics(tmp_path / "tiny" / "metrics.jsonl")
    for stage in ("supervised", "reinforce"):
        own = [line for line in lines if line["stage"] == stage]
        assert "benchmark/gsm8k/accuracy" in own[-1] and "eval/accuracy" in own[-1]
    summary = json.loads((tmp_path / "tiny" / "summary.json").read_text())
    figures = summary["stages"][-1]["benchmarks"]["gsm8k"]
    assert figures["accuracy"]["n"] == 4
    row = next(line for line in capsys.readouterr().out.splitlines() if "gsm8k" in line)
    assert "config" in row and " to " in row
    assert "Accuracy on benchmarks" in (tmp_path / "tiny" / "report.html").read_text()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ([{"name": "gsm9k"}], "'gsm9k' is no benchmark: choose of all, gsm8k"),
        ([{"name": "gsm8k"}, {"name": "gsm8k"}], "lists 'gsm8k' twice"),
        ([{"name": "gsm8k", "protocol": "mine"}], "'mine' is no protocol: choose of satori"),
    ],
)
def test_names_are_checked_before_training(
    tmp_path: Path, data: Path, wanted: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        build_run(config_of(tmp_path, data, *wanted))


def test_what_cannot_be_asked_is_said_before_training(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.benchmarks: benchmark amc23: .* holds no"):
        build_run(config_of(tmp_path, data, {"name": "amc23"}))
    with pytest.raises(ConfigError, match=r"gsm8k: protocol \"s2r\" asks in the chat template"):
        build_run(config_of(tmp_path, data, {"name": "gsm8k", "protocol": "s2r"}))


def test_no_benchmark_costs_nothing(tmp_path: Path) -> None:
    benchmarks = RunBenchmarks(tiny_config(tmp_path), initialize_parallel(seed=0))
    engine = ScriptedEngine(RENDERER, ANSWERS)
    assert benchmarks.measure(engine, tmp_path) == {} and engine.requests == []
