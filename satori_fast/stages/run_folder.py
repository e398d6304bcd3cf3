# SPDX-License-Identifier: Apache-2.0
"""The files of a run folder that say whose it is and where the run stands. Not metrics or models.

`config.toml` is the resolved config that the folder belongs to; `progress.json` has the finished
stages with their entries of the summary, the models by role, and the seconds so far;
`analysis.json` has what the evaluation of each stage says beyond the scalars of its entry.
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from satori_fast.backbone import checkpoint
from satori_fast.config import Config, ConfigError, to_toml
from satori_fast.evaluation.evaluate import EvaluationResult
from satori_fast.profiling.metrics import MetricsWriter
from satori_fast.profiling.sinks import PrometheusSink, Sink, WandbSink

# Sections that change nothing of what a run computes: a resumed run may have others.
_WATCHING = ("profiling", "logging")


def open_folder(folder: Path, config: Config, *, resume: bool) -> None:
    """Make the run folder, or check that the one there belongs to this config, but for how the run
    is watched.

    A folder where an earlier run failed before it did anything is no run: it is made anew.
    """
    written = folder / "config.toml"
    text = to_toml(config)
    work = ["metrics.jsonl", "progress.json", "demonstrations.jsonl"]
    work += ["solutions/*.jsonl", "synthesis/*.jsonl"]
    began = any(path.stat().st_size for name in work for path in folder.glob(name))
    if written.exists() and not began and not resume:
        shutil.rmtree(folder)
    if not written.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(written, text)
        return
    if not resume:
        raise ConfigError(
            f"{folder} holds a run: pass --resume to continue it, or choose another --name"
        )
    if _settings(written.read_text(encoding="utf-8")) != _settings(text):
        raise ConfigError(f"{written} differs from this config: resume with the same settings")


def _settings(text: str) -> dict[str, Any]:
    """What a config.toml says of the run itself."""
    return {name: value for name, value in tomllib.loads(text).items() if name not in _WATCHING}


def read_progress(folder: Path) -> dict[str, Any]:
    """progress.json of a resumed run, empty before its first stage is done."""
    path = folder / "progress.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def open_writer(
    folder: Path, stages: Sequence[str], state: Mapping[str, Any], *, config: Config, resume: bool
) -> MetricsWriter:
    """The metrics files, cut back to the last checkpoint when the run is resumed, and what else
    `config.logging` sends metrics to.

    stages: names of all stages of the run, in order.
    """
    sinks, tensorboard = open_sinks(folder, config), config.logging.tensorboard
    if not resume:
        return MetricsWriter(folder, tensorboard=tensorboard, sinks=sinks)
    done = len(state.get("finished", []))
    stage = stages[min(done, len(stages) - 1)]
    latest = checkpoint.latest_checkpoint(folder / "checkpoints" / stage)
    step = -1 if latest is None else int(latest.name.removeprefix("step-")) - 1
    if done == len(stages):
        step = int(np.iinfo(np.int64).max)
    return MetricsWriter(folder, step, stage=stage, tensorboard=tensorboard, sinks=sinks)


def open_sinks(folder: Path, config: Config) -> list[Sink]:
    """Weights & Biases and Prometheus, where asked for; ConfigError when one cannot be had."""
    logging, sinks = config.logging, list[Sink]()
    try:
        if logging.prometheus_port:
            sinks.append(
                PrometheusSink(
                    config.name, port=logging.prometheus_port, address=logging.prometheus_address
                )
            )
        if logging.wandb:
            values = config.model_dump(mode="json")
            project = logging.wandb_project
            sinks.append(WandbSink(folder, project=project, name=config.name, config=values))
    except ValueError as error:
        for sink in sinks:
            sink.close()
        raise ConfigError(str(error)) from None
    return sinks


def record_analysis(folder: Path, stage: str, result: EvaluationResult) -> None:
    """Add a stage's entry to analysis.json: `evaluation.analysis.analyse` under the stage's name.

    A stage that was killed before progress.json named it as finished replaces its own entry.
    """
    path = folder / "analysis.json"
    known = json.loads(path.read_text(encoding="utf-8"))["stages"] if path.exists() else []
    entries = [entry for entry in known if entry["stage"] != stage]
    analysis = result.analysis(earlier=[entry["correct"] for entry in entries])
    entries.append({"stage": stage, **analysis})
    write_atomically(path, json.dumps({"stages": entries}) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
