# SPDX-License-Identifier: Apache-2.0
"""Lines of samples.jsonl as the page shows them, and the limits of what goes into it."""

from dataclasses import replace

import numpy as np
import pytest

from satori_fast.data.formats.plain import PLAIN
from satori_fast.profiling.metrics import sample_record
from satori_fast.profiling.report_samples import (
    MAX_TEXT,
    sample_browser,
    sample_entry,
)
from satori_fast.types import Problem, RewardBreakdown
from tests.algorithms.test_advantages import make_trajectory

SAMPLE = {
    "stage": "rl",
    "step": 3,
    "problem_id": "p-1",
    "question": "2 + 2",
    "answer": None,
    "prefix": None,
    "segments": [{"kind": "reflect", "text": "no"}, {"kind": "dance", "text": "la"}],
    "correct": True,
    "reward": {"total": 0.5, "rule": None, "segments": [0.0, 0.0]},
    "finish": "stop",
}


def test_kinds_have_the_colours_that_the_samples_name():
    segments = [
        {"kind": "explore", "text": "a", "colour": "#3d9480"},
        {"kind": "dance", "text": "b", "colour": "url(http://elsewhere)"},
        {"kind": "step", "text": "c", "colour": None},
    ]
    given = [{"kind": "reflect", "text": "no", "colour": "#c9892f"}]
    sample = SAMPLE | {"segments": segments, "prefix": "no", "prefix_segments": given}
    colours = sample_browser([SAMPLE, sample])["colours"]
    assert list(colours.items()) == [("reflect", "#c9892f"), ("explore", "#3d9480")]
    assert sample_browser([SAMPLE])["colours"] == {}


def test_a_sample_says_where_it_is_from_and_what_it_got():
    entry = sample_entry(SAMPLE)
    assert (entry["stage"], entry["step"], entry["id"], entry["finish"]) == ("rl", 3, "p-1", "stop")
    assert (entry["answer"], entry["rewards"], entry["prefix"]) == (
        "none given",
        {"total": "0.50"},
        None,
    )
    assert entry["segments"] == SAMPLE["segments"]
    assert sample_entry(SAMPLE | {"reward": {}})["rewards"] == {}


@pytest.mark.parametrize(
    ("correct", "verdict"), [(True, "right"), (False, "wrong"), (None, "ungraded")]
)
def test_verdicts(correct, verdict):
    assert sample_entry(SAMPLE | {"correct": correct})["verdict"] == verdict


def test_terms_of_any_name_and_answers_without_a_verdict_are_shown():
    problem = Problem("p-1", "q", None)
    reward = RewardBreakdown({"similarity": 0.25, "format": -1.0}, np.ones(1, np.float32))
    trajectory = replace(make_trajectory(2, [3]), problem=problem).with_reward(reward)
    entry = sample_entry(sample_record("srl", 1, trajectory=trajectory, format=PLAIN))
    assert entry["rewards"] == {"similarity": "0.25", "format": "-1.00", "total": "-0.75"}
    assert (entry["verdict"], entry["answer"]) == ("ungraded", "none given")
    assert [segment["signal"] for segment in entry["segments"]] == [["reward 1.000"]]


def test_rewards_of_segments_are_shown_where_there_are_any():
    entry = sample_entry(SAMPLE | {"reward": {"total": 1.0, "segments": [1.0, -1.0]}})
    signals = [segment["signal"] for segment in entry["segments"]]
    assert signals == [["reward 1.000"], ["reward -1.000"]]


def test_what_a_segment_was_taught_and_claims_is_shown():
    taught = {"reward": 1, "baseline": 0.25, "advantage": None, "weight": 2.5}
    segments = [
        {"kind": "verify", "text": "right", "verdict": True, "colour": None} | taught,
        {"kind": "verify", "text": "?", "verdict": None},
    ]
    first, second = sample_entry(SAMPLE | {"segments": segments})["segments"]
    assert first["verdict"] == "right"
    shown = ["reward 1.000", "baseline 0.250", "advantage -", "weight 2.500"]
    assert first["signal"] == shown
    assert second == {"kind": "verify", "text": "?"}


def test_a_prefix_is_in_the_pieces_of_its_record():
    pieces = [{"kind": "continue", "text": "a b", "colour": "#3f6fb5"}]
    sample = SAMPLE | {"prefix": "a b", "prefix_segments": pieces}
    assert sample_entry(sample)["prefix"] == [{"kind": "continue", "text": "a b"}]
    # Lines of earlier versions.
    assert sample_entry(SAMPLE | {"prefix": "a"})["prefix"] == [{"kind": "whole", "text": "a"}]
    assert sample_entry(SAMPLE | {"prefix": ""})["prefix"] == []


def test_the_page_has_all_samples_up_to_its_limits_and_then_one_in_several():
    samples = [SAMPLE | {"step": step} for step in range(10)]
    browser = sample_browser(samples)
    assert browser["every"] == 1 and [s["step"] for s in browser["samples"]] == list(range(10))
    browser = sample_browser(samples, max_samples=4)
    assert (browser["every"], browser["total"]) == (3, 10)
    assert [s["step"] for s in browser["samples"]] == [0, 3, 6, 9]
    browser = sample_browser(samples, max_characters=800)
    assert 1 < browser["every"] <= 10 and len(browser["samples"]) < 10
    assert sample_browser([]) == {"samples": [], "colours": {}, "total": 0, "every": 1}


def test_a_very_long_text_is_cut_and_says_so():
    entry = sample_entry(SAMPLE | {"question": "x" * (MAX_TEXT + 1234)})
    assert entry["question"].endswith("x [cut here: 1,234 characters more]")
