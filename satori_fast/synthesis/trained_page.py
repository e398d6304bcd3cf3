# SPDX-License-Identifier: Apache-2.0
"""trained_STAGE.html of a run folder: samples of what is imitated, segment by segment, and what a
mask leaves out of the loss. One offline file. What synthesis made and dropped is `page`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from satori_fast.storage import write_atomically
from satori_fast.synthesis.filters import read_template
from satori_fast.types import SegmentKind, Trajectory

_VERDICTS = {True: "right", False: "wrong", None: None}


def write_trained_page(
    path: Path,
    samples: Sequence[tuple[Trajectory, Sequence[bool]]],
    *,
    total: int,
    colours: Mapping[SegmentKind, str],
    title: str,
) -> None:
    """Write the page, in one piece.

    samples: trajectories, and which of their segments are trained. total: trajectories there are.
    colours: of the kinds of segments, as their format has them.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    shown = [_sample(trajectory, trained) for trajectory, trained in samples]
    text = environment.from_string(read_template("trained.html")).render(
        title=title, samples=shown, total=total, colours={str(k): c for k, c in colours.items()}
    )
    write_atomically(path, text)


def _sample(trajectory: Trajectory, trained: Sequence[bool]) -> dict[str, Any]:
    segments = [
        {
            "kind": str(segment.kind),
            "text": segment.text.strip(),
            "verdict": _VERDICTS[segment.verdict],
            "num_tokens": segment.stop - segment.start,
            "trained": is_trained,
        }
        for segment, is_trained in zip(trajectory.segments, trained, strict=True)
    ]
    return {
        "problem_id": trajectory.problem.problem_id,
        "question": trajectory.problem.question,
        "answer": trajectory.problem.answer,
        "segments": segments,
        "num_tokens": trajectory.num_response_tokens,
        "num_trained": sum(s["num_tokens"] for s in segments if s["trained"]),
    }
