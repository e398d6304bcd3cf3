# SPDX-License-Identifier: Apache-2.0
"""Summary schema and the table in the terminal."""

import io
import json

import pytest
from rich.console import Console

from satori_fast.profiling.summary import (
    build_summary,
    duration,
    print_summary_table,
    stage_cells,
    without_empty_columns,
    write_summary,
)

STAGE_KEYS = {
    "stage",
    "accuracy",
    "num_problems",
    "wrong_to_right",
    "right_to_wrong",
    "reflections_per_answer",
    "no_answer",
    "mean_response_tokens",
    "wall_s",
    "tokens_per_s",
}


def summary_of_two_stages():
    return build_summary(
        "toy",
        "0.1.0",
        device={"kind": "cpu", "name": "Model 9000", "cores": 2},
        wall_s=301.5,
        stages=[
            {"stage": "format", "accuracy": 0.1, "num_problems": 400, "wall_s": 30.0},
            {
                "stage": "rl",
                "accuracy": 0.4425,
                "num_problems": 400,
                "wrong_to_right": 0.125,
                "right_to_wrong": 0.0,
                "reflections_per_answer": 1.25,
                "mean_response_tokens": 61.5,
                "wall_s": 271.0,
                "tokens_per_s": {"rollout": 12345.6, "update": float("nan")},
                "seed": 3,
            },
        ],
    )


def test_summary_has_the_schema_of_the_run_folder(tmp_path):
    summary = summary_of_two_stages()
    write_summary(summary, tmp_path / "summary.json")
    loaded = json.loads((tmp_path / "summary.json").read_text())
    assert loaded == summary
    assert loaded.keys() == {"name", "version", "device", "wall_s", "stages"}
    first, second = loaded["stages"]
    assert first.keys() == STAGE_KEYS
    assert first["wrong_to_right"] is None and first["tokens_per_s"] == {}
    assert second.keys() == STAGE_KEYS | {"seed"}
    assert second["tokens_per_s"] == {"rollout": 12345.6, "update": None}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"accuracy": 0.5}, r"stages\[0\] has no 'stage'"),
        ({"stage": "rl", "accuracy": 44.0}, r"stages\[0\]\.accuracy is 44\.0"),
    ],
)
def test_a_bad_stage_is_named(stage, message):
    with pytest.raises(ValueError, match=message):
        build_summary("toy", "0.1.0", device={}, wall_s=1.0, stages=[stage])


def test_the_table_shows_percent_counts_and_rates():
    console = Console(file=io.StringIO(), width=140)
    print_summary_table(summary_of_two_stages(), console)
    text = console.file.getvalue()
    assert "toy: 302 s on Model 9000" in text
    assert "44.2 % (n=400)" in text and "12.5 %" in text and "0.0 %" in text
    rates = [line.split() for line in text.split("tokens per second")[1].splitlines()]
    # Of the update there is no rate in any stage.
    assert ["stage", "rollout"] in rates
    assert ["format", "-"] in rates and ["rl", "12,346"] in rates


def test_columns_without_a_number_are_left_out():
    rows = [["sft", "-", "1", "-"], ["rl", "-", "-", "2"]]
    columns, kept = without_empty_columns(["stage", "reflections", "tokens", "seconds"], rows)
    assert columns == ["stage", "tokens", "seconds"]
    assert kept == [["sft", "1", "-"], ["rl", "-", "2"]]
    assert without_empty_columns(["stage", "tokens"], []) == (["stage"], [])


def test_responses_without_an_answer_have_a_column_where_there_are_any():
    summary = summary_of_two_stages()
    for share, is_shown in ((0.0, False), (0.25, True)):
        summary["stages"][1]["no_answer"] = share
        assert (stage_cells(summary["stages"][1])[5] == "25.0 %") is is_shown
        assert ("-" in stage_cells(summary["stages"][1])[5]) is not is_shown


def test_the_table_fits_into_80_columns():
    console = Console(file=io.StringIO(), width=80)
    summary = summary_of_two_stages()
    summary["stages"][1] |= {"stage": "reinforce_2", "no_answer": 0.25, "wall_s": 12345.6}
    print_summary_table(summary, console)
    assert "responses without an answer: reinforce_2 25.0 %" in console.file.getvalue()
    assert "..." not in console.file.getvalue() and "\u2026" not in console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0 s"),
        (0.042, "0.04 s"),
        (5.23, "5.2 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200.0, "3 min 20 s"),
        (3599.7, "1 h"),
        (7530.0, "2 h 5 min"),
        (97200.0, "1 d 3 h"),
    ],
)
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text
