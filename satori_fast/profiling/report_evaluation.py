# SPDX-License-Identifier: Apache-2.0
"""Charts of what the evaluation of each stage says, stage beside stage.

A chart is a title and a legend as they are, and data and layout for Plotly, whose names are escaped
because Plotly reads them as HTML. Not for curves over steps (`report_plots`) nor for computing what
is shown (`evaluation.analysis`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from satori_fast.profiling.report_plots import SERIES_COLOURS

Chart = dict[str, Any]
Stage = Mapping[str, Any]

_SHARE = {"tickformat": ".0%", "rangemode": "tozero"}
_CATEGORY = {"type": "category"}

# What became of the first answer that a response reflected on: key, legend, colour.
CHANGES = (
    ("right_unchanged", "right, kept", "#3d9480"),
    ("wrong_to_right", "wrong to right", "#9dd0c3"),
    ("right_to_wrong", "right to wrong", "#b8433c"),
    ("wrong_to_wrong", "wrong to another wrong", "#e6ad80"),
    ("wrong_unchanged", "wrong, kept", "#d3d8e0"),
)
VERDICTS = (
    ("error_recall", "num_on_wrong", "wrong answers changed", "#9dd0c3"),
    ("right_kept", "num_on_right", "right answers kept", "#3d9480"),
)
GROUPINGS = (
    ("by_level", "Accuracy by difficulty", "level"),
    ("by_earlier", "Accuracy by how many earlier stages solved the problem", "earlier stages"),
    ("by_reflections", "Accuracy by reflections in the answer", "reflections"),
)


def stage_charts(stages: Sequence[Stage]) -> list[Chart]:
    """Charts of the entries of analysis.json. Left out: what no stage has, and groups where there
    is only one to compare."""
    colours = {
        stage["stage"]: SERIES_COLOURS[i % len(SERIES_COLOURS)] for i, stage in enumerate(stages)
    }
    charts = [_changes_chart(stages), _verdict_chart(stages), _length_chart(stages, colours)]
    charts += [_groups_chart(stages, *grouping, colours=colours) for grouping in GROUPINGS]
    return [chart for chart in charts if chart["data"]]


def _changes_chart(stages: Sequence[Stage]) -> Chart:
    reflected = [s for s in stages if s["changes"]["num_reflected"]]
    names = [f"{escape(s['stage'])}<br>n={s['changes']['num_reflected']}" for s in reflected]
    traces = []
    for key, legend, colour in CHANGES if reflected else ():
        counts = [s["changes"][key] for s in reflected]
        totals = [s["changes"]["num_reflected"] for s in reflected]
        bar = {
            "type": "bar",
            "x": names,
            "y": [_short(n / total) for n, total in zip(counts, totals, strict=True)],
            "text": [f"{n} of {total}" for n, total in zip(counts, totals, strict=True)],
        }
        traces.append((legend, colour, bar))
    title = "What became of answers that were reflected on"
    axis = {"tickformat": ".0%", "range": [0, 1]}
    return _chart(title, traces, barmode="stack", yaxis=axis, xaxis=_CATEGORY)


def _verdict_chart(stages: Sequence[Stage]) -> Chart:
    traces = []
    for key, count, legend, colour in VERDICTS:
        judged = [s for s in stages if s["verdicts"][key] is not None]
        points = [(s["verdicts"][key], s["verdicts"][count]) for s in judged]
        if judged:
            bar = {"type": "bar", "x": [escape(s["stage"]) for s in judged], **_shares(points)}
            traces.append((legend, colour, bar))
    title = "How well reflections judge"
    return _chart(title, traces, barmode="group", yaxis=_SHARE, xaxis=_CATEGORY)


def _length_chart(stages: Sequence[Stage], colours: Mapping[str, str]) -> Chart:
    traces = []
    for stage in stages:
        if stage["by_length"]:
            curve = {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [_short(group["mean"]) for group in stage["by_length"]],
                **_accuracies(stage["by_length"], "tokens"),
            }
            traces.append((stage["stage"], colours[stage["stage"]], curve))
    title = "Accuracy against response length, tokens"
    return _chart(title, traces, yaxis=_SHARE, xaxis={"rangemode": "tozero"})


def _groups_chart(
    stages: Sequence[Stage], key: str, title: str, unit: str, *, colours: Mapping[str, str]
) -> Chart:
    compared = [stage for stage in stages if len(stage[key]) > 1]
    traces = []
    for stage in compared:
        labels = [escape(group["label"]) for group in stage[key]]
        bar = {"type": "bar", "x": labels, **_accuracies(stage[key], unit)}
        traces.append((stage["stage"], colours[stage["stage"]], bar))
    # The order of the longest list, which the others are parts of.
    labels = max(([g["label"] for g in stage[key]] for stage in compared), key=len, default=[])
    axis = {**_CATEGORY, "categoryarray": [escape(label) for label in labels]}
    return _chart(title, traces, barmode="group", yaxis=_SHARE, xaxis=axis)


def _accuracies(groups: Sequence[Mapping[str, Any]], unit: str) -> dict[str, Any]:
    """y, its error bars and what is shown at the pointer, for groups of answers."""
    return {
        "y": [_short(group["accuracy"]) for group in groups],
        "error_y": _bars([group["standard_error"] for group in groups]),
        "text": [f"{escape(g['label'])} {unit}: {g['count']} answers" for g in groups],
    }


def _shares(points: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """The same for shares of so many."""
    return {
        "y": [_short(share) for share, _ in points],
        "error_y": _bars([(p * (1 - p) / n) ** 0.5 for p, n in points]),
        "text": [f"of {n} reflections" for _, n in points],
    }


def _bars(errors: Sequence[float]) -> dict[str, Any]:
    array = [_short(e) for e in errors]
    return {"type": "data", "array": array, "thickness": 1, "width": 3, "color": "#5d6778"}


def _chart(title: str, traces: Sequence[tuple[str, str, dict[str, Any]]], **layout: Any) -> Chart:
    """`traces`: what the legend calls each, its colour, and what Plotly draws."""
    data = []
    for legend, colour, trace in traces:
        style: dict[str, Any] = {"marker": {"color": colour}}
        if trace["type"] == "scatter":
            style["line"] = {"color": colour, "width": 2}
        else:
            style["textposition"] = "none"
        data.append({"name": escape(legend), **trace, **style})
    keys = [{"label": legend, "colour": colour} for legend, colour, _ in traces]
    return {"title": title, "legend": keys, "data": data, "layout": layout}


def _short(value: float) -> float:
    """Six digits: nobody sees more."""
    return float(f"{value:.6g}")
