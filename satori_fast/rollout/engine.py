# SPDX-License-Identifier: Apache-2.0
"""Protocol of rollout engines, and the one function that turns problems into trajectories.

An engine knows token ids, not problems: `collect` renders prompts, asks for samples, and builds
trajectories as the completions come in. Engines differ in speed and place, never in what they
return.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from satori_fast.data.prompts import PromptRenderer, build_trajectory
from satori_fast.rollout.weight_sync import WeightSink
from satori_fast.types import Finish, Problem, RolloutResult, Trajectory


class EngineDied(RuntimeError):
    """The engine's process is gone, or came back without its weights. What it was asked can be
    asked again of a fresh one."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of sampling. Log-probs that come back are of the full softmax at `temperature`.

    temperature:    0 is greedy (log-probs are then at temperature 1).
    top_k, top_p:   0 and 1.0 switch the filters off. They restrict what is sampled, not the
                    log-prob that is reported: a trainer can recompute the latter, and does.
    max_new_tokens: response limit in tokens, end-of-text included.
    num_samples:    siblings per problem; they form one group.
    seed:           every request derives its own stream from it, so a sample depends neither on the
                    batch it was decoded in nor on the order of decoding.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 256
    num_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"sampling.temperature is {self.temperature}: it must be >= 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p is {self.top_p}: it must be in (0, 1]")
        if self.max_new_tokens < 1 or self.num_samples < 1 or self.top_k < 0:
            raise ValueError("sampling: max_new_tokens and num_samples must be >= 1, top_k >= 0")


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to draw: prompt ids, a token limit, stop ids and a seed of its own."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request: tokens int32 [R] (stop id included), logprobs float32 [R] in nats."""

    tokens: np.ndarray
    logprobs: np.ndarray
    finish: Finish


class Engine(Protocol):
    """A source of completions under known weights.

    renderer:       the tokenizer and template that its prompts are made with.
    max_seqlen:     prompt and response together, in tokens.
    policy_version: version of the weights that it samples from now.
    is_shared:      all processes of the trainer have the same engine, and the main one alone
                    samples from it; otherwise each data-parallel rank has a replica of its own.
    num_passes:     passes of the whole model so far, prefills and decode steps, on this process's
                    device: each reads all weights; stays 0 where the engine is elsewhere.
    can_restart:    it can die (`EngineDied`) without the trainer, and `restart` makes a fresh one.
    """

    renderer: PromptRenderer
    max_seqlen: int
    policy_version: int
    num_passes: int = 0
    is_shared: bool = False
    can_restart: bool = False

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index of the request, completion) as each one finishes, in any order."""
        ...

    def weight_sink(self) -> WeightSink | None:
        """Receiver of what `weight_sync.push_weights` sends; None when the engine reads the
        trainer's own."""
        ...

    def restart(self) -> None:
        """A fresh engine in place of a dead one, without weights until the next push."""
        raise RuntimeError(f"{type(self).__name__} lives and dies with the trainer's process")

    def sleep(self) -> None:
        """Give memory back until `wake`, if the engine can."""
        ...

    def wake(self) -> None:
        """Take the memory again. Harmless on an engine that is awake."""
        ...

    def close(self) -> None:
        """Give back what the engine holds. It cannot be used afterwards."""
        ...


def collect(
    engine: Engine,
    problems: Sequence[Problem],
    sampling: SamplingParams,
    *,
    first_group: int = 0,
    finished: Callable[[Trajectory], None] | None = None,
) -> RolloutResult:
    """Sample `sampling.num_samples` responses for each problem; siblings share a group id.

    Trajectories come back in the order of the problems, siblings together, whatever order they
    finished in. first_group: number of the first group, where `problems` go on a longer list:
    seeds and group ids are then those of the whole list. finished: is given each response as soon
    as it is whole, while others are sampled. Raises ValueError for a prompt that leaves no room for
    a response.
    """
    begin = time.perf_counter()
    renderer, version = engine.renderer, engine.policy_version
    requests = _requests(engine, problems, sampling, first_group=first_group)
    whole: list[Trajectory | None] = [None] * len(requests)
    for index, completion in engine.generate(requests, sampling):
        position = index // sampling.num_samples
        trajectory = build_trajectory(
            problems[position],
            completion.tokens,
            renderer=renderer,
            group_id=first_group + position,
            finish=completion.finish,
            logprobs=completion.logprobs,
            policy_version=version,
            prompt_ids=requests[index].prompt_ids,
        )
        if finished is not None:
            finished(trajectory)
        whole[index] = trajectory
    trajectories = tuple(t for t in whole if t is not None)
    if len(trajectories) != len(requests):
        raise RuntimeError(
            f"the engine returned {len(trajectories)} of {len(requests)} samples: restart it"
        )
    return RolloutResult(
        trajectories=trajectories,
        num_prompt_tokens=sum(t.prompt_len for t in trajectories),
        num_generated_tokens=sum(t.num_response_tokens for t in trajectories),
        wall_s=time.perf_counter() - begin,
        policy_version=version,
    )


def _requests(
    engine: Engine, problems: Sequence[Problem], sampling: SamplingParams, *, first_group: int
) -> list[Request]:
    """The samples of each problem, siblings together."""
    requests: list[Request] = []
    for group, problem in enumerate(problems, start=first_group):
        prompt, room = prompt_of(engine, problem)
        requests += [
            Request(
                prompt_ids=prompt,
                max_new_tokens=min(sampling.max_new_tokens, room),
                stop_ids=engine.renderer.stop_ids,
                seed=request_seed(sampling.seed, group, sibling),
            )
            for sibling in range(sampling.num_samples)
        ]
    return requests


def prompt_of(engine: Engine, problem: Problem) -> tuple[tuple[int, ...], int]:
    """Prompt ids of `problem` and the room they leave for a response, in tokens; ValueError where
    there is none."""
    prompt = tuple(engine.renderer.prompt_ids(problem))
    room = engine.max_seqlen - len(prompt)
    if room < 1:
        raise ValueError(
            f"prompt of problem {problem.problem_id!r} has {len(prompt)} tokens, the context "
            f"{engine.max_seqlen}: raise rollout.max_seqlen or filter the problem out"
        )
    return prompt, room


def request_seed(seed: int, group: int, sibling: int) -> int:
    """A 63-bit stream seed for one sample; distinct for distinct arguments."""
    state = np.random.SeedSequence([seed, group, sibling]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
