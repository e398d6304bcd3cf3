# SPDX-License-Identifier: Apache-2.0
"""Responses that grow over several steps: what is asked, what comes back, and when."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from satori_fast.data.arithmetic import domain_words
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.experience.partial import PartialRollouts
from satori_fast.rollout.engine import Completion, Engine, Request, SamplingParams
from satori_fast.types import Prefix, Problem, Trajectory

RENDERER = PromptRenderer(build_word_tokenizer(domain_words()), PLAIN_TEMPLATE, 12)
SHORT = Problem("short", "sum 1", "1")
LONG = Problem("long", "sum 2 2", "2", Prefix("5<|reflect|>", "restart", correct=False))
# Full responses by problem, in tokens; the end of text comes after them.
LENGTHS = {tuple(RENDERER.prompt_ids(SHORT)): 2, tuple(RENDERER.prompt_ids(LONG)): 7}


@dataclass
class CountingEngine(Engine):
    """The i-th token of a response has the log-prob -i; responses end at their known length."""

    policy_version: int = 0
    max_seqlen: int = 256
    renderer: PromptRenderer = RENDERER
    asked: list[Request] = field(default_factory=list)

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        self.asked = list(requests)
        yield from reversed(list(enumerate(map(self._grow, requests))))

    def _grow(self, request: Request) -> Completion:
        prompt = next(p for p in LENGTHS if request.prompt_ids[: len(p)] == p)
        done, length = len(request.prompt_ids) - len(prompt), LENGTHS[prompt]
        word = RENDERER.encode("p")[0]
        ids = ([word] * length + [RENDERER.eos_id])[done : done + request.max_new_tokens]
        logprobs = -np.arange(done, done + len(ids), dtype=np.float32)
        finish = "stop" if ids[-1] == RENDERER.eos_id else "length"
        return Completion(np.array(ids, dtype=np.int32), logprobs, finish)


def step(
    partial: PartialRollouts, engine: CountingEngine, problems: list[Problem], **options: int
) -> tuple[Trajectory, ...]:
    settings = {"num_samples": 2, "max_new_tokens": 100, "seed": engine.policy_version, **options}
    sampling = SamplingParams(**settings)
    result = partial.collect(engine, problems, sampling)
    assert result.policy_version == engine.policy_version
    engine.policy_version += 1
    return result.trajectories


def test_a_long_response_goes_on_and_remembers_who_sampled_what() -> None:
    partial, engine = PartialRollouts(3), CountingEngine()
    short = step(partial, engine, [SHORT, LONG])
    assert [t.problem.problem_id for t in short] == ["short", "short"]
    assert all(t.versions is None and t.policy_version == 0 for t in short)
    assert partial.num_pending == 1
    assert step(partial, engine, [SHORT]) != () and partial.num_pending == 1
    first, second = step(partial, engine, [])
    assert partial.num_pending == 0
    # Seven words and the end of text: three, three and two.
    assert first.versions is not None
    assert first.versions.tolist() == [0, 0, 0, 1, 1, 1, 2, 2] and first.policy_version == 2
    assert first.logprobs.tolist() == [-i for i in range(8)]
    assert first.finish == "stop" and first.tokens[-1] == RENDERER.eos_id
    assert (first.group_id, second.group_id) == (1, 1)
    assert first.problem == LONG
    assert [len(r.prompt_ids) - first.prompt_len for r in engine.asked] == [6, 6]


def test_siblings_and_steps_have_seeds_of_their_own() -> None:
    partial, engine = PartialRollouts(3), CountingEngine()
    seeds = []
    for _ in range(3):
        step(partial, engine, [LONG] if not seeds else [])
        seeds += [request.seed for request in engine.asked]
    assert len(set(seeds)) == len(seeds) == 6


def test_the_response_limit_counts_all_steps() -> None:
    partial, engine = PartialRollouts(3), CountingEngine()
    assert step(partial, engine, [LONG], max_new_tokens=5) == ()
    (first, _) = step(partial, engine, [], max_new_tokens=5)
    assert engine.asked[0].max_new_tokens == 2
    assert first.num_response_tokens == 5 and first.finish == "length"


def test_a_saved_state_goes_on_with_the_same_trajectories() -> None:
    partial, engine = PartialRollouts(3), CountingEngine()
    step(partial, engine, [LONG, SHORT])
    saved = json.loads(json.dumps(partial.state_dict()))
    resumed, other = PartialRollouts(3), CountingEngine(policy_version=1)
    resumed.load_state_dict(saved)
    for _ in range(2):
        expected, got = step(partial, engine, []), step(resumed, other, [])
        assert [t.tokens.tolist() for t in got] == [t.tokens.tolist() for t in expected]
        assert [t.problem for t in got] == [t.problem for t in expected]
        assert other.asked == engine.asked


def test_a_step_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rollout.max_step_tokens is 0"):
        PartialRollouts(0)
