# SPDX-License-Identifier: Apache-2.0
"""Sample trajectories of a run as the page's browser shows them: texts and marks, no HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from satori_fast.profiling.summary import number

MAX_SAMPLES = 2000
MAX_CHARACTERS = 4_000_000
MAX_TEXT = 20_000

# What an update makes of a segment (`types.SegmentSignal`).
_SIGNAL = ("reward", "baseline", "advantage", "weight")
# Whatever else a file names as a colour could be more than one.
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


def sample_browser(
    samples: Sequence[Mapping[str, Any]],
    *,
    max_samples: int = MAX_SAMPLES,
    max_characters: int = MAX_CHARACTERS,
) -> dict[str, Any]:
    """Everything that the page's script needs: "samples", "colours" of the kinds of their segments,
    "total" of them in the file, and "every": 1, or n where only every n-th is in the page because
    all would be more than `max_samples` or `max_characters` of JSON. Longer texts than `MAX_TEXT`
    are cut, and say so.
    """
    records = [sample_entry(sample) for sample in samples]
    sizes = [len(json.dumps(record)) for record in records]
    every = max(1, -(-len(records) // max_samples))
    while every < len(records) and sum(sizes[::every]) > max_characters:
        every += 1
    return {
        "samples": records[::every],
        "colours": _colours(samples),
        "total": len(records),
        "every": every,
    }


def sample_entry(sample: Mapping[str, Any]) -> dict[str, Any]:
    """One line of samples.jsonl. `prefix` (of a restart; else None) and `segments` are lists of
    {"kind", "text"}; "verdict" where a segment claims one, and where it was trained on "signal":
    its reward, baseline, advantage and loss weight, each with its name. The prefix is cut as the
    run's format cuts it; lines of earlier versions have it in one piece."""
    rewards = {
        name: number(value, 2)
        for name, value in sample["reward"].items()
        if isinstance(value, int | float)
    }
    process = sample["reward"].get("segments", [])
    segments = _entries(sample["segments"])
    if not (any(process) and len(process) == len(segments)):
        process = [None] * len(segments)
    for entry, segment, reward in zip(segments, sample["segments"], process, strict=True):
        if isinstance(segment.get("verdict"), bool):
            entry["verdict"] = "right" if segment["verdict"] else "wrong"
        known = {} if reward is None else {"reward": reward}
        known |= {name: segment[name] for name in _SIGNAL if name in segment}
        if known:
            entry["signal"] = [f"{name} {number(value, 3)}" for name, value in known.items()]
    return {
        "stage": sample["stage"],
        "step": sample["step"],
        "id": sample["problem_id"],
        "question": cut_text(sample["question"]),
        "answer": "none given" if sample["answer"] is None else cut_text(str(sample["answer"])),
        "prefix": None if sample["prefix"] is None else _pieces(sample),
        "segments": segments,
        "verdict": {True: "right", False: "wrong"}.get(sample["correct"], "ungraded"),
        "rewards": rewards,
        "finish": sample["finish"],
    }


def _pieces(sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    whole = [{"kind": "whole", "text": sample["prefix"]}] if sample["prefix"] else []
    return _entries(sample.get("prefix_segments", whole))


def _entries(segments: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"kind": str(s["kind"]), "text": cut_text(s["text"])} for s in segments]


def _colours(samples: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The colour of each kind of segment, as the run's format has it, in order of appearance."""
    return {
        str(segment["kind"]): segment["colour"]
        for sample in samples
        for segment in [*sample.get("prefix_segments", ()), *sample["segments"]]
        if _COLOUR.fullmatch(str(segment.get("colour")))
    }


def cut_text(text: str) -> str:
    """A text as the page shows it: of very long ones the beginning, which says so."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} [cut here: {len(text) - MAX_TEXT:,} characters more]"
