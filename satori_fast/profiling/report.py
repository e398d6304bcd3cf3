# SPDX-License-Identifier: Apache-2.0
"""report.html of a run folder: one offline file, made from what the run wrote.

Tables and samples always; charts when plotly (the `report` extra) is installed, because its script
is written into the page. Markup, style and script are in `templates`; what they show is made here,
in `report_plots` and in `report_samples`. Not for: the terminal's table (`summary`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from satori_fast.profiling.metrics import read_metrics
from satori_fast.profiling.report_plots import Line, stage_charts, step_charts
from satori_fast.profiling.report_samples import SEGMENT_KINDS, sample_card
from satori_fast.profiling.summary import COLUMNS, number, percent, stage_cells

_FILES = ("summary.json", "metrics.jsonl", "samples.jsonl")


def write_report_html(run_folder: str | Path, *, num_samples: int = 30) -> Path:
    """Write RUN_FOLDER/report.html from summary.json, analysis.json, metrics.jsonl, samples.jsonl.

    A missing file leaves its section out; `num_samples` are the first of samples.jsonl. Returns the
    path of the page. Raises ValueError when the folder holds no run.
    """
    folder = Path(run_folder)
    if not any((folder / name).exists() for name in _FILES):
        raise ValueError(f"{folder} holds no run: give a folder with summary.json or metrics.jsonl")
    summary = _read_json(folder / "summary.json")
    analysis = _read_json(folder / "analysis.json") or {"stages": []}
    lines = _read_lines(folder / "metrics.jsonl")
    samples = _read_lines(folder / "samples.jsonl")
    charts = {"stages": stage_charts(analysis["stages"]), "steps": step_charts(lines)}
    page = _render(
        title=folder.resolve().name if summary is None else summary["name"],
        summary=summary and _summary_table(summary),
        charts=charts,
        plotly=_plotly_script() if any(charts.values()) else "",
        spans=_span_rows(lines),
        kinds=SEGMENT_KINDS,
        samples=[sample_card(sample) for sample in samples[:num_samples]],
        num_samples=len(samples),
    )
    path = folder / "report.html"
    partial = path.with_suffix(".html.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def _summary_table(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Facts, a row of cells for each stage, and the accuracies for bars."""
    device = {k: v for k, v in summary["device"].items() if not k.endswith("_bytes")}
    facts = {"version": summary["version"], "wall_s": number(summary["wall_s"], 0), **device}
    return {
        "facts": [f"{key}: {value}" for key, value in facts.items()],
        "columns": COLUMNS,
        "rows": [stage_cells(stage) for stage in summary["stages"]],
        "accuracies": [
            {"stage": s["stage"], "text": percent(s["accuracy"]), "share": s["accuracy"]}
            for s in summary["stages"]
            if s["accuracy"] is not None
        ],
    }


def _span_rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Seconds of each span by stage, as a share of the wall time of the stage's steps."""
    rows: list[dict[str, Any]] = []
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        seconds: dict[str, float] = {}
        for line in own:
            for name, value in line.get("spans_s", {}).items():
                seconds[name] = seconds.get(name, 0.0) + (value or 0.0)
        wall_s = sum(line.get("step/seconds") or 0.0 for line in own) or sum(seconds.values())
        for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
            share = value / wall_s if wall_s > 0 else 0.0
            row = {"stage": stage, "span": name, "seconds": number(value, 1), "share": share}
            rows.append(row | {"text": percent(share)})
    return rows


def _render(**values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_template("report.html"))
    return template.render(style=_template("report.css"), script=_template("report.js"), **values)


def _template(name: str) -> str:
    folder = resources.files("satori_fast.profiling") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _plotly_script() -> str | None:
    """Plotly's own JavaScript, 5 MB; None where it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    return get_plotlyjs()


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return read_metrics(path) if path.exists() else []
