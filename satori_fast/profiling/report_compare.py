# SPDX-License-Identifier: Apache-2.0
"""Several runs beside each other: their names, results, rates and the settings that differ; of
seeds of one config the mean as well.

Not for their curves (`report_plots`), their times (`report_timeline`) or the page (`report`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from satori_fast.profiling.report_runs import RunRecord, StageTime, flat_config
from satori_fast.profiling.statistics import estimate
from satori_fast.profiling.summary import (
    COLUMNS,
    number,
    stage_cells,
    without_empty_columns,
)

# Charts that the comparison opens with, as far as a run has the metric.
FIRST_METRICS = (
    "rollout/accuracy",
    "eval/accuracy",
    "reward/total",
    "rollout/mean_response_tokens",
    "rollout/reflections_per_answer",
    "step/tokens_per_s",
    "update/loss",
    "update/grad_norm",
    "rollout/logprob_abs_diff",
    "host/rss_bytes",
)
# Settings that say where and under which name a run lives, not what it is.
_PLACES = frozenset({"name", "output_dir"})


def distinct_names(runs: Sequence[RunRecord]) -> list[str]:
    """The runs' names; those that several have with as much of their folder as tells them apart.

    Raises ValueError for a folder that is given twice.
    """
    paths = [run.folder.resolve() for run in runs]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise ValueError(f"{runs[i].folder} is given twice: name each run folder once")
    names = []
    for run, path in zip(runs, paths, strict=True):
        rivals = [
            other
            for twin, other in zip(runs, paths, strict=True)
            if twin.name == run.name and other != path
        ]
        names.append(f"{run.name} ({_tail(path, rivals)})" if rivals else run.name)
    return names


def result_rows(runs: Sequence[RunRecord]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns of the final table (`summary.COLUMNS` without the first and the last, and without
    those that no run fills), and its cells: for each stage a row for each run that has it,
    {"stage", "rows": [{"run": number, "cells"}]}."""
    entries = [{str(s["stage"]): s for s in run.summary["stages"]} for run in runs]
    stages = list(dict.fromkeys(stage for own in entries for stage in own))
    places = [(s, i) for s in stages for i, own in enumerate(entries) if s in own]
    columns, rows = without_empty_columns(
        COLUMNS[:-1], [stage_cells(entries[i][stage])[:-1] for stage, i in places]
    )
    cells = dict(zip(places, (row[1:] for row in rows), strict=True))
    return columns[1:], [
        {
            "stage": stage,
            "rows": [{"run": i, "cells": own} for (name, i), own in cells.items() if name == stage],
        }
        for stage in stages
    ]


def rate_rows(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Tokens per second of each stage and span: of the first run as they are, of the others as
    ratios to it. A row is {"stage", "span", "cells": [{"text", "rate", "ratio"}]}."""
    rates = [
        {(str(s["stage"]), span): v for s in run.summary["stages"] for span, v in _rates(s)}
        for run in runs
    ]
    stages = dict.fromkeys(stage for own in rates for stage, _ in own)
    rows = []
    for stage in stages:
        spans = dict.fromkeys(span for own in rates for other, span in own if other == stage)
        for span in sorted(spans, key=lambda span: span == "step"):  # the total last
            values = [own.get((stage, span)) for own in rates]
            cells = [_rate_cell(v, values[0], first=i == 0) for i, v in enumerate(values)]
            rows.append({"stage": stage, "span": span, "cells": cells})
    return rows


def config_rows(runs: Sequence[RunRecord]) -> dict[str, list[dict[str, Any]]]:
    """Keys of config.toml that differ: "changed" those with several values, "missing" those that
    some runs do not have. A row is {"key", "values": text of each run}."""
    flat = [flat_config(run.config) for run in runs]
    keys = dict.fromkeys(key for own in flat for key in own if key not in _PLACES)
    rows: dict[str, list[dict[str, Any]]] = {"changed": [], "missing": []}
    for key in keys:
        values = [json.dumps(own[key], default=str) if key in own else "-" for own in flat]
        if len(set(values) - {"-"}) > 1:
            rows["changed"].append({"key": key, "values": values})
        elif "-" in values:
            rows["missing"].append({"key": key, "values": values})
    return rows


def differ_by_seed(settings: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    """Whether runs with these `config_rows` are seeds of one config: their mean says something."""
    return [row["key"] for row in settings["changed"]] == ["seed"] and not settings["missing"]


def mean_lines(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Lines as of metrics.jsonl with the mean of the runs at each step.

    A step has the metrics that every run has there, so that no curve jumps where a run ends. Values
    that were not finite are left out of a mean.
    """
    lines = [{(line["stage"], line["step"]): line for line in run.lines} for run in runs]
    means: list[dict[str, Any]] = []
    for place, first in lines[0].items():
        here = [own[place] for own in lines if place in own]
        if len(here) < len(runs):
            continue
        mean = {"stage": place[0], "step": place[1]}
        for metric, value in first.items():
            values = [line.get(metric, "") for line in here]
            if metric not in mean and all(_is_value(value) for value in values):
                mean[metric] = estimate(values).mean
        means.append(mean)
    return means


def mean_times(runs: Sequence[RunRecord]) -> list[StageTime]:
    """Mean times of the stages that every run has; without their spans."""
    times = [{time.stage: time for time in run.times} for run in runs]
    return [
        StageTime(
            stage,
            sum(own[stage].start_s for own in times) / len(times),
            sum(own[stage].wall_s for own in times) / len(times),
            {},
        )
        for stage in times[0]
        if all(stage in own for own in times)
    ]


def fact_lists(
    facts: Sequence[Sequence[tuple[str, str]]],
) -> tuple[list[tuple[str, str]], list[list[tuple[str, str]]]]:
    """Facts that are the same in all runs, and those of each run."""
    shared = [fact for fact in facts[0] if all(fact in own for own in facts)]
    return shared, [[fact for fact in own if fact not in shared] for own in facts]


def _tail(path: Path, rivals: Sequence[Path]) -> str:
    """The last folders of a path, as few as tell it from the others."""
    for length in range(1, len(path.parts) + 1):
        tail = path.parts[-length:]
        if all(other.parts[-length:] != tail for other in rivals):
            break
    return "/".join(part.strip("/") for part in tail)


def _is_value(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _rates(stage: dict[str, Any]) -> list[tuple[str, float]]:
    return [(span, rate) for span, rate in stage["tokens_per_s"].items() if rate is not None]


def _rate_cell(rate: float | None, base: float | None, *, first: bool) -> dict[str, Any]:
    ratio = None if first or rate is None or not base else rate / base
    text = number(rate, 0) if ratio is None else f"{number(ratio, 2)} x"
    return {"text": text, "rate": number(rate, 0), "ratio": ratio}
