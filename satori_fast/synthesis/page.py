# SPDX-License-Identifier: Apache-2.0
"""synthesis.html and initialise.html of a run folder: what was made, dropped and spent, and samples
to look at.

One offline file each. Samples are spread evenly over the problems, so that the page of a resumed
run is that of an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satori_fast.data.formats.coat import CONTINUE, EXPLORE, REFLECT, split_actions
from satori_fast.storage import write_atomically
from satori_fast.synthesis.filters import read_template
from satori_fast.synthesis.pipeline import UNCHECKED
from satori_fast.synthesis.stats import SynthesisStats
from satori_fast.types import Demonstration

_SAMPLES_PER_TYPE = 20
_LONGEST_FAULT = 400  # characters shown of a reply that was dropped

_CLASSES = {CONTINUE: "continue", REFLECT: "reflect", EXPLORE: "explore"}
COAT_MEANINGS = {
    "I": "no reflection",
    "II-I": "a right step is verified",
    "II-II": "verified, later corrected",
    "III-I": "corrected once",
    "III-II": "corrected twice or more",
    UNCHECKED: "wrong, and nobody checked it",
}


@dataclass(frozen=True, slots=True)
class Action:
    """A part of a trajectory, as the page shows it. kind: its colour. token: shown before it."""

    kind: str
    text: str
    token: str | None = None


def coat_actions(response: str) -> list[Action]:
    """Cut a COAT response into its actions."""
    actions: list[Action] = []
    for action in split_actions(response):
        token = next((token for token in _CLASSES if action.startswith(token)), None)
        text = action.removeprefix(token or "").strip()
        actions.append(Action(_CLASSES[token or CONTINUE], text, token))
    return actions


def write_page(
    path: Path,
    demonstrations: Sequence[Demonstration],
    stats: SynthesisStats,
    *,
    title: str,
    meanings: Mapping[str, str] = COAT_MEANINGS,
    actions: Callable[[str], Sequence[Action]] = coat_actions,
) -> None:
    """Write the page, in one piece.

    meanings: what happens in trajectories of each type. actions: cuts a response.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(read_template("page.html"))
    types = [
        {
            "name": kind,
            "meaning": meanings[kind],
            "trajectories": stats.counts[f"trajectories/{kind}"],
            "demonstrations": stats.demonstrations[kind],
        }
        for kind in stats.types
    ]
    dropped = [
        {"reason": reason, "times": times, "example": _shortened(stats.faults.get(reason, ""))}
        for reason, times in stats.dropped().items()
    ]
    text = template.render(
        title=title,
        types=types,
        dropped=dropped,
        spent=stats.spent(),
        samples=[_sample(d, actions) for d in _spread(demonstrations, stats.types)],
        num_demonstrations=len(demonstrations),
    )
    write_atomically(path, text)


def _spread(demonstrations: Sequence[Demonstration], types: Sequence[str]) -> list[Demonstration]:
    """Up to `_SAMPLES_PER_TYPE` of each type, at even distances, in order."""
    chosen: list[int] = []
    for kind in types:
        places = [i for i, d in enumerate(demonstrations) if d.trajectory_type == kind]
        count = min(len(places), _SAMPLES_PER_TYPE)
        chosen += [places[i * len(places) // count] for i in range(count)]
    return [demonstrations[i] for i in sorted(chosen)]


def _sample(
    demonstration: Demonstration, actions: Callable[[str], Sequence[Action]]
) -> dict[str, Any]:
    return {
        "kind": demonstration.trajectory_type,
        "problem_id": demonstration.problem.problem_id,
        "question": demonstration.problem.question,
        "answer": demonstration.problem.answer,
        "actions": actions(demonstration.response),
    }


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_FAULT else text[:_LONGEST_FAULT] + " ..."
