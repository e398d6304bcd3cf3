# SPDX-License-Identifier: Apache-2.0
"""Runs of one config with several seeds: their names, NAME-seeds.json beside them, and its table.

Not for starting them (`stages.seed_runs`), their curves (`report_compare`) or the arithmetic
(`statistics`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from satori_fast import __version__
from satori_fast.profiling.report_runs import RunRecord, formed, read_run
from satori_fast.profiling.statistics import estimate, late_mean
from satori_fast.profiling.summary import number
from satori_fast.storage import write_atomically

COLUMNS = (
    *("stage", "seeds", "accuracy", "standard deviation", "standard error", "95 % interval"),
    *("last evaluations", "seconds"),
)


def run_name(name: str, seed: int) -> str:
    """Name of the run of a seed: NAME-seed-K."""
    return f"{name}-seed-{seed}"


def table_path(output_dir: Path, name: str) -> Path:
    """Place of the table of a config's seeds, beside the run folders: NAME-seeds.json."""
    return output_dir / f"{name}-seeds.json"


def write_seed_table(output_dir: Path, name: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Write NAME-seeds.json about the runs that are finished; returns its content.

    name, version; seeds: all that were asked for; runs: folders of the finished ones, by seed;
    stages: as `stage_rows`; wall_s: of whole runs.
    """
    folders = {seed: output_dir / run_name(name, seed) for seed in seeds}
    runs = {k: read_run(folder) for k, folder in folders.items() if _is_finished(folder)}
    table = {
        "name": name,
        "version": __version__,
        "seeds": list(seeds),
        "runs": {str(seed): run.folder.name for seed, run in runs.items()},
        "stages": stage_rows(list(runs.values())),
        "wall_s": _row([run.wall_s for run in runs.values()]),
    }
    text = json.dumps(table, indent=2, allow_nan=False)
    write_atomically(table_path(output_dir, name), text + "\n")
    return table


def read_seeds(path: Path) -> list[int]:
    """Seeds that a NAME-seeds.json was asked for. ValueError when it is none."""
    return [int(seed) for seed in _read(path)["seeds"]]


def run_folders(path: Path) -> list[Path]:
    """Folders of the finished runs of a NAME-seeds.json. ValueError when it is none, or empty."""
    with formed(path):
        folders = [path.parent / name for name in _read(path)["runs"].values()]
    if not folders:
        raise ValueError(f"{path} has no finished run yet")
    return folders


def stage_rows(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Estimates of each stage over runs that are independent of each other, JSON-able.

    stage, num_problems; accuracy: of the last evaluation; late_accuracy: mean of the last five, of
    what is there, `evaluations` says of how many in each run; wall_s. Each has the fields of
    `statistics.Estimate` and the `values` of the runs, null where one has none.
    """
    found = [{str(entry["stage"]): entry for entry in run.summary["stages"]} for run in runs]
    rows: list[dict[str, Any]] = []
    for stage in dict.fromkeys(stage for own in found for stage in own):
        entries = [own.get(stage, {}) for own in found]
        late = [late_mean(run.lines, stage) for run in runs]
        sizes = [entry["num_problems"] for entry in entries if entry.get("num_problems")]
        rows.append(
            {
                "stage": stage,
                "num_problems": sizes[0] if sizes else None,
                "accuracy": _row([entry.get("accuracy") for entry in entries]),
                "late_accuracy": _row([mean for mean, _ in late])
                | {"evaluations": [num for _, num in late]},
                "wall_s": _row([entry.get("wall_s") for entry in entries]),
            }
        )
    return rows


def stage_cells(row: Mapping[str, Any]) -> list[str]:
    """Cells of one of `stage_rows`, in the order of `COLUMNS`."""
    accuracy, late, seconds = row["accuracy"], row["late_accuracy"], row["wall_s"]
    numbers = sorted(set(late["evaluations"]))
    of = "-".join(str(num) for num in dict.fromkeys((numbers[0], numbers[-1]))) if numbers else "0"
    return [
        str(row["stage"]),
        str(max(accuracy["n"], seconds["n"])),
        points(accuracy["mean"]),
        points(accuracy["standard_deviation"]),
        points(accuracy["standard_error"]),
        interval_text(accuracy["interval"]),
        "-" if late["mean"] is None else f"{points(late['mean'])} (of {of})",
        number(seconds["mean"], 1),
    ]


def print_seed_table(table: Mapping[str, Any], console: Console) -> None:
    """Print a row per stage, in percent and points; a dash where there is no such number."""
    seconds = number(table["wall_s"]["mean"], 0)
    title = f"{table['name']}: {len(table['runs'])} seeds, {seconds} s a run; accuracy in percent"
    shown = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        shown.add_column(Text(column), justify="left" if column == "stage" else "right")
    for row in table["stages"]:
        shown.add_row(*map(Text, stage_cells(row)))
    console.print(shown)


def points(share: float | None) -> str:
    """Write a share in percent, or a difference of shares in points, without the unit."""
    return number(None if share is None else 100 * share, 1)


def interval_text(interval: Sequence[float] | None) -> str:
    """Write an interval of shares in percent: "12.3 to 45.6"."""
    return "-" if interval is None else f"{points(interval[0])} to {points(interval[1])}"


def _row(values: Iterable[float | None]) -> dict[str, Any]:
    values = list(values)
    return asdict(estimate(values)) | {"values": values}


def _is_finished(folder: Path) -> bool:
    return (folder / "summary.json").exists()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): remove or fix it") from error
    if not isinstance(content, dict) or not {"seeds", "runs"} <= content.keys():
        raise ValueError(
            f"{path} is no table of seeds: name the NAME-seeds.json of `run --seeds`, or folders"
        )
    return content
