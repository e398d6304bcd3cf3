# SPDX-License-Identifier: Apache-2.0
"""Runs of an ablation: each in a process of its own, resumed where it was cut off, never repeated;
and the table that they give."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from satori_fast import __version__
from satori_fast.profiling.device import describe_device

FIELDS = (
    "accuracy",
    "wrong_to_right",
    "right_to_wrong",
    "reflections_per_answer",
    "mean_response_tokens",
)
Entry = dict[str, Any]
Stages = dict[str, Entry]
First = TypeVar("First")
OfAnArm = TypeVar("OfAnArm")


def parser(
    description: str,
    arms: Sequence[str],
    *,
    folder: str,
    output: str,
    seeds: Sequence[int] = (0, 1, 2),
) -> Any:
    """The options that every ablation has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    made.add_argument("--arms", nargs="+", choices=arms, default=list(arms))
    made.add_argument("--folder", type=Path, default=Path(folder))
    made.add_argument("--output", type=Path, default=Path(output))
    made.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    return made


def run(config: str, name: str, folder: Path, *overrides: str) -> Stages:
    """One run on one thread; its stages' entries of summary.json by name."""
    summary = folder / name / "summary.json"
    command = [sys.executable, "-m", "satori_fast", "run", config, "--name", name]
    command += ["--output_dir", str(folder), "--parallel.num_threads", "1", *overrides]
    if not summary.exists():
        if (folder / name / "config.toml").exists():
            command.append("--resume")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.log").open("a") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
    return {entry["stage"]: entry for entry in json.loads(summary.read_text())["stages"]}


def run_arms(
    options: argparse.Namespace,
    first: Callable[[int, Path], First],
    arm: Callable[[str, int, Path], OfAnArm],
) -> tuple[list[First], dict[str, list[OfAnArm]]]:
    """`first` of each seed, and every arm of a seed when its `first` is there; so many at a time as
    the options say."""
    with ThreadPoolExecutor(options.workers) as pool:
        begun = {seed: pool.submit(first, seed, options.folder) for seed in options.seeds}
        waiting: dict[str, list[Future[OfAnArm]]] = {name: [] for name in options.arms}
        for seed in options.seeds:
            begun[seed].result()
            for name in options.arms:
                waiting[name].append(pool.submit(arm, name, seed, options.folder))
        arms = {name: [future.result() for future in runs] for name, runs in waiting.items()}
        return [future.result() for future in begun.values()], arms


def run_repeats(
    options: argparse.Namespace,
    first: Callable[[int, Path], First],
    arm: Callable[[str, int, int, Path], OfAnArm],
) -> tuple[list[First], dict[str, list[OfAnArm]]]:
    """As `run_arms`, with `options.repeats` runs of each arm and seed, one after the other."""

    def repeated(name: str, seed: int, folder: Path) -> list[OfAnArm]:
        return [arm(name, seed, repeat, folder) for repeat in range(options.repeats)]

    begun, arms = run_arms(options, first, repeated)
    return begun, {name: list(chain(*of_seeds)) for name, of_seeds in arms.items()}


def from_models(model: Path, *, seed: int, stages: str = '["reinforce"]') -> tuple[str, ...]:
    """Overrides of a run that starts from another run's model, with that one's tokenizer."""
    start = ("--stages", stages, "--model.path", f"'{model}'")
    return (*start, "--tokenizer.kind", "model", "--seed", str(seed))


def write_table(
    path: Path,
    module: str,
    rows: Mapping[str, Sequence[Entry]],
    *,
    seeds: Sequence[int],
    fields: Sequence[str] = FIELDS,
    paired_with: str | None = None,
    repeats: int = 1,
) -> None:
    """The result file and the printed table; `rows` has the entries of each arm's runs.

    fields:      of an entry, a column each; None where an arm has none.
    paired_with: an arm whose accuracy is taken from that of every other arm with as many runs, run
                 by run, "over_<arm>".
    repeats:     runs of an arm from the same models, one after the other, which differ by the noise
                 of a run.
    """
    table = {
        arm: {field: _statistics([entry[field] for entry in entries]) for field in fields}
        for arm, entries in rows.items()
    }
    own = table[paired_with]["accuracy"]["values"] if paired_with in table else []
    for arm, row in table.items():
        values = row["accuracy"]["values"]
        if arm != paired_with and len(values) == len(own):
            differences = [a - b for a, b in zip(values, own, strict=True)]
            row[f"over_{paired_with}"] = _statistics(differences)
    result = {
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "device": describe_device(),
        "version": __version__,
        "num_problems": next(iter(rows.values()))[0]["num_problems"],
        "seeds": list(seeds),
        "arms": table,
    }
    if repeats > 1:
        result["standard_deviation_of_a_run"] = {
            arm: {name: noise_of_a_run(cell["values"], repeats) for name, cell in row.items()}
            for arm, row in table.items()
            if len(rows[arm]) == repeats * len(seeds)
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    for arm, row in table.items():
        print(f"{arm:14s}", *(f"{name} {_written(cell)}" for name, cell in row.items()), sep="  ")


def noise_of_a_run(values: Sequence[float | None], repeats: int) -> float | None:
    """Standard deviation of runs that differ by chance alone: each `repeats` that follow each other
    started from the same models. None where a run has no value.

    >>> round(noise_of_a_run([0.5, 0.7, 0.7, 0.9], repeats=2), 4)
    0.1414
    """
    there = [value for value in values if value is not None]
    if len(there) < len(values):
        return None
    return float(np.sqrt(np.var(np.reshape(there, (-1, repeats)), axis=1, ddof=1).mean()))


def _statistics(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard error of what is there, and all values."""
    there = [value for value in values if value is not None]
    error = float(np.std(there, ddof=1) / np.sqrt(len(there))) if len(there) > 1 else None
    mean = float(np.mean(there)) if there else None
    return {"mean": mean, "standard_error": error, "values": list(values)}


def _written(cell: Mapping[str, Any]) -> str:
    if cell["mean"] is None:
        return "-"
    return f"{cell['mean']:.3f} +- {cell['standard_error'] or 0:.3f}"
