# SPDX-License-Identifier: Apache-2.0
"""A line of samples.jsonl as the page shows it."""

import pytest

from satori_fast.profiling.report_samples import SEGMENT_KINDS, sample_card
from satori_fast.types import SegmentKind

SAMPLE = {
    "stage": "rl",
    "step": 3,
    "problem_id": "p-1",
    "question": "2 + 2",
    "answer": None,
    "prefix": None,
    "segments": [{"kind": "reflect", "text": "no"}, {"kind": "dance", "text": "la"}],
    "correct": True,
    "reward": {"total": 0.5, "rule": None, "segments": [0.0]},
    "finish": "stop",
}


def test_every_kind_of_segment_has_a_colour():
    assert set(SEGMENT_KINDS) == set(SegmentKind)


def test_a_sample_says_where_it_is_from_and_what_it_got():
    card = sample_card(SAMPLE)
    assert card["facts"] == "rl step 3, p-1, stop"
    assert (card["answer"], card["rewards"]) == ("None", "total 0.50")
    assert [(s["kind"], s["colour"]) for s in card["segments"]] == [
        ("reflect", "reflect"),
        ("dance", "whole"),
    ]
    assert sample_card(SAMPLE | {"reward": {}})["rewards"] == "-"


@pytest.mark.parametrize(
    ("correct", "mark"), [(True, "right"), (False, "wrong"), (None, "ungraded")]
)
def test_marks(correct, mark):
    assert sample_card(SAMPLE | {"correct": correct})["mark"] == mark
