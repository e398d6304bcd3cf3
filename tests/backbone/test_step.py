# SPDX-License-Identifier: Apache-2.0
"""Scores against transformers; the algebra of an update: accumulation, minibatches, skipping."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from satori_fast.backbone.model import PolicyModel
from satori_fast.backbone.optimizer import NonFiniteUpdate, OptimizerSettings
from satori_fast.backbone.step import (
    Learner,
    annotate,
    build_learner,
    score,
    update,
    update_one,
    value,
    with_start_hidden,
)
from satori_fast.types import LossOutput, PackedBatch
from tests.tiny_models import ImitationLoss, ones, random_batch, reference_logits, tiny_model

_SETTINGS = OptimizerSettings(learning_rate=1e-3, weight_decay=0.1, epsilon=1e-6)


def _policy(name: str = "qwen2_tied", *, trained: bool = True) -> Learner:
    reference = tiny_model(name)
    return build_learner(
        reference.config,
        weights=reference.state_dict(),
        optimizer=_SETTINGS if trained else None,
    )


@pytest.mark.parametrize("name", ["qwen2_tied", "qwen3"])
def test_score_equals_log_softmax_of_transformers(name: str) -> None:
    reference = tiny_model(name)
    batches = [random_batch([7, 30, 2], seed) for seed in range(2)]
    results = score(_policy(name, trained=False), batches, temperature=0.7)
    for batch, logprobs in zip(batches, results, strict=True):
        expected = (reference_logits(reference, batch) / 0.7).log_softmax(-1)
        targets = expected.gather(1, batch.targets[:, None]).squeeze(1)
        assert not logprobs.requires_grad
        expected = torch.where(batch.loss_mask, targets, 0.0)
        torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "qwen2_tied"])
def test_padding_of_the_vocabulary_is_not_trained(name: str) -> None:
    reference, num_tokens = tiny_model(name), 90
    settings = OptimizerSettings(learning_rate=1e-2, weight_decay=0.0)
    learner = build_learner(reference.config, weights=reference.state_dict(), optimizer=settings)
    assert isinstance(learner.module, PolicyModel)
    learner.module.limit_vocabulary(num_tokens)
    batch = random_batch([12, 7, 30], vocab_size=num_tokens)
    update(learner, None, [batch], ones([batch]), ImitationLoss())
    before, after = reference.state_dict(), dict(learner.hf_weights())
    served = dict(learner.served_weights())
    for matrix in after.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
        assert torch.equal(after[matrix][num_tokens:], before[matrix][num_tokens:])
        assert not torch.equal(after[matrix][:num_tokens], before[matrix][:num_tokens])
        assert torch.equal(served[matrix], after[matrix][:num_tokens])
    assert served.keys() == after.keys() and learner.served_config().vocab_size == num_tokens


def test_annotate_fills_what_the_given_models_provide() -> None:
    policy = _policy()
    critic = build_learner(
        policy.hf_config, kind="scalar", weights=dict(policy.hf_weights()), optimizer=_SETTINGS
    )
    torch.nn.init.normal_(critic.module.output_layer.weight)
    batch = random_batch([7, 30, 2])
    (plain,) = annotate([batch], policy, temperature=1.0)
    assert plain.ref_logprobs is None and plain.values is None
    (full,) = annotate([batch], policy, _policy(trained=False), critic, temperature=1.0)
    assert torch.equal(full.require("old_logprobs"), full.require("ref_logprobs"))
    assert torch.equal(full.require("values"), value(critic, [batch])[0])
    assert full.require("values").std() > 0
    assert score(policy, [], temperature=1.0) == []


@pytest.mark.parametrize("name", ["qwen2", "qwen2_tied"])
def test_start_hidden_is_what_transformers_feeds_its_head_at_loss_tokens(name: str) -> None:
    reference = tiny_model(name)
    start = build_learner(reference.config, weights=reference.state_dict())
    batches = [random_batch([7, 30, 2]), random_batch([5], 1)]
    batches[1] = replace(batches[1], loss_mask=torch.zeros(5, dtype=torch.bool))
    first, padding = with_start_hidden(batches, start)
    hidden, mask = first.require("start_hidden"), first.loss_mask
    assert hidden.shape == (int(mask.sum()), 64) and not hidden.requires_grad
    assert padding.require("start_hidden").shape == (0, 64)
    assert isinstance(start.module, PolicyModel)
    weight = start.module.head_weight
    assert weight is not None
    with torch.no_grad():
        expected = reference_logits(reference, first)[mask]
        torch.testing.assert_close(
            hidden @ weight[: expected.shape[1]].T, expected, rtol=1e-4, atol=1e-4
        )
    assert with_start_hidden([], start) == []


def test_eight_microbatches_equal_one() -> None:
    sequences = [random_batch([length], length) for length in (5, 9, 14, 3, 22, 8, 11, 6)]
    num_tokens = sum(int(batch.loss_mask.sum()) for batch in sequences)
    apart = [replace(batch, num_minibatch_tokens=num_tokens) for batch in sequences]
    together = _concatenated(apart)
    policies = [_policy(), _policy()]
    stats = [
        update(policy, None, batches, ones(batches), ImitationLoss())
        for policy, batches in zip(policies, ([together], apart), strict=True)
    ]
    for key in stats[0]:
        assert stats[0][key] == pytest.approx(stats[1][key], rel=1e-5), key
    for (name, one), (_, eight) in zip(*(p.hf_weights() for p in policies), strict=True):
        # Adam divides by the gradient, so a small one passes its rounding on whole.
        assert (one - eight).abs().max() < 5e-6, name


def _concatenated(batches: list[PackedBatch]) -> PackedBatch:
    lengths = [batch.num_tokens for batch in batches]
    joined = {
        field: torch.cat([getattr(batch, field) for batch in batches])
        for field in ("tokens", "positions", "targets", "loss_mask", "loss_weights")
    }
    return replace(
        batches[0],
        **joined,
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
    )


def test_minibatches_are_steps_in_their_order() -> None:
    batches = [random_batch([12, 7], seed, minibatch=1 - seed) for seed in range(2)]
    mixed, ordered = _policy(), _policy()
    stats = update(mixed, None, batches, ones(batches), ImitationLoss())
    singles = [
        update(ordered, None, [batch], ones([batch]), ImitationLoss())
        for batch in reversed(batches)
    ]
    for (_, one), (_, two) in zip(mixed.hf_weights(), ordered.hf_weights(), strict=True):
        assert torch.equal(one, two)
    for key in ("update/loss", "update/entropy", "update/grad_norm"):
        assert stats[key] == pytest.approx(sum(single[key] for single in singles) / 2)
    assert stats["update/nll_max"] == max(single["update/nll_max"] for single in singles)


def test_critic_learns_and_warm_up_leaves_the_policy_alone() -> None:
    policy = _policy()
    critic = build_learner(
        policy.hf_config, kind="scalar", weights=dict(policy.hf_weights()), optimizer=_SETTINGS
    )
    before = {n: t.clone() for n, t in policy.hf_weights()}
    batch = random_batch([12, 7])
    losses = []
    for _ in range(4):
        stats = update(
            policy, critic, [batch], ones([batch]), ImitationLoss(), policy_enabled=False
        )
        assert not any(key.startswith("update/") for key in stats)
        losses.append(stats["critic/loss"])
    assert losses[0] == pytest.approx(1.0) and losses[-1] < 0.9 * losses[0]
    assert stats["critic/value_loss"] == stats["critic/loss"]
    assert all(torch.equal(t, before[n]) for n, t in policy.hf_weights())


class _InfiniteLoss(ImitationLoss):
    def policy(self, *args, **options) -> LossOutput:
        output = super().policy(*args, **options)
        return LossOutput(output.loss * math.inf, output.sums, output.maxes)


class _InfiniteValueWithFiniteGradient(ImitationLoss):
    def policy(self, *args, **options) -> LossOutput:
        output = super().policy(*args, **options)
        return LossOutput(output.loss + math.inf, output.sums, output.maxes)


@pytest.mark.parametrize("loss", [_InfiniteLoss(), _InfiniteValueWithFiniteGradient()])
def test_non_finite_step_is_skipped_and_counted_and_training_goes_on(loss: ImitationLoss) -> None:
    policy = _policy()
    batch = random_batch([12, 7])
    before = {n: t.clone() for n, t in policy.hf_weights()}
    stats = update(policy, None, [batch], ones([batch]), loss)
    assert stats["update/num_skipped"] == 1.0
    assert all(torch.equal(t, before[n]) for n, t in policy.hf_weights())
    stats = update(policy, None, [batch], ones([batch]), ImitationLoss())
    assert stats["update/num_skipped"] == 0.0 and math.isfinite(stats["update/grad_norm"])
    fresh = _policy()
    update(fresh, None, [batch], ones([batch]), ImitationLoss())
    for (_, one), (_, two) in zip(policy.hf_weights(), fresh.hf_weights(), strict=True):
        assert torch.equal(one, two)


def test_too_many_skipped_steps_in_a_row_are_an_error_with_the_batch() -> None:
    reference = tiny_model("qwen2_tied")
    policy = build_learner(
        reference.config,
        weights=reference.state_dict(),
        optimizer=replace(_SETTINGS, max_skipped_updates=2),
    )
    batches = [random_batch([12, 7], seed, minibatch=seed) for seed in range(2)]
    # A step that is taken starts a new count.
    for loss in (_InfiniteLoss(), ImitationLoss(), _InfiniteLoss()):
        update(policy, None, batches, ones(batches), loss)
    with pytest.raises(NonFiniteUpdate, match=r"3 updates in a row of 'update' .* loss -?inf") as e:
        update(policy, None, batches, ones(batches), _InfiniteLoss())
    assert (e.value.learner, e.value.num_skipped) == ("update", 3)
    ((batch, advantages),) = e.value.microbatches
    assert batch is batches[0] and advantages is not None


def test_losses_that_are_infinite_both_ways_have_a_mean() -> None:
    policy = _policy()
    batches = [random_batch([12, 7], seed, minibatch=seed) for seed in range(2)]

    class BothWays(ImitationLoss):
        def policy(self, hidden, weight, batch, *args, **options) -> LossOutput:
            output = super().policy(hidden, weight, batch, *args, **options)
            sign = 1 - 2 * batch.minibatch
            return LossOutput(output.loss.abs() * sign * math.inf, output.sums, output.maxes)

    stats = update(policy, None, batches, ones(batches), BothWays())
    assert math.isnan(stats["update/loss"]) and stats["update/num_skipped"] == 2.0


def _sum_of_squared_ends(values: Tensor, batch: PackedBatch) -> LossOutput:
    """A loss with a term for each sequence: (v - 1)^2 of its last token."""
    loss = (values[batch.last_tokens] - 1.0).square().sum()
    return LossOutput(loss, {"ends": values[batch.last_tokens].detach().sum()}, {})


def test_a_scalar_model_learns_from_a_loss_of_its_own_however_it_is_packed() -> None:
    policy = _policy()
    weights = dict(policy.hf_weights())
    models = [
        build_learner(policy.hf_config, kind="scalar", weights=weights, optimizer=_SETTINGS)
        for _ in range(2)
    ]
    apart = [replace(random_batch([n], n), num_minibatch_tokens=3) for n in (5, 9, 4)]
    together = replace(
        _concatenated(apart),
        cu_seqlens=torch.tensor([0, 5, 14, 18], dtype=torch.int32),
        source=torch.arange(3),
    )
    for step in range(3):
        one = update_one(models[0], [together], _sum_of_squared_ends, name="reward")
        three = update_one(models[1], apart, _sum_of_squared_ends, name="reward")
        assert one == pytest.approx(three, rel=1e-4)
        # The head starts at zero: three terms of 1, divided by their number.
        assert step or (one["reward/loss"], one["reward/ends"]) == (1.0, 0.0)
    assert one["reward/loss"] < 0.9 and one["reward/learning_rate"] == 1e-3
    assert update_one(models[0], [], _sum_of_squared_ends, name="reward") == {}


def test_frozen_learner_cannot_be_updated() -> None:
    batch = random_batch([12, 7])
    with pytest.raises(ValueError, match="frozen"):
        update(_policy(trained=False), None, [batch], ones([batch]), ImitationLoss())
