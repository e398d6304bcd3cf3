# SPDX-License-Identifier: Apache-2.0
"""Sample trajectories of a run as the page's browser shows them: texts and marks, no HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from satori_fast.profiling.summary import number

# As `SegmentKind`; report.css has a colour for each.
SEGMENT_KINDS = ("continue", "reflect", "explore", "solve", "verify", "step", "whole")

MAX_SAMPLES = 2000
MAX_CHARACTERS = 4_000_000
MAX_TEXT = 20_000

_ACTION = re.compile(r"(?=<\|(?:continue|reflect|explore)\|>)")


def sample_browser(
    samples: Sequence[Mapping[str, Any]],
    *,
    max_samples: int = MAX_SAMPLES,
    max_characters: int = MAX_CHARACTERS,
) -> dict[str, Any]:
    """What the page's script needs: "samples", "total" of them in the file, and "every": 1, or n
    where only every n-th is in the page because all would be more than `max_samples` or
    `max_characters` of JSON. Longer texts than `MAX_TEXT` are cut, and say so.
    """
    records = [sample_entry(sample) for sample in samples]
    sizes = [len(json.dumps(record)) for record in records]
    every = max(1, -(-len(records) // max_samples))
    while every < len(records) and sum(sizes[::every]) > max_characters:
        every += 1
    return {"samples": records[::every], "total": len(records), "every": every}


def sample_entry(sample: Mapping[str, Any]) -> dict[str, Any]:
    """One line of samples.jsonl. `prefix` (of a restart; else None) and `segments` are lists of
    {"kind", "text"}, and "reward" where a segment was given one."""
    rewards = {
        name: number(value, 2)
        for name, value in sample["reward"].items()
        if isinstance(value, int | float)
    }
    credits = sample["reward"].get("segments", [])
    segments = [
        {"kind": str(segment["kind"]), "text": _cut(segment["text"])}
        for segment in sample["segments"]
    ]
    if any(credits) and len(credits) == len(segments):
        for segment, credit in zip(segments, credits, strict=True):
            segment["reward"] = number(credit, 2)
    return {
        "stage": sample["stage"],
        "step": sample["step"],
        "id": sample["problem_id"],
        "question": _cut(sample["question"]),
        "answer": "none given" if sample["answer"] is None else _cut(str(sample["answer"])),
        "prefix": None if sample["prefix"] is None else _pieces(_cut(sample["prefix"])),
        "segments": segments,
        "verdict": {True: "right", False: "wrong"}.get(sample["correct"], "ungraded"),
        "rewards": rewards,
        "finish": sample["finish"],
    }


def _pieces(text: str) -> list[dict[str, str]]:
    """A prefix, cut before each meta-action; text before the first one starts a solution."""
    found = [piece for piece in _ACTION.split(text) if piece]
    opening = "continue" if len(found) > 1 else "whole"
    named = [re.match(r"<\|(\w+)\|>", piece) for piece in found]
    return [
        {"kind": name[1] if name else opening, "text": piece}
        for name, piece in zip(named, found, strict=True)
    ]


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} [cut here: {len(text) - MAX_TEXT:,} characters more]"
