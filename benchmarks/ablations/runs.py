# SPDX-License-Identifier: Apache-2.0
"""Runs of an ablation: each in a process of its own, several at a time, resumed where it was cut
off, never repeated. What they come to is `tables`.

`satori-fast run --seeds` starts one run after another, and every arm of a seed waits for a run of
that seed; so the runs are started here, and the statistics are the same (`profiling.statistics`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from satori_fast.profiling.metrics import read_metrics
from satori_fast.profiling.statistics import late_mean

Entry = dict[str, Any]
Stages = dict[str, Entry]
# The entries of an arm: of each tuning, those of the runs that started from it.
Groups = Sequence[Sequence[Entry]]
First = TypeVar("First")

OTHER_SEED = 10  # between the seeds of a run and of its repetition from the same models
# So that a stage of 24 steps ends with five evaluations of much the same policy.
EVALUATED = ("--reinforce.evaluate_every", "2")
# Gradients of a step: where two runs agree in them, they are one algorithm so far.
GRADIENTS = ("update/grad_norm", "critic/grad_norm")
_AT_WORK: defaultdict[Path, Lock] = defaultdict(Lock)


@dataclass(frozen=True, slots=True)
class Arm:
    """A row of a table.

    overrides:  what differs from the config.
    prediction: what was expected, written down before the runs.
    against:    the row that its accuracy is compared with, tuning by tuning.
    """

    overrides: tuple[str, ...] = ()
    prediction: str = ""
    against: str | None = None


def parser(
    description: str,
    arms: Collection[str],
    *,
    folder: str,
    output: str,
    seeds: Sequence[int] = (0, 1, 2),
    repeats: int | None = None,
) -> Any:
    """The options that every ablation has; repeats: how often an arm is repeated from the same
    models unless told otherwise, None where it is not."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help="of the tunings")
    made.add_argument("--arms", nargs="+", choices=arms, default=list(arms))
    made.add_argument("--folder", type=Path, default=Path(folder))
    made.add_argument("--output", type=Path, default=Path(output))
    text = "keep what the output has of other seeds and arms"
    made.add_argument("--extend", action="store_true", help=text)
    made.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    if repeats is not None:
        text = "runs of an arm from the models of a tuning, with other seeds"
        made.add_argument("--repeats", type=int, default=repeats, help=text)
    return made


def run(config: str, name: str, folder: Path, *overrides: str) -> Stages:
    """One run on one thread, which is at work once whoever asks for it; entries of its stages.

    An entry is that of summary.json with what else the last evaluation measured, `late_accuracy`,
    the mean of the last `late_evaluations` (five, or as many as there are), and `gradients`: by
    step, the norms of `GRADIENTS`.
    """
    summary = folder / name / "summary.json"
    command = [sys.executable, "-m", "satori_fast", "run", config, "--name", name]
    command += ["--output_dir", str(folder), "--parallel.num_threads", "1", *overrides]
    with _AT_WORK[summary]:
        if not summary.exists():
            if (folder / name / "config.toml").exists():
                command.append("--resume")
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{name}.log").open("a") as log:
                subprocess.run(command, check=True, stdout=log, stderr=log)
    entries = json.loads(summary.read_text())["stages"]
    lines = read_metrics(folder / name / "metrics.jsonl")
    return {
        stage: _last_evaluation(stage, lines) | entry | _from_lines(stage, lines)
        for entry in entries
        if (stage := entry["stage"])
    }


def _last_evaluation(stage: str, lines: Sequence[Mapping[str, Any]]) -> Entry:
    last: Mapping[str, Any] = {}
    for line in lines:
        if line["stage"] == stage and "eval/accuracy" in line:
            last = line
    return {
        name.removeprefix("eval/"): value
        for name, value in last.items()
        if name.startswith("eval/")
    }


def _from_lines(stage: str, lines: Sequence[Mapping[str, Any]]) -> Entry:
    late, number = late_mean(lines, stage)
    gradients = {
        line["step"]: norms
        for line in lines
        if line["stage"] == stage
        and (norms := {name: line[name] for name in GRADIENTS if name in line})
    }
    return {"late_accuracy": late, "late_evaluations": number, "gradients": gradients}


def run_arms(
    options: argparse.Namespace,
    first: Callable[[int, Path], First],
    arm: Callable[[str, int, Path], Entry],
) -> tuple[list[First], dict[str, Groups]]:
    """`first` of each seed, and every arm of a seed when its `first` is there; so many at a time as
    the options say."""
    return _run_all(options, first, lambda name, seed, folder: [arm(name, seed, folder)])


def run_repeats(
    options: argparse.Namespace,
    first: Callable[[int, Path], First],
    arm: Callable[[str, int, int, Path], Entry],
    *,
    once: Collection[str] = (),
) -> tuple[list[First], dict[str, Groups]]:
    """As `run_arms`, with `options.repeats` runs of each arm and seed, one after the other; one of
    those in `once`."""

    def repeated(name: str, seed: int, folder: Path) -> list[Entry]:
        number = 1 if name in once else options.repeats
        return [arm(name, seed, repeat, folder) for repeat in range(number)]

    return _run_all(options, first, repeated)


def _run_all(
    options: argparse.Namespace,
    first: Callable[[int, Path], First],
    group: Callable[[str, int, Path], list[Entry]],
) -> tuple[list[First], dict[str, Groups]]:
    with ThreadPoolExecutor(options.workers) as pool:
        begun = {seed: pool.submit(first, seed, options.folder) for seed in options.seeds}
        waiting: dict[str, list[Future[list[Entry]]]] = {name: [] for name in options.arms}
        for seed in options.seeds:
            begun[seed].result()
            for name in options.arms:
                waiting[name].append(pool.submit(group, name, seed, options.folder))
        arms: dict[str, Groups] = {
            name: [future.result() for future in runs] for name, runs in waiting.items()
        }
        return [future.result() for future in begun.values()], arms


def repeat_name(arm: str, seed: int, repeat: int) -> str:
    """Name of a run of an arm; the first one from the models of a seed is ARM-SEED."""
    return f"{arm}-{seed}-{repeat}" if repeat else f"{arm}-{seed}"


def from_models(model: Path, *, seed: int, stages: str = '["reinforce"]') -> tuple[str, ...]:
    """Overrides of a run that starts from another run's model, with that one's tokenizer."""
    start = ("--stages", stages, "--model.path", f"'{model}'")
    return (*start, "--seed", str(seed))


def model_of(run_folder: Path, role: str = "policy") -> Path:
    """The folder of a model that a run left, or ("base") began with."""
    state = json.loads((run_folder / "progress.json").read_text())
    return run_folder / state["models"][role]
