# SPDX-License-Identifier: Apache-2.0
"""Bars of time: where they start, how wide they are, what is inside."""

import pytest

from satori_fast.profiling.report_runs import StageTime
from satori_fast.profiling.report_timeline import SPAN_COLOURS, stage_bars, timeline

SFT = StageTime("sft", 0.0, 60.0, {"update": 45.0, "pack": 0.1})
RL = StageTime("rl", 60.0, 120.0, {"update": 60.0, "rollout": 30.0, "dance": 30.0})


def test_stages_follow_each_other_over_the_wall_time():
    bars = timeline([SFT, RL], 200.0)
    sft, rl = bars["stages"]
    assert (sft["left"], sft["width"], sft["share"]) == (0.0, 30.0, "30.0 %")
    assert (rl["left"], rl["width"], rl["wall"]) == (30.0, 60.0, "2 min")
    assert bars["wall"] == "3 min 20 s" and bars["idle"] == "20 s"
    assert [tick["text"] for tick in bars["ticks"]] == [
        "0",
        "30 s",
        "1 min",
        "1 min 30 s",
        "2 min",
        "2 min 30 s",
        "3 min",
    ]
    assert bars["ticks"][2]["left"] == pytest.approx(30.0)


def test_parts_fill_their_bar_in_one_order_and_the_rest_is_last():
    bars = timeline([SFT, RL], 180.0)
    sft, rl = bars["stages"]
    assert [part["name"] for part in sft["parts"]] == ["pack", "update", "rest"]
    assert sum(part["width"] for part in sft["parts"]) == pytest.approx(100.0, abs=0.01)
    assert [part["name"] for part in sft["largest"]] == ["update", "rest"]
    assert sft["parts"][1] | {"width": 75.0} == {
        "name": "update",
        "colour": SPAN_COLOURS["update"],
        "width": 75.0,
        "seconds": "45 s",
        "share": "75.0 %",
        "named": True,
    }
    # Everything is covered: there is no rest, and a span nobody knows is grey.
    assert [part["name"] for part in rl["parts"]] == ["rollout", "update", "dance"]
    assert [key["name"] for key in bars["legend"]] == ["rollout", "pack", "update", "dance", "rest"]
    assert bars["idle"] == ""


def test_spans_inside_spans_share_the_bar():
    (row,) = timeline([StageTime("rl", 0.0, 10.0, {"rollout": 10.0, "decode": 10.0})], 10.0)[
        "stages"
    ]
    assert [part["width"] for part in row["parts"]] == [50.0, 50.0]


def test_runs_share_the_scale_of_a_stage():
    slow = StageTime("sft", 0.0, 240.0, {"update": 240.0})
    bars = stage_bars([("first", [SFT, RL]), ("second", [slow])])
    sft, rl = bars["stages"]
    assert [(row["run"], row["width"], row["share"]) for row in sft["rows"]] == [
        ("first", 25.0, "33.3 %"),
        ("second", 100.0, "100.0 %"),
    ]
    assert rl["stage"] == "rl" and [row["run"] for row in rl["rows"]] == ["first"]


def test_a_run_without_time_has_empty_bars():
    bars = timeline([StageTime("rl", 0.0, 0.0, {})], 0.0)
    assert bars["stages"][0]["width"] == 0.0 and bars["ticks"] == []
    assert timeline([], 0.0)["stages"] == []
