# SPDX-License-Identifier: Apache-2.0
"""Sample trajectories of a run as the report shows them: texts and marks, no HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from satori_fast.profiling.summary import number

# As `SegmentKind`; report.css has a colour for each.
SEGMENT_KINDS = ("continue", "reflect", "explore", "solve", "verify", "step", "whole")


def sample_card(sample: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of one line of samples.jsonl."""
    rewards = [
        f"{name} {number(value, 2)}"
        for name, value in sample["reward"].items()
        if isinstance(value, int | float)
    ]
    return {
        "mark": {True: "right", False: "wrong"}.get(sample["correct"], "ungraded"),
        "facts": (
            f"{sample['stage']} step {sample['step']}, {sample['problem_id']}, {sample['finish']}"
        ),
        "question": sample["question"],
        "prefix": sample["prefix"],
        "segments": [
            {
                "kind": segment["kind"],
                "colour": segment["kind"] if segment["kind"] in SEGMENT_KINDS else "whole",
                "text": segment["text"],
            }
            for segment in sample["segments"]
        ],
        "answer": str(sample["answer"]),
        "rewards": ", ".join(rewards) or "-",
    }
