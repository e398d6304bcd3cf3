# SPDX-License-Identifier: Apache-2.0
"""The alarm on engine against trainer: it is raised for other weights, and for numbers that are
none; not for the same weights, nor for what older weights sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.step import Learner, annotate, build_learner
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.rollout.engine import SamplingParams, collect
from satori_fast.stages.mismatch import MismatchError, check_logprobs
from satori_fast.types import Experience, Problem, Trajectory
from tests.rollout.test_embedded_engine import WORDS, engine_of, renderer
from tests.tiny_models import tiny_model

LIMIT = 0.05


def policy_of(*, moved_by: float = 0.0) -> Learner:
    """A tiny policy; `moved_by` is the standard deviation of what is added to its weights."""
    initialize_parallel(seed=0)
    model = tiny_model("qwen2_tied", num_hidden_layers=2)
    torch.manual_seed(1)
    weights = {k: w + moved_by * torch.randn_like(w) for k, w in model.state_dict().items()}
    return build_learner(model.config, weights=weights)


def sampled(policy: Learner, *, version: int = 0) -> list[Trajectory]:
    problems = [Problem(f"problem {n}", " ".join(WORDS[:n]), "1") for n in (4, 11)]
    engine = engine_of(policy)
    engine.policy_version = version
    sampling = SamplingParams(max_new_tokens=12, num_samples=2, seed=7)
    return list(collect(engine, problems, sampling).trajectories)


def check(
    trajectories: Sequence[Trajectory],
    trainer: Learner,
    *,
    version: int = 0,
    limit: float | None = LIMIT,
) -> None:
    packing = PackingSpec(max_tokens_per_microbatch=64, num_minibatches=1)
    batches = pack(trajectories, None, packing, "token")
    check_logprobs(
        annotate(batches, trainer, temperature=1.0),
        Experience(tuple(trajectories), policy_version=version),
        limit=limit,
        parallel=initialize_parallel(seed=0),
        tokenizer=renderer().tokenizer,
    )


def test_an_engine_with_the_trainers_weights_is_fine() -> None:
    policy = policy_of()
    check(sampled(policy), policy, limit=1e-4)


def test_an_engine_with_other_weights_is_stopped_and_its_first_token_shown() -> None:
    other = sampled(policy_of(moved_by=0.05))
    with pytest.raises(MismatchError, match=r"differ by [\d.]+ nats per token, above") as caught:
        check(other, policy_of())
    message = str(caught.value)
    assert "rollout.max_logprob_diff = 0.05: the engine samples from other weights" in message
    assert "First on rank 0: problem 'problem " in message and "in: '" in message
    assert "\n" not in message
    check(other, policy_of(), limit=None)  # the alarm is switched off
    check(other, policy_of(), limit=100.0)


def test_tokens_of_older_weights_are_left_out() -> None:
    policy = policy_of()
    stale, fresh = sampled(policy_of(moved_by=0.05), version=3), sampled(policy, version=4)
    check([*stale, *fresh], policy, version=4)
    check(stale, policy, version=4)
    with pytest.raises(MismatchError, match="other weights"):
        check([*stale, *fresh], policy, version=3)
    # Responses that began under older weights: their own version is that of the last token.
    versions = [np.full(t.num_response_tokens, 3) for t in stale]
    for of_tokens in versions:
        of_tokens[-1] = 4
    began = [replace(t, versions=v, policy_version=4) for t, v in zip(stale, versions, strict=True)]
    check([*began, *fresh], policy, version=4, limit=0.5)


@pytest.mark.parametrize("limit", [LIMIT, None])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_an_engine_whose_log_probs_are_not_numbers_is_named(
    broken: float, limit: float | None
) -> None:
    policy = policy_of()
    trajectories = sampled(policy)
    logprobs = trajectories[1].logprobs.copy()
    logprobs[2] = broken
    trajectories[1] = replace(trajectories[1], logprobs=logprobs)
    position = trajectories[1].prompt_len + 2
    with pytest.raises(MismatchError, match="the engine returned 1 log-probs that are not") as e:
        check(trajectories, policy, limit=limit)
    assert f"problem 'problem 4', token {position} " in str(e.value)
    # Also where older weights sampled it: it weighs in the update all the same.
    with pytest.raises(MismatchError, match="the engine returned 1 log-probs"):
        check(trajectories, policy, version=1, limit=limit)


@pytest.mark.parametrize("limit", [LIMIT, None])
def test_a_policy_whose_log_probs_are_not_numbers_is_named(limit: float | None) -> None:
    policy = policy_of()
    trajectories = sampled(policy)
    with torch.no_grad():
        next(policy.module.parameters())[0, 0] = math.nan
    with pytest.raises(MismatchError, match=r"the policy gives \d+ tokens .* a weight is NaN"):
        check(trajectories, policy, limit=limit)
