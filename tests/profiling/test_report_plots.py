# SPDX-License-Identifier: Apache-2.0
"""Charts as Plotly reads them: which there are, what they hold, and that names are escaped."""

import html

import pytest

from satori_fast.profiling.report_plots import CHANGES, stage_charts, step_charts

HOSTILE = "</script><img src=x onerror=alert(1)> & \"'"


def line(stage, step, **metrics):
    return {"stage": stage, "step": step, **metrics}


def group(label, count, accuracy, mean=None):
    error = (accuracy * (1 - accuracy) / count) ** 0.5
    return {
        "label": label,
        "count": count,
        "accuracy": accuracy,
        "standard_error": error,
        "mean": mean,
    }


def analysis_entry(stage, *, reflected=10, levels=("1", "2")):
    """An entry of analysis.json. Half of the reflected answers were mended, the others kept."""
    half = reflected // 2
    changes = dict.fromkeys((key for key, _, _ in CHANGES), 0)
    changes |= {"wrong_to_right": half, "right_unchanged": half, "num_reflected": reflected}
    share = 0.75 if reflected else None
    return {
        "stage": stage,
        "changes": changes,
        "verdicts": {
            "num_on_wrong": half,
            "num_on_right": half,
            "error_recall": share,
            "right_kept": share,
        },
        "by_length": [group("5-9", 50, 0.9, mean=7.25), group("10-30", 50, 0.5, mean=18.5)],
        "by_level": [group(label, 50, 0.5) for label in levels],
        "by_earlier": [],
        "by_reflections": [group("0", 90, 0.5), group("1", 10, 0.6)],
        "correct": {"p0": True},
    }


def titles(charts):
    return [chart["title"] for chart in charts]


def test_curves_over_steps_are_sorted_into_charts():
    lines = [
        line("sft", 0, **{"update/loss": 2.0, "update/tokens_per_s": 1e4}),
        line("rl", 0, **{"reward/total": 0.5, "reward/rule": -0.5, "reward/seconds": 3.0}),
        line("rl", 1, **{"reward/total": 0.25, "eval/wrong_to_right": 0.1}),
    ]
    charts = step_charts(lines)
    assert titles(charts) == [
        "Reward, term by term",
        "Answers changed by reflection",
        "Tokens per second",
        "Loss",
    ]
    assert [trace["name"] for trace in charts[0]["data"]] == ["reward/rule", "reward/total"]
    assert charts[0]["data"][1]["x"] == [1, 2] and charts[0]["data"][1]["y"] == [0.5, 0.25]
    assert charts[0]["data"][1]["text"] == ["rl step 0", "rl step 1"]
    assert charts[2]["layout"]["yaxis"]["type"] == "log"
    assert step_charts([]) == []


def test_stages_are_named_where_there_is_room_and_parted_by_lines():
    lines = [line("sft", step, loss=1.0) for step in range(40)]
    lines += [line("rl", 0, loss=1.0), line("rl", 1, reward=1.0)]
    lines += [line("sft_2", step, loss=1.0) for step in range(10)]
    (chart,) = step_charts(lines)
    axis, shapes = chart["layout"]["xaxis"], chart["layout"]["shapes"]
    assert axis["ticktext"] == ["sft", "sft_2"] and axis["tickvals"] == [20.5, 46.5]
    assert [shape["x0"] for shape in shapes] == [40.5, 41.5]
    assert axis["range"] == [0.5, 51.5]


def test_a_curve_breaks_between_stages_and_at_a_null():
    lines = [
        line("sft", 0, **{"eval/accuracy": 0.1}),
        line("rl", 0, **{"rollout/accuracy": 0.5}),
        line("rl", 1, **{"eval/accuracy": None}),
        line("rl", 2, **{"eval/accuracy": 0.123456789}),
    ]
    (chart,) = step_charts(lines)
    assert chart["data"][0]["x"] == [1, None, 3, 4]
    assert chart["data"][0]["y"] == [0.1, None, None, 0.123457]


def test_stages_stand_beside_each_other():
    charts = stage_charts([analysis_entry("sft"), analysis_entry("rl", reflected=40)])
    assert titles(charts) == [
        "What became of answers that were reflected on",
        "How well reflections judge",
        "Accuracy against response length, tokens",
        "Accuracy by difficulty",
        "Accuracy by reflections in the answer",
    ]
    changes, verdicts, lengths, levels, _ = charts
    assert [trace["name"] for trace in changes["data"]] == [legend for _, legend, _ in CHANGES]
    mended = changes["data"][1]
    assert mended["x"] == ["sft<br>n=10", "rl<br>n=40"] and mended["y"] == [0.5, 0.5]
    assert mended["text"] == ["5 of 10", "20 of 40"]
    totals = [sum(trace["y"][i] for trace in changes["data"]) for i in range(2)]
    assert totals == [1.0, 1.0] and changes["layout"]["barmode"] == "stack"
    assert verdicts["data"][0]["y"] == [0.75, 0.75]
    assert verdicts["data"][0]["error_y"]["array"][0] == pytest.approx(
        (0.1875 / 5) ** 0.5, rel=1e-5
    )
    assert [trace["name"] for trace in lengths["data"]] == ["sft", "rl"]
    assert lengths["data"][0]["x"] == [7.25, 18.5]
    assert lengths["data"][0]["text"][0] == "5-9 tokens: 50 answers"
    assert levels["layout"]["xaxis"]["categoryarray"] == ["1", "2"]


def test_what_there_is_nothing_to_compare_of_is_left_out():
    charts = stage_charts([analysis_entry("sft", reflected=0, levels=("1",))])
    assert titles(charts) == [
        "Accuracy against response length, tokens",
        "Accuracy by reflections in the answer",
    ]
    assert stage_charts([]) == []


def test_names_of_the_run_are_escaped():
    charts = stage_charts([analysis_entry(HOSTILE, levels=(HOSTILE, "2"))])
    charts += step_charts([line(HOSTILE, 0, **{f"{HOSTILE}loss": 1.0})])
    assert HOSTILE not in str(charts) and html.escape(HOSTILE) in str(charts)
