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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from satori_fast.backbone import checkpoint
from satori_fast.config import Config, ConfigError, to_toml
from satori_fast.evaluation.evaluate import EvaluationResult
from satori_fast.profiling.metrics import MetricsWriter


def open_folder(folder: Path, config: Config, *, resume: bool) -> None:
    """Make the run folder, or check that the one there belongs to this config.

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
    if written.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{written} differs from this config: resume with the same settings")


def read_progress(folder: Path) -> dict[str, Any]:
    """progress.json of a resumed run, empty before its first stage is done."""
    path = folder / "progress.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def open_writer(
    folder: Path, stages: Sequence[str], state: Mapping[str, Any], *, resume: bool
) -> MetricsWriter:
    """The metrics files, cut back to the last checkpoint when the run is resumed.

    stages: names of all stages of the run, in order.
    """
    if not resume:
        return MetricsWriter(folder)
    done = len(state.get("finished", []))
    stage = stages[min(done, len(stages) - 1)]
    if done == len(stages):
        return MetricsWriter(folder, resume_from_step=np.iinfo(np.int64).max, stage=stage)
    latest = checkpoint.latest_checkpoint(folder / "checkpoints" / stage)
    step = -1 if latest is None else int(latest.name.removeprefix("step-")) - 1
    return MetricsWriter(folder, resume_from_step=step, stage=stage)


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
