# SPDX-License-Identifier: Apache-2.0
"""The device half of a step, on tiny models against transformers and the pieces it is made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from satori_fast.algorithms.credit import Terminal
from satori_fast.algorithms.recipe import effective_recipe
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.step import Learner, build_learner
from satori_fast.config import OptimizerConfig
from satori_fast.data.packing import PackingSpec
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.stages.models import optimizer_settings
from satori_fast.stages.trainer import Trainer, scored_share
from satori_fast.types import Experience, PackedBatch, RewardBreakdown, Trajectory
from tests.algorithms.test_advantages import make_trajectory
from tests.tiny_models import reference_logits, tiny_model

OPTIMIZER = optimizer_settings(OptimizerConfig(learning_rate=1e-3), num_steps=4)
MODEL = tiny_model("qwen2_tied", num_hidden_layers=2)


def learner(*, trained: bool = True, scalar: bool = False) -> Learner:
    initialize_parallel(seed=0)
    made = build_learner(
        MODEL.config,
        kind="scalar" if scalar else "policy",
        weights=MODEL.state_dict(),
        optimizer=OPTIMIZER if trained else None,
    )
    if scalar:
        torch.nn.init.normal_(made.module.output_layer.weight)
    return made


def trainer(
    name: str = "grpo", *, warmup: int = 0, minibatches: int = 1, **overrides: object
) -> Trainer:
    recipe = effective_recipe(name, temperature=0.7, **overrides)
    return Trainer(
        recipe,
        learner(),
        learner(scalar=True) if "critic" in recipe.needs else None,
        learner(trained=False) if "reference" in recipe.needs else None,
        initialize_parallel(seed=0),
        lambda step: PackingSpec(64, minibatches, seed=step, fixed_length=10),
        SpanRecorder().span,
        build_word_tokenizer(["a"]),
        critic_warmup_steps=warmup,
    )


def experience(rewards: tuple[float, ...] = (1.0, 0.0)) -> Experience:
    made: list[Trajectory] = []
    for number, reward in enumerate(rewards):
        trajectory = replace(
            make_trajectory(3, [4, 2 + number]), reward=RewardBreakdown({"rule": reward})
        )
        made.append(trajectory)
    return Experience(tuple(made), tuple(Terminal().assign(made)), tuple(made))


def test_models_follow_the_recipe() -> None:
    grpo, ppo, rloo = (trainer(name) for name in ("grpo", "ppo", "rloo"))
    assert list(grpo.learners) == ["policy"] and grpo.scorers == [grpo.policy]
    assert list(ppo.learners) == ["policy", "critic"] and ppo.scorers == [ppo.policy, ppo.critic]
    # A frozen reference scores and is not trained.
    assert list(rloo.learners) == ["policy"]
    assert rloo.scorers == [rloo.policy, rloo.reference]


def test_the_critic_warms_up_alone() -> None:
    ppo = trainer("ppo", warmup=2)
    assert [list(ppo.trained(step)) for step in range(3)] == [
        ["critic"],
        ["critic"],
        ["policy", "critic"],
    ]
    before = {name: w.clone() for name, w in ppo.policy.hf_weights()}
    batches = ppo.annotate(ppo.pack(experience(), 0))
    stats = ppo.update(batches, ppo.advantages(batches)[0], 0)
    assert "critic/loss" in stats and "update/loss" not in stats
    assert all(torch.equal(before[name], w) for name, w in ppo.policy.hf_weights())


@pytest.mark.parametrize("name", ["grpo", "ppo", "rloo", "grpo_no_std"])
def test_a_step_annotates_at_the_samplers_temperature_and_updates(name: str) -> None:
    made = trainer(name)
    batches = made.annotate(made.pack(experience(), 0))
    for batch in batches:
        logits = reference_logits(MODEL, batch) / 0.7
        expected = logits.log_softmax(-1).gather(1, batch.targets[:, None]).squeeze(1)
        mask = batch.loss_mask
        torch.testing.assert_close(batch.old_logprobs[mask], expected[mask], atol=1e-5, rtol=1e-5)
        if made.reference is not None:
            torch.testing.assert_close(batch.ref_logprobs[mask], expected[mask])
    estimates, metrics = made.advantages(batches)
    assert len(estimates) == len(batches) and metrics == {}
    before = {name: w.clone() for name, w in made.policy.hf_weights()}
    assert np.isfinite(made.update(batches, estimates, 0)["update/loss"])
    assert any(not torch.equal(before[name], w) for name, w in made.policy.hf_weights())


@pytest.mark.parametrize(("name", "minibatches"), [("grpo", 1), ("grpo", 2), ("ppo", 1)])
def test_log_probs_of_the_first_minibatch_come_from_its_update(name: str, minibatches: int) -> None:
    before, during = (trainer(name, minibatches=minibatches) for _ in range(2))
    assert during.scores_late(0)
    batches = before.annotate(before.pack(experience(), 0))
    expected = before.update(batches, before.advantages(batches)[0], 0)
    left = during.annotate(during.pack(experience(), 0), late=True)
    for batch in left:
        assert (batch.old_logprobs is None) == (batch.minibatch == 0)
        assert (batch.values is None) == (name != "ppo")
    share = 1 - left[0].num_minibatch_tokens / sum(
        {batch.minibatch: batch.num_minibatch_tokens for batch in left}.values()
    )
    assert scored_share(left) == pytest.approx(share)
    weights = {key: w.clone() for key, w in during.policy.hf_weights()}
    scored: list[PackedBatch] = []

    def done(batches: list[PackedBatch]) -> None:
        scored.extend(batches)
        assert all(torch.equal(weights[key], w) for key, w in during.policy.hf_weights())

    stats = during.update(left, during.advantages(left)[0], 0, scored=done)
    assert stats == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for one, other in zip(batches, scored, strict=True):
        found, known = one.require("old_logprobs"), other.require("old_logprobs")
        torch.testing.assert_close(found, known, atol=1e-6, rtol=1e-6)
    assert scored_share(scored) == 1.0 == scored_share([])


def test_log_probs_come_first_where_something_asks_for_them() -> None:
    assert not trainer(importance="mask", importance_level="sequence").scores_late(0)
    assert trainer(importance="truncate", importance_level="token").scores_late(0)
    warming = trainer("ppo", warmup=1)
    assert [warming.scores_late(step) for step in (0, 1)] == [False, True]


def test_weights_of_sequences_are_counted() -> None:
    """The engine claims other log-probs than the trainer's: whole sequences leave the range."""
    made = trainer(importance="mask", importance_level="sequence")
    batches = made.annotate(made.pack(experience(), 0))
    estimates, metrics = made.advantages(batches)
    # Stored log-probs are 0, so the ratio of a sequence is exp(sum of log-probs): above 0, below 2.
    assert metrics == {"rollout/sequence_clip_fraction": 0.0}
    far = [replace(b, rollout_logprobs=b.rollout_logprobs - 100) for b in batches]
    masked, metrics = made.advantages(far)
    assert metrics == {"rollout/sequence_clip_fraction": 1.0}
    assert not any(a.advantages.any() for a in masked)
    assert any(a.advantages.any() for a in estimates)
