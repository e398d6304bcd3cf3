# SPDX-License-Identifier: Apache-2.0
"""Summary of a run: summary.json and the final table in the terminal.

Not for: measuring (`spans`, `device`), the files that grow during a run (`metrics`) or the page
(`report`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from satori_fast.storage import write_atomically

_STAGE_FIELDS = (
    "accuracy",
    "num_problems",
    "wrong_to_right",
    "right_to_wrong",
    "reflections_per_answer",
    "no_answer",
    "mean_response_tokens",
    "wall_s",
)
_SHARES = ("accuracy", "wrong_to_right", "right_to_wrong", "no_answer")
_NO_ANSWER = "no answer"
# Of the final table, and of the report's.
COLUMNS = (
    "stage",
    "accuracy",
    "wrong->right",
    "right->wrong",
    "reflections",
    _NO_ANSWER,
    "tokens",
    "seconds",
    "tokens/s",
)
_OF_BENCHMARKS = ("benchmark", "protocol", "accuracy", "interval", "questions")
_NARROW_COLUMNS = 9  # from here on there is one space between columns, for the same reason
# Headers that break in the terminal, so that the table fits into 80 columns.
_BROKEN = {
    "wrong->right": "wrong\n->right",
    "right->wrong": "right\n->wrong",
    "reflections": "reflec-\ntions",
    "problems": "prob-\nlems",
    "golds unread": "golds\nunread",
    "accuracy %": "accu-\nracy %",
    "strict %": "strict\n%",
    "lenient %": "leni-\nent %",
    "no box %": "no\nbox %",
}


def build_summary(
    name: str,
    version: str,
    *,
    device: Mapping[str, Any],
    wall_s: float,
    stages: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of summary.json; `stages` in the order they ran.

    A stage entry: stage (label); accuracy, greedy on held-out problems, wrong_to_right and
    right_to_wrong (shares of all answers, 0 to 1); no_answer (share of responses without a final
    answer); num_problems; reflections_per_answer; mean_response_tokens; wall_s; tokens_per_s (span
    -> rate, see `spans.token_rates`). What a stage does not have is null; extra keys are kept. NaN
    becomes null. Raises ValueError for an entry without label and for a share outside [0, 1].
    """
    entries = []
    for index, stage in enumerate(stages):
        if not stage.get("stage"):
            raise ValueError(f"stages[{index}] has no 'stage': give the stage its label")
        entry: dict[str, Any] = {"stage": stage["stage"], **dict.fromkeys(_STAGE_FIELDS)}
        entry |= {"tokens_per_s": {}, **_plain(stage)}
        for field in _SHARES:
            if entry[field] is not None and not 0 <= entry[field] <= 1:
                raise ValueError(
                    f"stages[{index}].{field} is {entry[field]}: give a share between 0 and 1"
                )
        entries.append(entry)
    summary = {"name": name, "version": version, "device": _plain(device), "wall_s": wall_s}
    return summary | {"stages": entries}


def write_summary(summary: Mapping[str, Any], path: str | Path) -> None:
    """Write summary.json."""
    text = json.dumps(summary, indent=2, allow_nan=False)
    write_atomically(Path(path), text + "\n")


def print_summary_table(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a row per stage; a dash where a stage has no such number."""
    device = summary["device"].get("name", "")
    title = f"{summary['name']}: {number(summary['wall_s'], 0)} s on {device}"
    left_out = COLUMNS.index(_NO_ANSWER)
    cells = [stage_cells(stage)[:-1] for stage in summary["stages"]]
    rows = [[*row[:left_out], *row[left_out + 1 :]] for row in cells]
    columns = [column for column in COLUMNS[:-1] if column != _NO_ANSWER]
    results = terminal_table(title, *without_empty_columns(columns, rows))
    spans = list(dict.fromkeys(span for s in summary["stages"] for span in s["tokens_per_s"]))
    spans.sort(key=lambda span: span == "step")  # the total last
    rates = [
        [str(s["stage"]), *(number(s["tokens_per_s"].get(span), 0) for span in spans)]
        for s in summary["stages"]
    ]
    console = Console() if console is None else console
    console.print(results)
    # A column of its own would not fit into 80 columns, and is empty in most runs.
    unanswered = [f"{row[0]} {row[left_out]}" for row in cells if row[left_out] != "-"]
    if unanswered:
        console.print(f"responses without an answer: {', '.join(unanswered)}", highlight=False)
    if asked := _benchmark_rows(summary["stages"]):
        console.print(terminal_table("benchmarks", ("stage", *_OF_BENCHMARKS), asked))
    if spans:
        shown = without_empty_columns(["stage", *spans], rates)
        console.print(terminal_table("tokens per second", *shown))


def _benchmark_rows(stages: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each benchmark of each stage that asked any."""
    rows: list[list[str]] = []
    for stage in stages:
        for name, figures in stage.get("benchmarks", {}).items():
            accuracy = figures["accuracy"]
            low, high = map(percent, accuracy["interval"])
            cells = [stage["stage"], name, figures["protocol"], percent(accuracy["value"])]
            rows.append([*cells, f"{low} to {high}", f"{accuracy['n']:,}"])
    return rows


def stage_cells(stage: Mapping[str, Any]) -> list[str]:
    """Cells of one stage, in the order of `COLUMNS`."""
    accuracy = percent(stage["accuracy"])
    if stage["accuracy"] is not None and stage["num_problems"] is not None:
        accuracy += f" (n={stage['num_problems']})"
    return [
        str(stage["stage"]),
        accuracy,
        percent(stage["wrong_to_right"]),
        percent(stage["right_to_wrong"]),
        number(stage["reflections_per_answer"], 2),
        percent(stage.get("no_answer") or None),  # older runs have none; 0 is no news
        number(stage["mean_response_tokens"], 1),
        number(stage["wall_s"], 1),
        "\n".join(f"{k} {number(v, 0)}" for k, v in stage["tokens_per_s"].items()) or "-",
    ]


def without_empty_columns(
    columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """A table without the columns whose every cell is a dash; the first column stays."""
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] != "-" for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """Write a duration for people, in two units: 0.04 s, 5.2 s, 3 min 20 s, 2 h 5 min, 1 d 3 h."""
    if seconds is None:
        return "-"
    if seconds < 59.5:
        digits = 0 if seconds >= 10 or seconds == 0 else 1 if seconds >= 0.1 else 2
        return f"{seconds:.{digits}f} s"
    minutes, left_s = divmod(round(seconds), 60)
    hours, left_min = divmod(minutes, 60)
    days, left_h = divmod(hours, 24)
    if days:
        first, second = f"{days} d", f" {left_h} h" if left_h else ""
    elif hours:
        first, second = f"{hours} h", f" {left_min} min" if left_min else ""
    else:
        first, second = f"{minutes} min", f" {left_s} s" if left_s else ""
    return first + second


def terminal_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table for the terminal; the first column holds names, the others figures."""
    room = 1 if len(columns) < _NARROW_COLUMNS else 0
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, room, 0, 0))
    for column in columns:
        justify = "left" if column == columns[0] else "right"
        table.add_column(Text(_BROKEN.get(column, column)), justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A copy fit for JSON: NaN and infinities are None, at any depth of mappings."""
    plain: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            plain[key] = _plain(value)
        else:
            bad = isinstance(value, float) and not math.isfinite(value)
            plain[key] = None if bad else value
    return plain
