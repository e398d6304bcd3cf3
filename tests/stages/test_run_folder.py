# SPDX-License-Identifier: Apache-2.0
"""Whose a run folder is, what of it may be removed, and what is found damaged; analysis.json grows
by a stage at a time; what metrics are sent to. What may be changed on resume is test_resume."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from satori_fast.config import Config, ConfigError, to_toml
from satori_fast.config_sections import LoggingConfig, ProfilingConfig
from satori_fast.data.formats.steps import WORDS
from satori_fast.evaluation.evaluate import EvaluationResult, evaluate
from satori_fast.grading import GradingPool
from satori_fast.profiling.metrics import MetricsWriter
from satori_fast.profiling.report_runs import read_run
from satori_fast.profiling.report_similarity import similarity_tables
from satori_fast.rewards.behaviour import similarity_behaviour
from satori_fast.stages.run_folder import (
    RunFolder,
    open_sinks,
    open_writer,
    record_analysis,
    record_similarity,
)
from satori_fast.types import Prefix, Problem, StepReport
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


def test_the_behaviour_of_a_reward_reaches_the_report(tmp_path: Path) -> None:
    problems = [Problem("1", "start 3", None, Prefix("", "step", target="plus 4 : 3 + 4 = 7"))]
    behaviour = similarity_behaviour(problems, dialect=WORDS, encode=lambda text: [len(text)])
    record_similarity(tmp_path, "srl", behaviour)
    (tmp_path / "metrics.jsonl").touch()
    (entry,) = read_run(tmp_path).similarity
    (table,) = similarity_tables([entry])
    words = dict(zip(table["columns"], table["rows"][1], strict=True))
    # Words: 8, of which the title has 3 and the half 4.
    assert (table["stage"], table["note"]) == ("srl", "Targets: 1. Autojunk: off.")
    assert words["title alone"] == "0.545 ± 0.000" and words["first half"] == "0.667 ± 0.000"
    assert words["length: median, longest"] == "8, 8"


def config_of(folder: Path, **changes: Any) -> Config:
    return Config.example().model_copy(update={"output_dir": str(folder), "name": "run", **changes})


@contextmanager
def opened(folder: Path, *, resume: bool = False, **changes: Any) -> Iterator[RunFolder]:
    """The folder "run" in `folder`, open for a run of these settings."""
    place = RunFolder(folder / "run")
    try:
        place.open(config_of(folder, **changes), resume=resume)
        yield place
    finally:
        place.close()


def work(folder: Path) -> None:
    """Leave a line of metrics, so that the folder holds a run."""
    with MetricsWriter(folder / "run", tensorboard=False) as writer:
        writer.write(StepReport("supervised", 0, {}, {}))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path, resume: bool) -> None:
    theirs = tmp_path / "run"
    (theirs / "src").mkdir(parents=True)
    for name, text in {
        "config.toml": to_toml(config_of(tmp_path)),
        "thesis.tex": "words",
        "src/code.py": "pass",
        "progress.json": "{}",
        "models.partial": "x",
    }.items():
        (theirs / name).write_text(text)
    before = everything(tmp_path)
    with (
        pytest.raises(ConfigError, match="is not empty and no run folder"),
        opened(tmp_path, resume=resume),
    ):
        pass
    assert everything(tmp_path) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file"):
        RunFolder(tmp_path / "file").open(config_of(tmp_path), resume=False)


def test_a_run_that_did_nothing_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    with opened(tmp_path) as place:
        for name in ("tokenizer", "models/initial"):
            (place.path / name).mkdir(parents=True)
            (place.path / name / "config.json").write_text("{}")
            place.keep(place.path / name)
        (place.path / "notes.txt").write_text("of the user's")
        (place.path / "tokenizer" / "mine.txt").write_text("of the user's too")
    with opened(tmp_path, seed=7) as place:
        assert not place.has("tokenizer") and not (place.path / "models" / "initial").exists()
        left = set(everything(place.path))
        assert left == {
            "run.lock",
            "config.toml",
            "progress.json",
            "notes.txt",
            "tokenizer/mine.txt",
        }
        assert "seed = 7" in (place.path / "config.toml").read_text()


def test_a_new_run_may_be_given_samples_of_another(tmp_path: Path) -> None:
    samples = tmp_path / "run" / "solutions" / "supervised.jsonl"
    samples.parent.mkdir(parents=True)
    samples.write_text("given")
    with opened(tmp_path):
        assert samples.read_text() == "given"
    with pytest.raises(ConfigError, match="holds a run: pass --resume"), opened(tmp_path):
        pass


def test_a_folder_with_a_run_is_not_started_again(tmp_path: Path) -> None:
    with opened(tmp_path):
        work(tmp_path)
    before = everything(tmp_path)
    with pytest.raises(ConfigError, match="holds a run: pass --resume"), opened(tmp_path):
        pass
    now = everything(tmp_path)
    assert now.pop("run/run.lock") and before.pop("run/run.lock") and now == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_process_is_told_who_has_the_folder(tmp_path: Path, resume: bool) -> None:
    with opened(tmp_path):
        work(tmp_path)
        before = everything(tmp_path)
        host, process = socket.gethostname(), os.getpid()
        with (
            pytest.raises(ConfigError, match=f"in use by process {process} on {host} since 20"),
            opened(tmp_path, resume=resume),
        ):
            pass
        assert everything(tmp_path) == before
    with opened(tmp_path, resume=True):  # the lock goes with its holder
        pass


def test_what_a_kill_left_half_written_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path) as place:
        work(tmp_path)
        for name in (
            "config.toml.partial",
            "models/supervised.partial/model.safetensors",
            "models/initial.replaced/model.safetensors",
            "checkpoints/supervised/step-3/manifest.json",
            "checkpoints/supervised/step-6/manifest.json",
            "checkpoints/supervised/step-9/manifest.json",
            "checkpoints/supervised/step-12.partial/extra.json",
            "mine.partial",
        ):
            (place.path / name).parent.mkdir(parents=True, exist_ok=True)
            (place.path / name).write_text("")
    with opened(tmp_path, resume=True) as place:
        assert set(everything(place.path)) == {
            *("run.lock", "config.toml", "progress.json", "metrics.jsonl", "samples.jsonl"),
            "models/initial/model.safetensors",
            "checkpoints/supervised/step-6/manifest.json",
            "checkpoints/supervised/step-9/manifest.json",
            "mine.partial",
        }


def test_a_resumed_run_may_move_and_be_watched_otherwise(tmp_path: Path) -> None:
    with opened(tmp_path):
        work(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").rename(tmp_path / "elsewhere" / "run")
    watched = {
        "profiling": ProfilingConfig(trace=True),
        "logging": LoggingConfig(tensorboard=False),
    }
    with opened(tmp_path / "elsewhere", resume=True, **watched) as place:
        assert "trace = true" in (place.path / "config.toml").read_text()


@pytest.mark.parametrize("file", ["models/x/config.json", "demonstrations.jsonl"])
def test_a_file_that_is_not_what_the_run_wrote_is_named(tmp_path: Path, file: str) -> None:
    with opened(tmp_path) as place:
        work(tmp_path)
        path = place.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("written")
        place.keep(path.parent if "/" in file else path)
    with opened(tmp_path, resume=True):
        pass
    path.write_text("WRITTEN")
    with (
        pytest.raises(ConfigError, match=f"{file} is not what this run wrote: restore it"),
        opened(tmp_path, resume=True),
    ):
        pass
    path.unlink()
    with (
        pytest.raises(ConfigError, match=f"{file} is missing: restore it"),
        opened(tmp_path, resume=True),
    ):
        pass


@pytest.mark.parametrize("name", ["progress.json", "config.toml"])
@pytest.mark.parametrize("content", [None, b"", b"[1, 2", b"\xff\xfe", b'{"finished": []}'])
def test_a_damaged_book_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    with opened(tmp_path):
        work(tmp_path)
    path = tmp_path / "run" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))), opened(tmp_path, resume=True):
        pass


def test_lines_that_were_changed_since_the_last_checkpoint_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, logging=LoggingConfig(tensorboard=False))
    entry = {"stage": "supervised"}
    with opened(tmp_path) as place, open_writer(place, config, resume=False) as writer:
        writer.write(StepReport("supervised", 0, {"update/loss": 1.25}, {}))
        place.finish_stage(entry, {}, wall_s=1.0, records=writer.digests())
    for damage, is_said in ((lambda t: t, False), (lambda t: t.replace("1.25", "1.26"), True)):
        path = tmp_path / "run" / "metrics.jsonl"
        path.write_text(damage(path.read_text()))
        caplog.clear()
        with opened(tmp_path, resume=True) as place, open_writer(place, config, resume=True):
            pass
        assert (f"{path} is not what this run wrote" in caplog.text) == is_said


def test_metrics_go_where_the_config_says(tmp_path: Path) -> None:
    port = free_port()
    logging = LoggingConfig(tensorboard=False, prometheus_port=port)
    config = Config.example().model_copy(update={"logging": logging, "name": "here"})
    with open_writer(RunFolder(tmp_path), config, resume=False) as writer:
        writer.write(StepReport("rl", 0, {"update/loss": 2.0}, {}))
        assert 'satori_fast_update_loss{run="here",stage="rl"} 2.0' in scraped(port)
        with pytest.raises(ConfigError, match="choose another port"):
            open_sinks(tmp_path, config)
    assert not (tmp_path / "tensorboard").exists()
