# SPDX-License-Identifier: Apache-2.0
"""Rollouts that stretch over several steps, so that one long response does not hold up a step.

In each step a response grows by at most `max_step_tokens`; one that is not finished goes on in the
next step from its tokens so far, whose keys and values the engine computes again with its new
weights. Every token keeps the version of the weights that sampled it. A group is handed over when
its last sibling is finished. `online` is the plain way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from satori_fast.data.problem_file import problem_from_row
from satori_fast.data.prompts import build_trajectory
from satori_fast.experience.online import OnlineSource
from satori_fast.experience.source import Judge, ProblemFeed
from satori_fast.rollout.engine import (
    Completion,
    Engine,
    Request,
    SamplingParams,
    prompt_of,
    request_seed,
)
from satori_fast.rollout.restarting import Restarting
from satori_fast.types import Finish, Problem, RolloutResult, Trajectory


@dataclass(slots=True)
class _Sibling:
    """A response on its way. versions: one per token."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish: Finish | None = None

    def grow(self, completion: Completion, version: int, *, limit: int) -> None:
        self.tokens += completion.tokens.tolist()
        self.logprobs += completion.logprobs.tolist()
        self.versions += [version] * len(completion.tokens)
        if completion.finish == "stop":
            self.finish = "stop"
        elif len(self.tokens) >= limit:
            self.finish = "length"


@dataclass(slots=True)
class _Group:
    """The siblings of a problem. limit: response tokens, the room in the context included."""

    group_id: int
    problem: Problem
    prompt: tuple[int, ...]
    limit: int
    siblings: list[_Sibling]

    @property
    def is_finished(self) -> bool:
        return all(sibling.finish for sibling in self.siblings)


class PartialRollouts:
    """Groups in flight, from step to step."""

    def __init__(self, max_step_tokens: int) -> None:
        if max_step_tokens < 1:
            raise ValueError(f"rollout.max_step_tokens is {max_step_tokens}: it must be positive")
        self._max_step_tokens = max_step_tokens
        self._groups: list[_Group] = []
        self._num_started = 0

    @property
    def num_pending(self) -> int:
        """Groups that wait for a sibling."""
        return len(self._groups)

    def collect(
        self,
        engine: Engine,
        problems: Sequence[Problem],
        sampling: SamplingParams,
    ) -> RolloutResult:
        """One step: `problems` join the groups under way, all grow, finished groups come back.

        The token counts are those of this step; trajectories may hold tokens of earlier ones.
        `sampling.seed` must differ between steps.
        """
        begin = time.perf_counter()
        version = engine.policy_version
        for problem in problems:
            self._start(engine, problem, sampling)
        growing = list(self._unfinished())
        requests = [self._request(engine, *where, sampling) for where in growing]
        completions = dict(engine.generate(requests, sampling))
        for index, (group, number) in enumerate(growing):
            group.siblings[number].grow(completions[index], version, limit=group.limit)
        finished = [group for group in self._groups if group.is_finished]
        self._groups = [group for group in self._groups if not group.is_finished]
        return RolloutResult(
            trajectories=tuple(t for group in finished for t in _trajectories(group, engine)),
            num_prompt_tokens=sum(len(request.prompt_ids) for request in requests),
            num_generated_tokens=sum(len(c.tokens) for c in completions.values()),
            wall_s=time.perf_counter() - begin,
            policy_version=version,
        )

    def _start(self, engine: Engine, problem: Problem, sampling: SamplingParams) -> None:
        prompt, room = prompt_of(engine, problem)
        siblings = [_Sibling() for _ in range(sampling.num_samples)]
        limit = min(sampling.max_new_tokens, room)
        self._groups.append(_Group(self._num_started, problem, prompt, limit, siblings))
        self._num_started += 1

    def _unfinished(self) -> Iterator[tuple[_Group, int]]:
        for group in self._groups:
            for number, sibling in enumerate(group.siblings):
                if sibling.finish is None:
                    yield group, number

    def _request(
        self, engine: Engine, group: _Group, number: int, sampling: SamplingParams
    ) -> Request:
        done = group.siblings[number].tokens
        return Request(
            prompt_ids=(*group.prompt, *done),
            max_new_tokens=min(self._max_step_tokens, group.limit - len(done)),
            stop_ids=engine.renderer.stop_ids,
            seed=request_seed(sampling.seed, group.group_id, number),
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: what a resumed run needs to go on with the same bits."""
        return {"groups": [asdict(group) for group in self._groups], "started": self._num_started}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._num_started = state["started"]
        self._groups = [_group_of(saved) for saved in state["groups"]]


class PartialSource(OnlineSource):
    """An `OnlineSource` whose long responses stretch over several steps.

    A step starts so many new groups that `problems_per_step` are in flight; it hands over those
    that are finished, however many. There are no further rounds: a step has one token budget.
    """

    def __init__(
        self,
        engine: Restarting,
        problems: ProblemFeed,
        judge: Judge,
        *,
        max_step_tokens: int,
        sampling: Callable[[int], SamplingParams],
        problems_per_step: int,
        sleep: bool = False,
    ) -> None:
        super().__init__(
            engine,
            problems,
            judge,
            sampling=sampling,
            problems_per_step=problems_per_step,
            sleep=sleep,
        )
        self._partial = PartialRollouts(max_step_tokens)

    def _num_problems(self) -> int:
        return max(0, self._problems_per_step - self._partial.num_pending)

    def _collect(
        self, problems: Sequence[Problem], sampling: SamplingParams, *, first_group: int
    ) -> RolloutResult:
        assert first_group == 0, "partial rollouts number their groups by themselves"
        return self._partial.collect(self.engine, problems, sampling)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: that of an `OnlineSource`, and the groups in flight."""
        return super().state_dict() | {"partial": self._partial.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        super().load_state_dict(state)
        self._partial.load_state_dict(state["partial"])


def _group_of(saved: Mapping[str, Any]) -> _Group:
    return _Group(
        group_id=saved["group_id"],
        problem=problem_from_row(saved["problem"]),
        prompt=tuple(saved["prompt"]),
        limit=saved["limit"],
        siblings=[_Sibling(**sibling) for sibling in saved["siblings"]],
    )


def _trajectories(group: _Group, engine: Engine) -> Iterator[Trajectory]:
    for sibling in group.siblings:
        assert sibling.finish is not None
        versions = np.asarray(sibling.versions, dtype=np.int64)
        trajectory = build_trajectory(
            group.problem,
            np.asarray(sibling.tokens, dtype=np.int32),
            renderer=engine.renderer,
            group_id=group.group_id,
            finish=sibling.finish,
            logprobs=np.asarray(sibling.logprobs, dtype=np.float32),
            policy_version=int(versions[-1]),
            prompt_ids=group.prompt,
        )
        yield replace(trajectory, versions=versions if len(set(sibling.versions)) > 1 else None)
