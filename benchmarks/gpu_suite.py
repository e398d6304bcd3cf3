# SPDX-License-Identifier: Apache-2.0
"""Correctness and speed of the GPU kernels on one NVIDIA card, as one JSON file.

    python -m benchmarks.gpu_suite --output gpu.json      # from the root of the repository

Needs torch >= 2.11 (a CUDA build), triton >= 3.6, numpy, and nothing that is compiled here: the C++
extension may be missing. Taken up where they are installed: liger-kernel (a rival), pytest (the
tests marked `gpu`), nvidia-ml-py (clocks and power).

It takes at most 90 % of the free memory, changes no setting of the card, keeps to `--budget-s`, and
rewrites the file after each case, so that being killed loses one case. Without a card it says so
and fails; `--dry-run` lists the cases on any machine.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import supervisor
from benchmarks.gpu.case import SIZES, Case
from benchmarks.gpu.cases import DEADLINES, all_cases
from benchmarks.measure import RESULTS

BUDGET_SECONDS = 450.0
GIB = 2**30
# A case with one of these says that something of ours is wrong.
BAD = ("wrong", "failed", "crashed", "timeout")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    # Figures without their environment would mean nothing.
    wanted = f"^environment$|{options.only}"
    cases = [case for case in all_cases(options.scale) if re.search(wanted, case.name)]
    has_device = options.device == "cpu" or torch.cuda.is_available()
    if not has_device:
        print(
            "No CUDA device here: not measured are the GPU's correctness, "
            f"its speed and its memory ({len(cases)} cases)."
        )
    if options.dry_run:
        print("\n".join(map(describe, cases)))
        return 0
    if not has_device:
        return 2
    command = [sys.executable, "-u", "-m", "benchmarks.gpu.worker"]
    command += ["--device", options.device, "--scale", options.scale]
    record = run(cases, command, budget_s=options.budget_s, output=options.output)
    print("\n".join(table(record)))
    return 0 if all(entry["status"] not in BAD for entry in record["cases"]) else 1


def run(
    cases: Sequence[Case], command: Sequence[str], *, budget_s: float, output: Path | None
) -> dict[str, Any]:
    """Runs the cases in workers started by `command`, and keeps the record in `output`; None names
    the file after the device."""
    begin = time.monotonic()
    record: dict[str, Any] = {
        "name": "gpu_suite",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "budget_s": budget_s,
        "finished": False,
        "targets": [],
        "cases": [],
    }
    by_name = {case.name: case for case in cases}
    for answer in supervisor.run_all(cases, command, budget_s=budget_s, deadlines=DEADLINES):
        case = by_name[answer["case"]]
        entry = {"section": case.section, **answer}
        if case.shape:
            entry["shape"] = case.shape
        record["cases"].append(entry)
        record["targets"] = targets(record["cases"])
        record["elapsed_s"] = round(time.monotonic() - begin, 1)
        output = output or RESULTS / f"gpu_{_device_name(record)}.json"
        write(record, output)
        words = (f"{record['elapsed_s']:>6} s", f"{entry['status']:<13}", case.name)
        print("  ".join((*words, entry.get("reason", ""))), flush=True)
    record["finished"] = True
    if output is not None:
        write(record, output)
    return record


def targets(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is asked of `linear_policy_loss` beside what was measured; met is None if nothing was.

    Liger is the faster of its two losses. The memory target is one for 32,768 tokens.
    """
    found = []
    for entry in entries:
        name = entry["case"]
        if not name.startswith("linear_policy_loss_qwen"):
            continue
        rivals = entry.get("figures", {}).get("rivals", {})
        ours = rivals.get("ours", {})
        liger = [
            figure["over_ours"]
            for rival, figure in rivals.items()
            if rival.startswith("Liger") and "over_ours" in figure
        ]
        found.append(_target(name, "share of the 3-product floor", 0.85, ours.get("floor_share")))
        found.append(_target(name, "times as fast as Liger", 1.5, min(liger, default=None)))
        if entry.get("shape", {}).get("T") == 32_768:
            peak = ours.get("peak_bytes")
            gib = None if peak is None else peak / GIB
            found.append(
                _target(name, "peak GiB beyond inputs and gradients", 2.5, gib, below=True)
            )
    return found


def _target(
    case: str, what: str, goal: float, value: float | None, *, below: bool = False
) -> dict[str, Any]:
    met = None
    if value is not None:
        met = value < goal if below else value >= goal
    return {"case": case, "what": what, "target": goal, "measured": value, "met": met}


def table(record: Mapping[str, Any]) -> list[str]:
    """The figures of the record on one screen, targets last."""
    lines = [f"{record['elapsed_s']} s of {record['budget_s']:g} s"]
    for entry in record["cases"]:
        rivals = entry.get("figures", {}).get("rivals")
        if not rivals:
            continue
        lines.append(entry["case"])
        for name, figure in rivals.items():
            lines.append(f"    {name:<28} " + _rival_line(figure))
    for target in record["targets"]:
        verdict = {True: "met", False: "NOT met", None: "not measured"}[target["met"]]
        measured = "" if target["measured"] is None else f"{target['measured']:.3g}, "
        lines.append(
            f"{target['case']}: {target['what']}: {measured}target {target['target']:g}: {verdict}"
        )
    return lines


def _rival_line(figure: Mapping[str, Any]) -> str:
    if "ms" not in figure:
        return f"{figure['status']}: {figure['reason'][:80]}"
    parts = [f"{figure['ms']:>9.4g} ms"]
    for key, unit in (("tflops", "TFLOP/s"), ("gb_per_s", "GB/s"), ("over_ours", "x ours")):
        if key in figure:
            parts.append(f"{figure[key]:.4g} {unit}")
    if "floor_share" in figure:
        parts.append(f"{100 * figure['floor_share']:.0f} % of the floor")
    if figure.get("peak_bytes") is not None:
        parts.append(f"peak {figure['peak_bytes'] / GIB:.2f} GiB")
    return ", ".join(parts)


def describe(case: Case) -> str:
    """One line of `--dry-run`."""
    shape = " ".join(f"{name} {value}" for name, value in case.shape.items())
    return (
        f"{case.section:<12} {case.name:<48} {shape:<44} "
        f"{case.flops / 1e12:8.3f} TFLOP {case.num_bytes / 1e9:9.4f} GB, "
        f"needs {case.memory / GIB:5.1f} GiB"
    )


def write(record: Mapping[str, Any], output: Path) -> None:
    """Replaces the file in one step, so that a kill never leaves half of one."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    partial.replace(output)


def _device_name(record: Mapping[str, Any]) -> str:
    figures = record["cases"][0].get("figures", {})
    name = figures.get("device", {}).get("name", "unknown")
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu_DEVICE.json")
    parser.add_argument("--budget-s", type=float, default=BUDGET_SECONDS, help="seconds in all")
    parser.add_argument("--only", default="", help="regular expression on the names of cases")
    parser.add_argument("--dry-run", action="store_true", help="list the cases and measure nothing")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--scale", choices=tuple(SIZES), default="full", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
