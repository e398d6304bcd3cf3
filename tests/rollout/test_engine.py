# SPDX-License-Identifier: Apache-2.0
"""What `collect` makes of completions that come in any order."""

from __future__ import annotations

import numpy as np
import pytest

from satori_fast.data.arithmetic import domain_words
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer, full_response
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.rollout.engine import SamplingParams, collect, request_seed
from satori_fast.types import Prefix, Problem
from tests.rollout.scripted_engine import LOGPROB, ScriptedEngine

RENDERER = PromptRenderer(build_word_tokenizer(domain_words()), PLAIN_TEMPLATE, 12)
PROBLEMS = [
    Problem("a", "sum 1", "1"),
    Problem("b", "sum 2 2", "2"),
    Problem("b again", "sum 2 2", "2", Prefix("5<|reflect|>", "restart", correct=False)),
]
RESPONSES = {
    "sum 1": ["p", "p p"],
    "sum 2 2": ["q <|reflect|> q", "q"],
    "sum 2 2 5 <|reflect|>": ["over <|explore|> less", "under"],
}


def engine(**options: object) -> ScriptedEngine:
    return ScriptedEngine(RENDERER, RESPONSES, **options)  # type: ignore[arg-type]


def test_problems_in_order_and_siblings_together() -> None:
    result = collect(engine(policy_version=5), PROBLEMS, SamplingParams(num_samples=2))
    texts = [full_response(t) for t in result.trajectories]
    assert texts == [
        "p",
        "p p",
        "q<|reflect|> q",
        "q",
        "5<|reflect|>over<|explore|> less",
        "5<|reflect|>under",
    ]
    assert [t.problem for t in result.trajectories] == [p for p in PROBLEMS for _ in range(2)]
    assert [t.group_id for t in result.trajectories] == [0, 0, 1, 1, 2, 2]
    assert [t.policy_version for t in result.trajectories] == [5] * 6
    assert result.policy_version == 5


def test_same_problem_from_another_prefix_is_another_group() -> None:
    result = collect(engine(), [*PROBLEMS, PROBLEMS[0]], SamplingParams())
    assert [t.group_id for t in result.trajectories] == [0, 1, 2, 3]


def test_tokens_and_log_probs_are_the_engines() -> None:
    result = collect(engine(), PROBLEMS[:1], SamplingParams(num_samples=2))
    first, second = result.trajectories
    assert first.tokens.tolist() == [*RENDERER.encode("sum 1 p"), RENDERER.eos_id]
    assert first.tokens.dtype == np.int32
    assert first.prompt_len == 2
    assert second.logprobs.tolist() == [LOGPROB] * 3
    assert second.logprobs.dtype == np.float32


def test_tokens_are_counted_once_per_sample() -> None:
    result = collect(engine(), PROBLEMS, SamplingParams(num_samples=2))
    # Prompts of 2, 3 and 5 tokens; responses with their end of text.
    assert result.num_prompt_tokens == 2 * (2 + 3 + 5)
    assert result.num_generated_tokens == (2 + 3) + (4 + 2) + (4 + 2)
    assert result.num_generated_tokens == sum(t.num_response_tokens for t in result.trajectories)
    assert result.wall_s > 0


def test_requests_carry_limits_stops_and_sampling() -> None:
    sampling = SamplingParams(temperature=0.5, max_new_tokens=7, num_samples=2)
    scripted = engine(max_seqlen=10)
    collect(scripted, PROBLEMS, sampling)
    assert scripted.sampling is sampling
    # The context leaves 8, 7 and 5 tokens.
    assert [r.max_new_tokens for r in scripted.requests] == [7, 7, 7, 7, 5, 5]
    assert {r.stop_ids for r in scripted.requests} == {(RENDERER.eos_id,)}
    assert [list(r.prompt_ids) for r in scripted.requests[::2]] == [
        RENDERER.prompt_ids(p) for p in PROBLEMS
    ]


def test_response_at_the_limit_is_cut() -> None:
    result = collect(engine(), PROBLEMS, SamplingParams(max_new_tokens=2))
    assert [t.finish for t in result.trajectories] == ["stop", "length", "length"]
    assert [t.num_response_tokens for t in result.trajectories] == [2, 2, 2]
    assert full_response(result.trajectories[1]) == "q<|reflect|>"


def test_every_request_has_a_seed_of_its_own() -> None:
    scripted = engine()
    collect(scripted, PROBLEMS, SamplingParams(num_samples=4, seed=1))
    seeds = [r.seed for r in scripted.requests]
    assert len(set(seeds)) == 12
    collect(scripted, PROBLEMS[:2], SamplingParams(num_samples=4, seed=1))
    assert [r.seed for r in scripted.requests] == seeds[:8]
    collect(scripted, PROBLEMS, SamplingParams(num_samples=4, seed=2))
    assert not set(seeds) & {r.seed for r in scripted.requests}


def test_request_seeds_are_distinct_and_63_bits() -> None:
    seeds = {request_seed(s, g, k) for s in range(5) for g in range(40) for k in range(20)}
    assert len(seeds) == 5 * 40 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Neighbouring arguments share no bits to speak of.
    assert max(seeds) > 2**62 > min(seeds)


def test_no_problem_no_trajectory() -> None:
    result = collect(engine(), [], SamplingParams())
    assert result.trajectories == ()
    assert (result.num_prompt_tokens, result.num_generated_tokens) == (0, 0)


def test_prompt_longer_than_its_limit() -> None:
    long = Problem("long", " ".join(["9"] * 13), "1")
    with pytest.raises(ValueError, match="prompt of problem 'long' has 13 tokens, more than"):
        collect(engine(), [long], SamplingParams())


def test_prompt_that_fills_the_context() -> None:
    scripted = engine(max_seqlen=5)
    with pytest.raises(ValueError, match=r"'b again' has 5 tokens.* 5: raise rollout.max_seqlen"):
        collect(scripted, PROBLEMS, SamplingParams())
    # Refused before anything was sampled.
    assert scripted.requests == []
    assert len(collect(engine(max_seqlen=6), PROBLEMS, SamplingParams()).trajectories) == 3


def test_engine_that_loses_a_sample_is_found_out() -> None:
    with pytest.raises(RuntimeError, match="the engine returned 2 of 3 samples"):
        collect(engine(losing=frozenset({1})), PROBLEMS, SamplingParams())


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"num_samples": 0}, "num_samples"),
    ],
)
def test_sampling_that_cannot_be(broken: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"sampling.*{name}"):
        SamplingParams(**broken)  # type: ignore[arg-type]


def test_greedy_and_borders_are_allowed() -> None:
    SamplingParams(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=1, num_samples=1)
