# SPDX-License-Identifier: Apache-2.0
"""Experience from a file of sampled trajectories with their log-probs; nothing is sampled.

A file is text, a sealed JSON object a line: first what made the samples (temperature, response
format, fingerprint of the weights), then the samples, siblings together, as token ids. Text is
never encoded again: other tokens could come of it, and the log-probs would not be theirs.
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
from satori_fast.data.prompts import PromptRenderer, build_trajectory
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
        rollouts.temperature, format=rollouts.format, fingerprint=rollouts.fingerprint
    )
    groups = enumerate(rollouts.groups)
    rows = [trajectory_to_row(t, group=n) for n, siblings in groups for t in siblings]
    write_sealed_records(path, [header, *rows])


def read_rollouts(path: Path, renderer: PromptRenderer) -> StoredRollouts:
    """The rollouts of a file. ValueError, naming file and line or problem, for one that holds none,
    that lost its log-probs, or whose prompts are too long for `renderer`."""
    rows = sealed_records(path)
    header = next(rows, {}).get(_HEADER)
    if header is None:
        raise ValueError(
            f"{path} does not begin with the temperature, format and fingerprint of stored "
            "rollouts: name a file of solutions/ that was sampled with solutions.keep_logprobs"
        )
    groups = tuple(tuple(siblings) for siblings in _groups(rows, renderer, path))
    if not groups:
        raise ValueError(f"{path} holds no rollout")
    return StoredRollouts(groups, header["temperature"], header["format"], header["fingerprint"])


def header_of(temperature: float, *, format: str, fingerprint: str) -> dict[str, Any]:
    """The first line of a file; see `StoredRollouts` for its fields."""
    return {_HEADER: {"temperature": temperature, "format": format, "fingerprint": fingerprint}}


def trajectory_to_row(
    trajectory: Trajectory, *, group: int, keep_logprobs: bool = True
) -> dict[str, Any]:
    """A trajectory as a JSON object, with its log-probs or without."""
    row: dict[str, Any] = {
        **problem_to_row(trajectory.problem),
        "group": group,
        "response_ids": trajectory.response_tokens.tolist(),
        "finish": trajectory.finish,
    }
    return row | {"logprobs": trajectory.logprobs.tolist()} if keep_logprobs else row


def _groups(
    rows: Iterable[dict[str, Any]], renderer: PromptRenderer, path: Path
) -> Iterator[list[Trajectory]]:
    for number, siblings in groupby(rows, key=lambda row: row["group"]):
        yield [_trajectory(row, renderer, path, group=number) for row in siblings]


def _trajectory(
    row: Mapping[str, Any], renderer: PromptRenderer, path: Path, *, group: int
) -> Trajectory:
    problem = problem_from_row(row)
    ids, logprobs = row["response_ids"], row.get("logprobs")
    if logprobs is None or len(logprobs) != len(ids):
        raise ValueError(
            f"{path}: a response to problem {problem.problem_id!r} has "
            f"{0 if logprobs is None else len(logprobs)} log-probs for {len(ids)} tokens: sample "
            "it again with solutions.keep_logprobs = true"
        )
    return build_trajectory(
        problem,
        np.asarray(ids, dtype=np.int32),
        renderer=renderer,
        group_id=group,
        finish=row["finish"],
        logprobs=np.asarray(logprobs, dtype=np.float32),
    )
