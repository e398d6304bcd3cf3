# SPDX-License-Identifier: Apache-2.0
"""Charts of the evaluations as Plotly reads them, with names that are escaped."""

import html

import pytest

from satori_fast.profiling.report_evaluation import CHANGES, stage_charts, verification_table

HOSTILE = "</script><img src=x onerror=alert(1)> & \"'"


def group(label, count, accuracy, mean=None, tokens=None):
    error = (accuracy * (1 - accuracy) / count) ** 0.5
    lengths = {"mean_tokens": tokens, "tokens_standard_error": 0.5}
    return {
        **({} if tokens is None else lengths),
        "label": label,
        "count": count,
        "accuracy": accuracy,
        "standard_error": error,
        "mean": mean,
    }


def attempts_of(*accuracies):
    """Rows of 100 answers, of which half goes on after each attempt."""
    return [
        {"attempts": k, "num_made": 100 >> (k - 1), "accuracy": a, "standard_error": 0.05}
        for k, a in enumerate(accuracies, start=1)
    ]


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
        "by_attempts": attempts_of(0.25, 0.5) if reflected else attempts_of(0.25),
        "by_level": [group(label, 50, 0.5, tokens=20.0 + n) for n, label in enumerate(levels)],
        "by_earlier": [],
        "by_reflections": [group("0", 90, 0.5), group("1", 10, 0.6)],
        "correct": {"p0": True},
    }


def trials_block(count, trials, label=None):
    """What verifications were worth in `count` answers: none of them began right."""
    block = {
        "trials": trials,
        "trials_standard_error": 0.125,
        "num_responses": count,
        "verification_accuracy": 2 / 3,
        "num_verifications": 1500,
        "accuracy_on_right": 1.0,
        "num_on_right": 500,
        "error_recall": 0.5,
        "num_on_wrong": 1000,
        "correct_precision": 0.5,
        "num_accepted": 1000,
        "wrong_to_right": 1 / 3,
        "num_first_wrong": count,
        "right_to_wrong": None,
        "num_first_right": 0,
    }
    return block if label is None else {"label": label, **block}


def verified_entry(stage, *, levels=("4", "6")):
    entry = analysis_entry(stage)
    entry["verdicts"] = dict.fromkeys(entry["verdicts"])
    by_level = [trials_block(50, 1.5 + n, label) for n, label in enumerate(levels)]
    block = {**trials_block(100, 2.0), "by_level": by_level, "by_earlier": []}
    return {**entry, "verification": block}


def titles(charts):
    return [chart["title"] for chart in charts]


def test_stages_stand_beside_each_other():
    charts = stage_charts([analysis_entry("sft"), analysis_entry("rl", reflected=40)])
    assert titles(charts) == [
        "What became of answers that were reflected on",
        "How well reflections judge",
        "Accuracy if each answer ended with its n-th attempt",
        "Accuracy against response length, tokens",
        "Accuracy by difficulty",
        "Accuracy by reflections in the answer",
        "Response length by difficulty, tokens",
    ]
    changes, verdicts, _, lengths, levels, *_ = charts
    assert [key["label"] for key in changes["legend"]] == [legend for _, legend, _ in CHANGES]
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


def test_a_stage_has_one_colour_in_all_charts():
    charts = stage_charts([analysis_entry("sft", reflected=0), analysis_entry("rl")])
    by_stage = [chart["legend"] for chart in charts if len(chart["legend"]) == 2][1:]
    assert len(by_stage) == 5 and all(legend == by_stage[0] for legend in by_stage)


def test_what_there_is_nothing_to_compare_of_is_left_out():
    charts = stage_charts([analysis_entry("sft", reflected=0, levels=("1",))])
    assert titles(charts) == [
        "Accuracy against response length, tokens",
        "Accuracy by reflections in the answer",
    ]
    assert stage_charts([]) == []


def test_attempts_are_a_line_for_each_stage():
    silent, tuned, trained = (analysis_entry(stage) for stage in ("base", "sft", "rl"))
    silent["by_attempts"] = []
    tuned["by_attempts"], trained["by_attempts"] = attempts_of(0.2), attempts_of(0.2, 0.3, 0.6)
    (chart,) = [c for c in stage_charts([silent, tuned, trained]) if "n-th" in c["title"]]
    point, line = chart["data"]
    assert (point["name"], point["x"], point["y"]) == ("sft", [1], [0.2])
    assert (line["name"], line["x"], line["y"]) == ("rl", [1, 2, 3], [0.2, 0.3, 0.6])
    assert line["text"][2] == "25 answers with 3" and line["error_y"]["array"] == [0.05] * 3
    # No stage made a second attempt: there is nothing to see.
    assert not [t for t in titles(stage_charts([silent, tuned])) if "n-th" in t]


def test_lengths_are_drawn_by_difficulty():
    charts = stage_charts([analysis_entry("sft", levels=("1",)), analysis_entry("rl")])
    (chart,) = [c for c in charts if c["title"] == "Response length by difficulty, tokens"]
    (bars,) = chart["data"]
    assert (bars["name"], bars["x"], bars["y"]) == ("rl", ["1", "2"], [20.0, 21.0])
    assert bars["error_y"]["array"] == [0.5, 0.5] and bars["text"][1] == "2 level: 50 answers"


def test_entries_of_earlier_versions_have_the_charts_that_they_can_have():
    entry = analysis_entry("sft")
    entry["by_level"] = [group(label, 50, 0.5) for label in ("1", "2")]
    del entry["by_attempts"]
    assert [t for t in titles(stage_charts([entry])) if "n-th" in t or "Response length" in t] == []


def test_verifications_have_a_row_for_each_stage():
    table = verification_table([analysis_entry("base"), verified_entry("rl")])
    assert dict(zip(table["columns"], table["rows"][0], strict=True)) == {
        "stage": "rl",
        "verdicts true": "66.7 % of 1,500",
        "on right solutions": "100.0 % of 500",
        "on wrong solutions": "50.0 % of 1,000",
        'true of "right"': "50.0 % of 1,000",
        "wrong -> right": "33.3 % of 100",
        "right -> wrong": "-",
        "solutions": "2.00",
    }
    nothing = {**analysis_entry("sft"), "verification": None}
    assert verification_table([nothing])["rows"] == [] and len(table["rows"]) == 1


def test_trials_are_drawn_by_difficulty():
    charts = stage_charts([analysis_entry("base"), verified_entry("sft"), verified_entry("rl")])
    (chart,) = [c for c in charts if c["title"] == "Solutions in an answer by difficulty"]
    assert [key["label"] for key in chart["legend"]] == ["sft", "rl"]
    first = chart["data"][0]
    assert (first["x"], first["y"]) == (["4", "6"], [1.5, 2.5])
    assert first["error_y"]["array"] == [0.125, 0.125]
    assert first["text"][0] == "4 level: 50 answers"
    # With one level there is nothing to compare. What reflections did is not said a second time.
    alone = titles(stage_charts([verified_entry("sft", levels=("4",))]))
    assert not [title for title in alone if "Solutions" in title or "reflected on" in title]


def test_names_are_escaped_where_plotly_reads_them():
    charts = stage_charts([analysis_entry(HOSTILE, levels=(HOSTILE, "2"))])
    for chart in charts:
        assert HOSTILE not in str([chart["data"], chart["layout"]])
    assert html.escape(HOSTILE) in str(charts)
    # The legend is text to the page.
    assert charts[3]["legend"][0]["label"] == HOSTILE
