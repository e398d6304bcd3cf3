# SPDX-License-Identifier: Apache-2.0
"""Charts and a table of what the evaluation of each stage says, stage beside stage.

A chart is a title and a legend as they are, and data and layout for Plotly, whose names are escaped
because Plotly reads them as HTML. Not for curves over steps (`report_plots`) nor for computing what
is shown (`evaluation.analysis`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from satori_fast.profiling.report_plots import SERIES_COLOURS
from satori_fast.profiling.summary import number, percent

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
LENGTHS = (
    ("by_level", "Response length by difficulty, tokens", "level"),
    (
        "by_earlier",
        "Response length by how many earlier stages solved the problem, tokens",
        "earlier stages",
    ),
)
TRIALS = (
    ("by_level", "Solutions in an answer by difficulty", "level"),
    (
        "by_earlier",
        "Solutions in an answer by how many earlier stages solved the problem",
        "earlier stages",
    ),
)
# Columns of the table of verifications: share, what it is of, head.
VERIFICATION = (
    ("verification_accuracy", "num_verifications", "verdicts true"),
    ("accuracy_on_right", "num_on_right", "on right solutions"),
    ("error_recall", "num_on_wrong", "on wrong solutions"),
    ("correct_precision", "num_accepted", 'true of "right"'),
    ("wrong_to_right", "num_first_wrong", "wrong -> right"),
    ("right_to_wrong", "num_first_right", "right -> wrong"),
)


def verification_table(stages: Sequence[Stage]) -> dict[str, Any]:
    """Table of what verifications are worth after each stage, from the entries of analysis.json.

    "columns", and "rows" of text, none where responses have no verifications. A share says what it
    is of.
    """
    # Entries that earlier versions wrote have no such key.
    blocks = [(s["stage"], s["verification"]) for s in stages if s.get("verification") is not None]
    rows = [
        [
            str(stage),
            *(_share_of(block[share], block[count]) for share, count, _ in VERIFICATION),
            number(block["trials"], 2),
        ]
        for stage, block in blocks
    ]
    return {"columns": ["stage", *(head for _, _, head in VERIFICATION), "solutions"], "rows": rows}


def _share_of(share: float | None, count: int) -> str:
    return "-" if share is None else f"{percent(share)} of {count:,}"


def stage_charts(stages: Sequence[Stage]) -> list[Chart]:
    """Charts of the entries of analysis.json. Left out: what no stage has, and groups where there
    is only one to compare."""
    colours = {
        stage["stage"]: SERIES_COLOURS[i % len(SERIES_COLOURS)] for i, stage in enumerate(stages)
    }
    charts = [_changes_chart(stages), _verdict_chart(stages), _attempts_chart(stages, colours)]
    charts += [_length_chart(stages, colours)]
    charts += [_groups_chart(stages, *grouping, colours=colours) for grouping in GROUPINGS]
    charts += [_tokens_chart(stages, *grouping, colours=colours) for grouping in LENGTHS]
    charts += [_trials_chart(stages, *grouping, colours=colours) for grouping in TRIALS]
    return [chart for chart in charts if chart["data"]]


def _changes_chart(stages: Sequence[Stage]) -> Chart:
    # Verifications have a table, where a share of changed answers is one of other answers.
    reflected = [
        s for s in stages if s["changes"]["num_reflected"] and s.get("verification") is None
    ]
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


def _attempts_chart(stages: Sequence[Stage], colours: Mapping[str, str]) -> Chart:
    # Entries that earlier versions wrote have no such key.
    rows = {stage["stage"]: stage.get("by_attempts", ()) for stage in stages}
    most = max(map(len, rows.values()), default=0)
    traces = []
    for name, own in rows.items():
        if most > 1 and own:
            curve = {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [row["attempts"] for row in own],
                "y": [_short(row["accuracy"]) for row in own],
                "error_y": _bars([row["standard_error"] for row in own]),
                "text": [f"{row['num_made']} answers with {row['attempts']}" for row in own],
            }
            traces.append((name, colours[name], curve))
    title = "Accuracy if each answer ended with its n-th attempt"
    # Attempts are whole numbers.
    axis = {"rangemode": "tozero", "dtick": 1 + most // 12}
    return _chart(title, traces, yaxis=_SHARE, xaxis=axis)


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
    groups = {stage["stage"]: stage[key] for stage in stages}
    bars = {name: _accuracies(own, unit) for name, own in groups.items()}
    return _bar_chart(title, groups, bars, colours=colours, yaxis=_SHARE)


def _tokens_chart(
    stages: Sequence[Stage], key: str, title: str, unit: str, *, colours: Mapping[str, str]
) -> Chart:
    groups = {
        # Entries that earlier versions wrote have no such key.
        stage["stage"]: [group for group in stage[key] if group.get("mean_tokens") is not None]
        for stage in stages
    }
    bars = {
        name: {
            "y": [_short(group["mean_tokens"]) for group in own],
            "error_y": _bars([group["tokens_standard_error"] for group in own]),
            "text": _hovers(own, unit),
        }
        for name, own in groups.items()
    }
    return _bar_chart(title, groups, bars, colours=colours, yaxis={"rangemode": "tozero"})


def _trials_chart(
    stages: Sequence[Stage], key: str, title: str, unit: str, *, colours: Mapping[str, str]
) -> Chart:
    blocks = {s["stage"]: s["verification"] for s in stages if s.get("verification") is not None}
    groups = {
        name: [group for group in block[key] if group["trials"] is not None]
        for name, block in blocks.items()
    }
    bars = {
        name: {
            "y": [_short(group["trials"]) for group in own],
            "error_y": _bars([group["trials_standard_error"] for group in own]),
            "text": [f"{escape(g['label'])} {unit}: {g['num_responses']} answers" for g in own],
        }
        for name, own in groups.items()
    }
    return _bar_chart(title, groups, bars, colours=colours, yaxis={"rangemode": "tozero"})


def _bar_chart(
    title: str,
    groups: Mapping[str, Sequence[Mapping[str, Any]]],
    bars: Mapping[str, dict[str, Any]],
    *,
    colours: Mapping[str, str],
    yaxis: dict[str, Any],
) -> Chart:
    """`groups` and `bars` of each stage; stages with only one group have nothing to compare."""
    compared = {
        stage: [group["label"] for group in own] for stage, own in groups.items() if len(own) > 1
    }
    traces = [
        (stage, colours[stage], {"type": "bar", "x": [escape(n) for n in names], **bars[stage]})
        for stage, names in compared.items()
    ]
    # The order of the longest list, which the others are parts of.
    labels = max(compared.values(), key=len, default=[])
    axis = {**_CATEGORY, "categoryarray": [escape(label) for label in labels]}
    return _chart(title, traces, barmode="group", yaxis=yaxis, xaxis=axis)


def _accuracies(groups: Sequence[Mapping[str, Any]], unit: str) -> dict[str, Any]:
    """y, its error bars and what is shown at the pointer, for groups of answers."""
    return {
        "y": [_short(group["accuracy"]) for group in groups],
        "error_y": _bars([group["standard_error"] for group in groups]),
        "text": _hovers(groups, unit),
    }


def _hovers(groups: Sequence[Mapping[str, Any]], unit: str) -> list[str]:
    return [f"{escape(g['label'])} {unit}: {g['count']} answers" for g in groups]


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
