# SPDX-License-Identifier: Apache-2.0
"""The table of an ablation: estimates over tunings, pairs, the noise of a run, what was predicted.

What is independent is a tuning: runs that started from it are averaged first, errors and intervals
are over tunings, and what its runs differ by is the noise of a run.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.ablations.runs import Arm, Entry, Groups
from satori_fast import __version__
from satori_fast.profiling.device import describe_device
from satori_fast.profiling.seed_table import interval_text, points
from satori_fast.profiling.statistics import (
    estimate,
    group_means,
    noise_of_a_run,
    paired_estimate,
)

FIELDS = (
    "late_accuracy",
    "late_evaluations",
    "accuracy",
    "wrong_to_right",
    "right_to_wrong",
    "reflections_per_answer",
    "mean_response_tokens",
)
# The entries of a row, tuning by tuning.
BySeed = dict[int, Sequence[Entry]]
# Compared pair by pair; shares.
ACCURACIES = ("late_accuracy", "accuracy")
# Two runs agree in a gradient up to rounding.
_ROUNDING = 1e-4


def write_table(
    path: Path,
    module: str,
    rows: Mapping[str, Groups],
    *,
    arms: Mapping[str, Arm],
    seeds: Sequence[int],
    fields: Sequence[str] = FIELDS,
    again: Mapping[str, str] | None = None,
    extend: bool = False,
) -> None:
    """The result file and the printed table.

    rows:   of each row the entries of its runs, tuning by tuning in the order of `seeds`.
    arms:   what is said of a row; one may be missing.
    fields: of an entry, a column each; None where a row has none.
    again:  rows that repeat another one with other random numbers: their pairs are noise as well.
    extend: keep what the file has of other rows and other seeds.
    """
    found: dict[str, BySeed] = {
        name: dict(zip(seeds, groups, strict=True)) for name, groups in rows.items()
    }
    num_problems = next(iter(rows.values()))[0][0]["num_problems"]
    if extend and path.exists():
        found = _extended(json.loads(path.read_text()), found, num_problems)
    table = {name: _row(name, found, arms.get(name, Arm()), fields) for name in found}
    result = {
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "device": describe_device(),
        "version": __version__,
        "num_problems": num_problems,
        "seeds": sorted({seed for by_seed in found.values() for seed in by_seed}),
        "noise_of_a_run": _noise(found, fields, again or {}),
        "arms": table,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    for name, row in table.items():
        print("\n".join(_lines(name, row)))
    noise = {name: value for name, value in result["noise_of_a_run"].items() if name in ACCURACIES}
    for name, value in noise.items():
        print(f"standard deviation of a repeated run, {name}: {points(value)} points")


def _extended(
    record: Mapping[str, Any], found: Mapping[str, BySeed], num_problems: int
) -> dict[str, BySeed]:
    """Rows of an earlier record, and of now where both have a seed. What a record does not keep of
    a run, its gradients, is missing. ValueError for one of other problems."""
    if record["num_problems"] != num_problems:
        raise ValueError(
            f"the record has {record['num_problems']} problems, these runs {num_problems}: name "
            "another --output"
        )
    rows: dict[str, BySeed] = {}
    for name, row in record["arms"].items():
        cells = {field: cell["values"] for field, cell in row.items() if "values" in (cell or ())}
        rows[name] = {
            seed: [
                {field: values[place][run] for field, values in cells.items()}
                for run in range(len(next(iter(cells.values()))[place]))
            ]
            for place, seed in enumerate(row.get("seeds", record["seeds"]))
        }
    for name, by_seed in found.items():
        rows[name] = dict(sorted({**rows.get(name, {}), **by_seed}.items()))
    return rows


def first_difference(ours: Entry, theirs: Entry) -> int | None:
    """First step in which the gradients of two runs differ by more than rounding, None: in none.

    Both started from the same models with the same seed. Where an arm is the same algorithm by
    algebra, rounding makes two runs drift apart after some steps, and their first one is identical.
    """
    one, other = ours["gradients"], theirs["gradients"]
    for step in sorted({*one, *other}):
        a, b = one.get(step, {}), other.get(step, {})
        if a.keys() != b.keys() or not all(_agree(a[name], b[name]) for name in a):
            return step
    return None


def _agree(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=_ROUNDING, abs_tol=1e-12)


def _values(groups: Groups, field: str) -> list[list[float | None]]:
    return [[entry[field] for entry in group] for group in groups]


def _row(name: str, rows: Mapping[str, BySeed], arm: Arm, fields: Sequence[str]) -> dict[str, Any]:
    groups = list(rows[name].values())
    row: dict[str, Any] = {"prediction": arm.prediction, "seeds": list(rows[name])}
    for field in fields:
        values = _values(groups, field)
        noise = {"noise_of_a_run": noise_of_a_run(values), "values": values}
        row[field] = asdict(estimate(group_means(values))) | noise
    against = rows.get(arm.against or "", {})
    if against and against.keys() >= rows[name].keys():
        others = [against[seed] for seed in rows[name]]
        row["against"] = arm.against
        row["difference"] = {
            field: asdict(paired_estimate(_values(groups, field), _values(others, field)))
            for field in ACCURACIES
            if field in fields
        }
        if (steps := _first_differences(groups, others)) is not None:
            row["first_difference"] = steps
    return row


def _first_differences(groups: Groups, others: Groups) -> list[int | None] | None:
    """Of each pair of runs of the same stage; None where stages differ or kept no gradients."""
    pairs = [
        pair
        for ours, theirs in zip(groups, others, strict=True)
        for pair in zip(ours, theirs, strict=False)  # one may have been run once
    ]
    kept = all(a.get("gradients") and b.get("gradients") for a, b in pairs)
    if not kept or any(a["stage"] != b["stage"] for a, b in pairs):
        return None
    return [first_difference(a, b) for a, b in pairs]


def _noise(
    rows: Mapping[str, BySeed], fields: Sequence[str], again: Mapping[str, str]
) -> dict[str, float | None]:
    """Noise of a run in each field, over all rows."""
    groups = [group for name in rows if name not in again for group in _pooled(name, rows, again)]
    return {field: noise_of_a_run(_values(groups, field)) for field in fields}


def _pooled(name: str, rows: Mapping[str, BySeed], again: Mapping[str, str]) -> Groups:
    """Groups of a row, with the runs of the rows that repeat it."""
    twins = [rows[twin] for twin, of in again.items() if of == name and twin in rows]
    return [
        [*group, *chain(*(twin.get(seed, ()) for twin in twins))]
        for seed, group in rows[name].items()
    ]


def _lines(name: str, row: Mapping[str, Any]) -> list[str]:
    """A row as it is printed: shares in percent, with intervals over tunings."""
    cells = [field for field, cell in row.items() if isinstance(cell, dict) and "values" in cell]
    lines = [f"{name}: {row[cells[0]]['n']} tunings"]
    for field in cells:
        lines.append(f"    {field:24s}{_written(row[field], is_share=field in ACCURACIES)}")
    for field, cell in row.get("difference", {}).items():
        over = f"{field} over {row['against']}"
        lines.append(f"    {over:24s}  {_written(cell, is_share=True)} points, paired")
    if row["prediction"]:
        lines.append(f"    predicted: {row['prediction']}")
    if verdict := _verdict(row.get("first_difference")):
        lines.append(f"    {verdict} as {row['against']}")
    return lines


def _verdict(steps: Sequence[int | None] | None) -> str:
    """Whether two arms differ at all, of the steps in which their gradients first do."""
    if not steps or 0 in steps:
        return ""
    later = [step for step in steps if step is not None]
    if not later:
        return "the same gradients in every step"
    return f"identical first step, and the same gradients up to step {min(later)},"


def _written(cell: Mapping[str, Any], *, is_share: bool) -> str:
    if cell["mean"] is None:
        return "-"
    if is_share:
        text = f"{points(cell['mean'])} ({interval_text(cell['interval'])})"
        noise = cell.get("noise_of_a_run")
        return text if noise is None else f"{text}, noise of a run {points(noise)}"
    return f"{cell['mean']:.3f} +- {cell['standard_error'] or 0:.3f}"
