# SPDX-License-Identifier: Apache-2.0
"""Whole steps of reinforcement learning, ours and TRL's, in turn on the same core.

    python -m benchmarks.peers --workloads W1 W2 W3         # CPU, about fifteen minutes
    python -m benchmarks.peers --workloads gpu-1.5b         # on a GPU

Each side is a process that has loaded its model and waits; they step A B A B ..., each step being
a rollout, rewards, old log-probs and two optimizer steps. Same model folder, prompts, completion
lengths, reward, loss and optimizer; `README.md` beside `benchmarks` says what is not the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.peers.workload import GPU_WORKLOADS, WORKLOADS, Workload, make_model

SIDES = ("satori", "trl")
ALL = WORKLOADS | GPU_WORKLOADS


class Side:
    """A contestant's process as the driver sees it."""

    def __init__(self, name: str, folder: Path, core: str) -> None:
        command = [sys.executable, "-m", f"benchmarks.peers.{name}_side", str(folder), core]
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
            self._process.wait(timeout=60)

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


def race(workload: Workload, *, steps: int, warmup: int, core: str) -> dict[str, Any]:
    """Records of both sides, and what their medians come to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workload.write(folder / "workload.json")
        make_model(workload, folder / "model")
        sides = [Side(side, folder, core) for side in SIDES]
        records: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        try:
            for number in range(warmup + steps):
                for side in sides:
                    record = side.step()
                    if number >= warmup:
                        records[side.name].append(record)
                    print(f"  {number} {side.name} {record['cpu_s']:.2f} s", file=sys.stderr)
        finally:
            for side in sides:
                side.close()
    check_equal_work(records)
    figures = {side.name: summarise(side.facts, records[side.name], workload) for side in sides}
    return {"workload": vars(workload), "sides": figures, "ratios": ratios(figures, workload)}


def check_equal_work(records: dict[str, list[dict[str, Any]]]) -> None:
    """The same prompts, tokens and optimizer steps, step by step; else there is no race."""
    for ours, theirs in zip(*records.values(), strict=True):
        for field in ("prompts", "completion_tokens", "tokens", "optimizer_steps"):
            if ours[field] != theirs[field]:
                raise SystemExit(
                    f"unequal work: {field} is {ours[field]} here, {theirs[field]} there"
                )


def summarise(
    facts: dict[str, Any], records: list[dict[str, Any]], workload: Workload
) -> dict[str, Any]:
    """Medians over steps. Rates are tokens per CPU-second, on a GPU per second of wall time."""
    clock = "wall_s" if workload.device == "cuda" else "cpu_s"
    rates = {
        "step": [r["tokens"] / r[clock] for r in records],
        "rollout": [r["completion_tokens"] / r["stages"]["rollout"] for r in records],
        "logprob": [r["tokens"] / r["stages"]["logprob"] for r in records],
        "update": [r["tokens"] / r["stages"]["update"] for r in records],
    }
    walls = [r["wall_s"] for r in records]
    peak = max(r["peak_bytes"] for r in records)
    return {
        **facts,
        "tokens_per_s": {k: measure.significant(statistics.median(v)) for k, v in rates.items()},
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


def ratios(sides: dict[str, dict[str, Any]], workload: Workload) -> dict[str, Any]:
    ours, theirs = (sides[name] for name in SIDES)
    speed = {
        stage: measure.significant(rate / theirs["tokens_per_s"][stage])
        for stage, rate in ours["tokens_per_s"].items()
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


def print_race(name: str, result: dict[str, Any]) -> None:
    print(f"{name}: {result['workload']['title']}")
    for side, figures in result["sides"].items():
        rates = "  ".join(f"{k} {v:,.0f}" for k, v in figures["tokens_per_s"].items())
        print(f"  {side:8s} {rates} tokens/s  peak {figures['peak_mib']:,.0f} MiB")
    speed = "  ".join(f"{k} {v:.2f}x" for k, v in result["ratios"]["tokens_per_s"].items())
    print(f"  ratio    {speed}  peak {result['ratios']['peak_mib']:.2f}")


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--workloads", nargs="+", choices=list(ALL), default=list(WORKLOADS))
    options.add_argument("--steps", type=int, default=8, help="measured steps of each side")
    options.add_argument("--warmup", type=int, default=2)
    options.add_argument("--core", default="1", help='processor core of both sides, or "any"')
    options.add_argument("--output", type=Path, default=measure.RESULTS / "peers.json")
    chosen = options.parse_args()
    results = {}
    for name in chosen.workloads:
        results[name] = race(ALL[name], steps=chosen.steps, warmup=chosen.warmup, core=chosen.core)
        print_race(name, results[name])
    document = {
        "command": " ".join(["python -m benchmarks.peers", *sys.argv[1:]]),
        **measure.environment(),
        "results": results,
    }
    chosen.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
