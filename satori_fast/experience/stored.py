# SPDX-License-Identifier: Apache-2.0
"""Experience from a file of sampled trajectories with their log-probs; nothing is sampled.

A file is text, a sealed JSON object a line: first what made the samples (temperature, response
format, fingerprints of weights and tokenizer), then the samples, siblings together, as token ids.
Text is never encoded again: other tokens could come of it, and the log-probs would not be theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from satori_fast.data.cursor import ProblemCursor
from satori_fast.data.problem_file import problem_from_row, problem_to_row
from satori_fast.data.prompts import PromptRenderer, build_trajectory, full_response
from satori_fast.experience.source import Judge
from satori_fast.rollout.restarting import ServedWeights
from satori_fast.storage import sealed_records, write_sealed_records
from satori_fast.types import Experience, StoredRollouts, Trajectory

_HEADER = "rollouts"


class StoredSource:
    """Hands out stored groups, each once per epoch, scored and credited anew.

    The trajectories' log-probs are those of the model that sampled them; `reinforce.importance`
    weighs with them. Their `policy_version` is -1: no step's weights sampled them.
    """

    def __init__(
        self, rollouts: StoredRollouts, judge: Judge, *, problems_per_step: int, seed: int
    ) -> None:
        self._cursor = ProblemCursor(rollouts.groups, seed=seed)
        self._judge = judge
        self._problems_per_step = problems_per_step

    def next(self, step: int) -> Experience:
        """The next groups, numbered from 0."""
        groups = self._cursor.take(self._problems_per_step)
        trajectories = [
            replace(t, group_id=number) for number, siblings in enumerate(groups) for t in siblings
        ]
        sampled = self._judge.score(trajectories)
        kept = self._judge.informative(sampled)
        stats = {"rollout/kept": len(kept) / len(sampled)}
        return self._judge.experience(kept, sampled, policy_version=step, stats=stats)

    def sync(self, weights: ServedWeights, *, version: int) -> None:
        """Nothing: no engine has the weights."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: where the cursor stands, and the state of the credit rule."""
        return {"groups": self._cursor.state_dict(), "credit": self._judge.credit.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._cursor.load_state_dict(state["groups"])
        self._judge.credit.load_state_dict(state["credit"])


def write_rollouts(path: Path, rollouts: StoredRollouts) -> None:
    """Write `rollouts` to a file that `read_rollouts` reads, in one piece."""
    header = header_of(
        rollouts.temperature,
        format=rollouts.format,
        fingerprint=rollouts.fingerprint,
        tokenizer=rollouts.tokenizer,
    )
    groups = enumerate(rollouts.groups)
    rows = [trajectory_to_row(t, group=n) for n, siblings in groups for t in siblings]
    write_sealed_records(path, [header, *rows])


def read_rollouts(path: Path, renderer: PromptRenderer, *, temperature: float) -> StoredRollouts:
    """The rollouts of a file. ValueError, naming file and line, for one that holds none, that was
    sampled at another `temperature` or with another tokenizer, template or format than `renderer`
    has, whose ids are not those of its text, that lost its log-probs, or whose prompts are too
    long. Which weights sampled it is for the caller to ask."""
    rows = sealed_records(path)
    header = _header(next(rows, {}), path, renderer, temperature=temperature)
    groups = tuple(tuple(siblings) for siblings in _groups(rows, renderer, path))
    if not groups:
        raise ValueError(f"{path} holds no rollout")
    return StoredRollouts(groups, **header)


def check_rollouts(path: Path, renderer: PromptRenderer, *, temperature: float) -> None:
    """Look at the first line of a file only; ValueError as from `read_rollouts`."""
    _header(next(sealed_records(path), {}), path, renderer, temperature=temperature)


def header_of(
    temperature: float, *, format: str, fingerprint: str, tokenizer: str
) -> dict[str, Any]:
    """The first line of a file; see `StoredRollouts` for its fields."""
    values = {"temperature": temperature, "format": format}
    return {_HEADER: {**values, "fingerprint": fingerprint, "tokenizer": tokenizer}}


def trajectory_to_row(
    trajectory: Trajectory, *, group: int, keep_logprobs: bool = True
) -> dict[str, Any]:
    """A trajectory as a JSON object, with its log-probs or without."""
    row: dict[str, Any] = {
        **problem_to_row(trajectory.problem),
        "group": group,
        "response_ids": trajectory.response_tokens.tolist(),
        "response": full_response(trajectory),
        "finish": trajectory.finish,
    }
    return row | {"logprobs": trajectory.logprobs.tolist()} if keep_logprobs else row


def _header(
    row: Mapping[str, Any], path: Path, renderer: PromptRenderer, *, temperature: float
) -> dict[str, Any]:
    header: dict[str, Any] | None = row.get(_HEADER)
    if header is None or "tokenizer" not in header:
        raise ValueError(
            f"{path} does not begin with the temperature, format and fingerprints of stored "
            "rollouts: name a file of solutions/ that was sampled with solutions.keep_logprobs"
        )
    if header["temperature"] != temperature:
        raise ValueError(
            f"{path}, line 1: it was sampled at temperature {header['temperature']:g}, and this "
            f"run's is {temperature:g}: its log-probs are of that; set the temperature to it"
        )
    if header["format"] != renderer.format.name:
        raise ValueError(
            f"{path}, line 1: it holds responses of format {header['format']!r}, and this run's "
            f"are of format {renderer.format.name!r}: set data.format to it"
        )
    if header["tokenizer"] != renderer.fingerprint:
        raise ValueError(
            f"{path}, line 1: its tokenizer, with template, format and stop tokens, is "
            f"{header['tokenizer']}, and this run's is {renderer.fingerprint}: take the model and "
            "the settings of the section data that it was sampled with"
        )
    return header


def _groups(
    rows: Iterable[dict[str, Any]], renderer: PromptRenderer, path: Path
) -> Iterator[list[Trajectory]]:
    # The header is line 1.
    numbered = enumerate(rows, start=2)
    for number, siblings in groupby(numbered, key=lambda pair: pair[1]["group"]):
        yield [_trajectory(row, renderer, f"{path}, line {n}", group=number) for n, row in siblings]


def _trajectory(
    row: Mapping[str, Any], renderer: PromptRenderer, place: str, *, group: int
) -> Trajectory:
    problem = problem_from_row(row)
    named = f"{place}: a response to problem {problem.problem_id!r}"
    ids, logprobs = row["response_ids"], row.get("logprobs")
    if logprobs is None or len(logprobs) != len(ids):
        raise ValueError(
            f"{named} has {0 if logprobs is None else len(logprobs)} log-probs for {len(ids)} "
            "tokens: sample it again with solutions.keep_logprobs = true"
        )
    if not any(logprobs):
        raise ValueError(
            f"{named} has log-probs of 0 for all of its {len(ids)} tokens: they are not those of a "
            "sampler; sample it again with solutions.keep_logprobs = true"
        )
    size = len(renderer.tokenizer)
    if unknown := [i for i in ids if not 0 <= i < size]:
        raise ValueError(f"{named} has the id {unknown[0]}, and the tokenizer has {size} tokens")
    trajectory = build_trajectory(
        problem,
        np.asarray(ids, dtype=np.int32),
        renderer=renderer,
        group_id=group,
        finish=row["finish"],
        logprobs=np.asarray(logprobs, dtype=np.float32),
    )
    written, text = row.get("response", ""), full_response(trajectory)
    if written != text:
        raise ValueError(
            f"{named} has ids that are not those of its text, {_difference(written, text)}: the "
            "file was changed, or is of another tokenizer; sample it again"
        )
    return trajectory


def _difference(written: str, decoded: str) -> str:
    """Where two texts part, and how each goes on."""
    place = next(
        (n for n, (a, b) in enumerate(zip(written, decoded, strict=False)) if a != b),
        min(len(written), len(decoded)),
    )
    shown = slice(place, place + 20)
    return f"which is {written[shown]!r} at character {place}, they are {decoded[shown]!r}"
