# SPDX-License-Identifier: Apache-2.0
"""Runs whole steps of one or several sides in turn and says what their medians come to.

Each side is a process of its own that has loaded its model and waits (`contestant`), so memory is
its own too. A race whose sides did unequal work is an error, not a result.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.peers.task import Task
from benchmarks.peers.workload import Workload, make_model

OURS, THEIRS = "satori", "trl"
EQUAL_FIELDS = ("prompts", "completion_tokens", "tokens", "optimizer_steps")


class Side:
    """A contestant's process as the driver sees it."""

    def __init__(self, name: str, folder: Path, core: str) -> None:
        command = [sys.executable, "-m", f"benchmarks.peers.{name}", str(folder), core]
        name = name.partition("_")[0]
        self.log = folder / f"{name}.log"
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            cwd=measure.ROOT,
        )
        self.name = name
        self.facts = self._read()

    def step(self) -> dict[str, Any]:
        self._write("step")
        return self._read()

    def close(self) -> None:
        if self._process.poll() is None:
            self._write("stop")
            self._process.wait(timeout=600)

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text().splitlines()[-15:])
            raise SystemExit(f"{self.name} ended before its answer:\n{tail}")
        return json.loads(line)


def race(
    workload: Workload,
    sides: Sequence[str] = (OURS, THEIRS),
    *,
    steps: int = 8,
    warmup: int = 2,
    core: str = "any",
) -> dict[str, Any]:
    """Figures of each side, and with both the ratios. core: the processor core of all sides."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workload.write(folder / "workload.json")
        make_model(workload, folder / "model")
        modules = [f"{side}_side" for side in sides]
        facts, all_records = in_turn(modules, folder, steps=range(warmup + steps), core=core)
    records = {side: each[warmup:] for side, each in all_records.items()}
    check_equal_work(list(records.values()))
    figures = {side: summarise(facts[side], records[side], workload) for side in sides}
    result = {"workload": vars(workload), "core": core, "sides": figures}
    return result | ({"ratios": ratios(figures, workload)} if len(figures) == 2 else {})


def in_turn(
    modules: Sequence[str], folder: Path, *, steps: range, core: str
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Let the sides step in turn; facts of each, and records of its steps.

    modules: of `benchmarks.peers`; a side is called by what stands before the underscore.
    """
    running: list[Side] = []
    records: dict[str, list[dict[str, Any]]] = {}
    try:
        running = [Side(module, folder, core) for module in modules]
        for number in steps:
            for side in running:
                record = side.step()
                records.setdefault(side.name, []).append(record)
                print(f"  {number} {side.name} {record['cpu_s']:.2f} s", file=sys.stderr)
    finally:
        for side in running:
            side.close()
    return {side.name: side.facts for side in running}, records


def check_equal_work(
    records: Sequence[Sequence[Mapping[str, Any]]], fields: Sequence[str] = EQUAL_FIELDS
) -> None:
    """The same prompts, tokens and optimizer steps on all sides, step by step; else no race."""
    for number, step in enumerate(zip(*records, strict=True)):
        for field in fields:
            values = [record[field] for record in step]
            if len(set(values)) > 1:
                raise SystemExit(f"unequal work in step {number}: {field} is {values}")


def summarise(
    facts: dict[str, Any], records: list[dict[str, Any]], workload: Workload | Task
) -> dict[str, Any]:
    """Medians over steps. Rates are tokens per CPU-second, on a GPU per second of wall time."""
    clock = "wall_s" if workload.device == "cuda" else "cpu_s"
    rates = {
        "step": [r["tokens"] / r[clock] for r in records],
        "rollout": [r["completion_tokens"] / r["stages"]["rollout"] for r in records],
        # Where a step is one update, neither side needs a pass of its own for them.
        "logprob": [n / r["stages"]["logprob"] for r in records if (n := r["scored_tokens"])],
        "update": [r["tokens"] / r["stages"]["update"] for r in records],
    }
    walls = [r["wall_s"] for r in records]
    peak = max(r["peak_bytes"] for r in records)
    return {
        **facts,
        "tokens_per_s": {
            k: measure.significant(statistics.median(v)) for k, v in rates.items() if v
        },
        "step_spread": measure.significant(spread(rates["step"]), 2),
        "wall_over_cpu": measure.significant(sum(walls) / sum(r["cpu_s"] for r in records)),
        "peak_mib": measure.significant(peak / 2**20),
        "step_peak_mib": measure.significant((peak - facts["now_bytes"]) / 2**20),
        "records": records,
    }


def spread(values: list[float]) -> float:
    """Distance between the quartiles over the median."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def ratios(sides: dict[str, dict[str, Any]], workload: Workload | Task) -> dict[str, Any]:
    ours, theirs = sides[OURS], sides[THEIRS]
    speed = {
        stage: measure.significant(rate / theirs["tokens_per_s"][stage])
        for stage, rate in ours["tokens_per_s"].items()
        if stage in theirs["tokens_per_s"]
    }
    memory = {
        field: measure.significant(ours[field] / theirs[field])
        for field in ("peak_mib", "step_peak_mib")
    }
    faster, smaller = workload.targets
    return {
        "tokens_per_s": speed,
        **memory,
        "targets": {
            "step": faster and {"at_least": faster, "met": speed["step"] >= faster},
            "peak_mib": smaller and {"at_most": smaller, "met": memory["peak_mib"] <= smaller},
        },
    }
