# SPDX-License-Identifier: Apache-2.0
"""The charts of the report: metrics over the steps of a run, and what the evaluation of each stage
says.

A chart is a title with data and layout for Plotly. Names that come from a run are escaped, because
Plotly reads them as HTML. Not for pages (`report`) nor for computing what is shown
(`evaluation.analysis`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

Chart = dict[str, Any]
Line = Mapping[str, Any]

_SHARE = {"tickformat": ".0%", "rangemode": "tozero"}
_TO_ZERO = {"rangemode": "tozero"}
# Titles, the metrics that belong under each, and the axis of their values.
STEP_CHARTS: tuple[tuple[str, Callable[[str], bool], Mapping[str, Any]], ...] = (
    ("Reward, term by term", lambda name: name.startswith("reward/") and "seconds" not in name, {}),
    ("Accuracy", lambda name: "accuracy" in name, _SHARE),
    ("Response length, tokens", lambda name: name.endswith("response_tokens"), _TO_ZERO),
    ("Reflections per answer", lambda name: name.endswith("reflections_per_answer"), _TO_ZERO),
    ("Answers changed by reflection", lambda name: "_to_" in name, _SHARE),
    ("Tokens per second", lambda name: name.endswith("tokens_per_s"), {"type": "log"}),
    ("Gradient norm", lambda name: name.endswith("grad_norm"), _TO_ZERO),
    ("Loss", lambda name: name.endswith("loss"), {}),
    (
        "Engine against trainer, nats",
        lambda name: name.endswith("logprob_abs_diff"),
        {"rangemode": "tozero", "exponentformat": "e"},
    ),
)
# A stage with a smaller share of an axis has no room for its name.
_NAMED_SHARE = 0.08

# What became of the first answer that a response reflected on: key, legend, colour.
CHANGES = (
    ("right_unchanged", "right, kept", "#2c8a3c"),
    ("wrong_to_right", "wrong to right", "#8fd19b"),
    ("right_to_wrong", "right to wrong", "#b3261e"),
    ("wrong_to_wrong", "wrong to another wrong", "#f0a35e"),
    ("wrong_unchanged", "wrong, kept", "#c9ced8"),
)
VERDICTS = (
    ("error_recall", "num_on_wrong", "wrong answers changed", "#3867a6"),
    ("right_kept", "num_on_right", "right answers kept", "#2c8a3c"),
)
GROUPINGS = (
    ("by_level", "Accuracy by difficulty", "level"),
    ("by_earlier", "Accuracy by how many earlier stages solved the problem", "earlier stages"),
    ("by_reflections", "Accuracy by reflections in the answer", "reflections"),
)


def step_charts(lines: Sequence[Line]) -> list[Chart]:
    """Metrics over the lines of metrics.jsonl, the stages end to end.

    A chart has the steps that have one of its metrics: a stage that was evaluated once takes the
    room of one step. Left out are charts that no metric belongs to.
    """
    all_names = sorted({n for line in lines for n, value in line.items() if _is_number(value)})
    charts: list[Chart] = []
    for title, belongs, axis in STEP_CHARTS:
        names = [name for name in all_names if belongs(name)]
        own = [line for line in lines if any(name in line for name in names)]
        traces = [_curve(own, name) for name in names]
        if traces:
            charts.append(_chart(title, traces, yaxis=axis, **_stage_axis(own)))
    return charts


def _stage_axis(lines: Sequence[Line]) -> dict[str, Any]:
    """An axis of steps that names the stages, with a dotted line between them."""
    starts = [i for i, line in enumerate(lines) if i == 0 or line["stage"] != lines[i - 1]["stage"]]
    stops = [*starts[1:], len(lines)]
    spans = [
        (start, stop)
        for start, stop in zip(starts, stops, strict=True)
        if stop - start >= _NAMED_SHARE * len(lines)
    ]
    dots = {"dash": "dot", "width": 1}
    border = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": dots}
    return {
        "xaxis": {
            "range": [0.5, len(lines) + 0.5],
            "tickvals": [(start + stop + 1) / 2 for start, stop in spans],
            "ticktext": [escape(lines[start]["stage"]) for start, _ in spans],
            "showgrid": False,
        },
        "shapes": [border | {"x0": i + 0.5, "x1": i + 0.5} for i in starts[1:]],
    }


def stage_charts(stages: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """What the entries of analysis.json say, stage beside stage. Left out: what no stage has, and
    groups where there is only one to compare."""
    charts = [_changes_chart(stages), _verdict_chart(stages), _length_chart(stages)]
    charts += [_groups_chart(stages, *grouping) for grouping in GROUPINGS]
    return [chart for chart in charts if chart["data"]]


def _changes_chart(stages: Sequence[Mapping[str, Any]]) -> Chart:
    reflected = [s for s in stages if s["changes"]["num_reflected"]]
    names = [f"{escape(s['stage'])}<br>n={s['changes']['num_reflected']}" for s in reflected]
    traces = []
    for key, legend, colour in CHANGES if reflected else ():
        counts = [s["changes"][key] for s in reflected]
        totals = [s["changes"]["num_reflected"] for s in reflected]
        traces.append(
            {
                "type": "bar",
                "name": legend,
                "x": names,
                "y": [_short(n / total) for n, total in zip(counts, totals, strict=True)],
                "text": [f"{n} of {total}" for n, total in zip(counts, totals, strict=True)],
                "textposition": "none",
                "marker": {"color": colour},
            }
        )
    title = "What became of answers that were reflected on"
    axis = {"tickformat": ".0%", "range": [0, 1]}
    return _chart(title, traces, barmode="stack", yaxis=axis, xaxis={"type": "category"})


def _verdict_chart(stages: Sequence[Mapping[str, Any]]) -> Chart:
    traces = []
    for key, count, legend, colour in VERDICTS:
        judged = [s for s in stages if s["verdicts"][key] is not None]
        points = [(s["verdicts"][key], s["verdicts"][count]) for s in judged]
        if judged:
            traces.append(
                {
                    "type": "bar",
                    "name": legend,
                    "x": [escape(s["stage"]) for s in judged],
                    "textposition": "none",
                    "marker": {"color": colour},
                    **_shares(points),
                }
            )
    layout = {"barmode": "group", "yaxis": _SHARE, "xaxis": {"type": "category"}}
    return _chart("How well reflections judge", traces, **layout)


def _length_chart(stages: Sequence[Mapping[str, Any]]) -> Chart:
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": escape(stage["stage"]),
            "x": [_short(group["mean"]) for group in stage["by_length"]],
            **_accuracies(stage["by_length"], "tokens"),
        }
        for stage in stages
        if stage["by_length"]
    ]
    title = "Accuracy against response length, tokens"
    return _chart(title, traces, yaxis=_SHARE, xaxis=_TO_ZERO)


def _groups_chart(stages: Sequence[Mapping[str, Any]], key: str, title: str, unit: str) -> Chart:
    compared = [stage for stage in stages if len(stage[key]) > 1]
    traces = [
        {
            "type": "bar",
            "name": escape(stage["stage"]),
            "x": [escape(group["label"]) for group in stage[key]],
            "textposition": "none",
            **_accuracies(stage[key], unit),
        }
        for stage in compared
    ]
    # The order of the longest list, which the others are parts of.
    labels = max(([g["label"] for g in stage[key]] for stage in compared), key=len, default=[])
    axis = {"type": "category", "categoryarray": [escape(label) for label in labels]}
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
    return {"type": "data", "array": [_short(e) for e in errors], "thickness": 1, "width": 3}


def _curve(lines: Sequence[Line], name: str) -> dict[str, Any]:
    """One metric over the lines; a null (between stages, too) interrupts the curve."""
    x, y, text = [], [], []
    stage = None
    for i, line in enumerate(lines):
        if name not in line:
            continue
        if stage not in (None, line["stage"]):
            x, y, text = [*x, None], [*y, None], [*text, None]
        stage = line["stage"]
        x.append(i + 1)
        y.append(None if line[name] is None else _short(line[name]))
        text.append(escape(f"{line['stage']} step {line['step']}"))
    mode = "lines+markers" if len(x) < 40 else "lines"
    return {"name": escape(name), "x": x, "y": y, "text": text, "mode": mode}


def _chart(title: str, traces: Sequence[Mapping[str, Any]], **layout: Any) -> Chart:
    return {"title": title, "data": list(traces), "layout": layout}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: float) -> float:
    """Six digits: nobody sees more, and the page holds thousands of numbers."""
    return float(f"{value:.6g}")
