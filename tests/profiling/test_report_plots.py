# SPDX-License-Identifier: Apache-2.0
"""Columns of metrics, and which charts show them."""

import json

from satori_fast.profiling.report_plots import (
    CURVE_CHARTS,
    MAX_POINTS,
    SERIES_COLOURS,
    curve_charts,
    curves,
)
from satori_fast.profiling.report_runs import StageTime
from satori_fast.profiling.report_timeline import SPAN_COLOURS


def line(stage, step, **metrics):
    return {"stage": stage, "step": step, "spans_s": {}, **metrics}


def test_a_metric_is_a_column_with_an_entry_for_each_stage_that_has_it():
    lines = [
        line("sft", 1, **{"update/loss": 2.0, "step/seconds": 30.0}),
        line("sft", 2, **{"update/loss": 1.123456789, "eval/accuracy": 0.5, "step/seconds": 30.0}),
        line("rl", 1, **{"update/loss": None, "num_nonfinite": 1, "step/seconds": 60.0}),
    ]
    columns = curves(lines, [StageTime("sft", 0.0, 90.0, {}), StageTime("rl", 90.0, 60.0, {})])
    assert columns["stages"] == [
        {"name": "sft", "start": 0, "start_min": 0.0, "stop_min": 1.5},
        {"name": "rl", "start": 2, "start_min": 1.5, "stop_min": 2.5},
    ]
    assert columns["steps"] == [1, 2, 1]
    # Half a minute of the first stage passed before its steps.
    assert columns["minutes"] == [1.0, 1.5, 2.5]
    assert columns["metrics"]["update/loss"] == [[0, None, [2.0, 1.12346]], [1, None, [None]]]
    assert columns["metrics"]["eval/accuracy"] == [[0, [1], [0.5]]]
    assert "num_nonfinite" not in columns["metrics"] and "spans_s" not in columns["metrics"]
    assert curves([], [])["metrics"] == {}


def test_a_long_stage_has_a_point_for_several_steps():
    num_steps = 2 * MAX_POINTS + 1
    lines = [line("rl", i, **{"loss": float(i), "step/seconds": 1.0}) for i in range(num_steps)]
    lines[1]["loss"] = None
    columns = curves(lines, [])
    ((_, points, values),) = columns["metrics"]["loss"]
    assert points is None and len(values) <= MAX_POINTS
    # Means of what was finite, at the last step of each bucket.
    assert values[0] == 1.0 and columns["steps"][0] == 2
    assert columns["steps"][-1] == num_steps - 1


def some(names):
    """Metrics of one stage with one point each."""
    return {name: [[0, None, [1.0]]] for name in names}


def test_charts_are_those_that_have_a_metric():
    names = ["reward/rule", "reward/total", "reward/seconds", "update/mfu", "weird/metric"]
    charts = {chart["title"]: chart for chart in curve_charts(some(names))}
    assert list(charts) == ["Seconds", "Model FLOPs utilisation", "Reward, term by term"]
    terms = charts["Reward, term by term"]["curves"]
    assert [(c["metric"], c["label"]) for c in terms] == [
        ("reward/rule", "rule"),
        ("reward/total", "total"),
    ]
    assert charts["Model FLOPs utilisation"]["curves"][0]["label"] == "update"
    assert curve_charts({}) == []


def test_a_metric_without_a_value_has_no_curve_and_its_chart_is_hidden():
    metrics = some(["update/loss", "rollout/kept"])
    metrics |= {"critic/loss": [[0, None, [None, None]]], "update/entropy": [[1, [3], [None]]]}
    charts = {chart["title"]: chart for chart in curve_charts(metrics)}
    assert list(charts) == ["Samples that are learnt from", "Loss"]
    assert [c["metric"] for c in charts["Loss"]["curves"]] == ["update/loss"]


def test_a_kind_of_work_has_the_colour_of_the_timeline():
    names = ["rollout/completion_tokens_per_s", "update/tokens_per_s", "step/tokens_per_s"]
    (speed,) = curve_charts(some(names))
    colours = {c["metric"]: c["colour"] for c in speed["curves"]}
    assert colours["rollout/completion_tokens_per_s"] == SPAN_COLOURS["rollout"]
    assert colours["update/tokens_per_s"] == SPAN_COLOURS["update"]
    assert len(set(colours.values())) == 3
    names = ["rollout/accuracy", "rollout/accuracy_original", "eval/accuracy"]
    (accuracy,) = curve_charts(some(names))
    assert [c["colour"] for c in accuracy["curves"]] == list(SERIES_COLOURS[:3])


def test_every_chart_can_be_written_into_a_page():
    every = [name for chart in CURVE_CHARTS for name in chart.metrics]
    charts = curve_charts(some(name.replace("*", "update") for name in every))
    assert [c["title"].removesuffix(f", {c['unit']}") for c in charts] == [
        chart.title for chart in CURVE_CHARTS
    ]
    assert {"Memory of the host, GiB", "Power, watts"} <= {chart["title"] for chart in charts}
    assert json.loads(json.dumps(charts)) == charts
