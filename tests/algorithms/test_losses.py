# SPDX-License-Identifier: Apache-2.0
"""Losses against the formulas on dense logits in float64, values and gradients by autograd."""

from __future__ import annotations

import datetime
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from satori_fast.algorithms.losses import (
    AnchoredImitation,
    PolicyLoss,
    explained_variance,
    imitation_loss,
    pairwise_loss,
    preference_loss,
)
from satori_fast.algorithms.ratios import RatioUnit
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.kernels import PolicyTerms
from satori_fast.types import (
    Advantages,
    Credit,
    LossOutput,
    PackedBatch,
    Problem,
    Segment,
    SegmentKind,
    Trajectory,
)
from tests.tiny_models import random_batch

HIDDEN, VOCAB, PADDED_VOCAB = 8, 13, 16


def make_trajectory(prompt_len: int, response_len: int, rng: np.random.Generator) -> Trajectory:
    return Trajectory(
        problem=Problem("p", "q", "a"),
        group_id=0,
        tokens=rng.integers(0, VOCAB, prompt_len + response_len, dtype=np.int32),
        prompt_len=prompt_len,
        logprobs=-rng.random(response_len, dtype=np.float32) - 2.0,
        policy_version=0,
        finish="stop",
        segments=(Segment(SegmentKind.WHOLE, 0, response_len, ""),),
    )


def split(trajectory: Trajectory, num: int) -> Trajectory:
    """The same response in up to `num` segments of about one length."""
    ends = np.unique(np.linspace(0, trajectory.num_response_tokens, num + 1).astype(int)).tolist()
    segments = (Segment(SegmentKind.STEP, a, b, "") for a, b in pairwise(ends))
    return replace(trajectory, segments=tuple(segments))


def make_problem(
    seed: int = 0, temperature: float = 1.0, *, splits: int = 1, drift: float = 0.6
) -> tuple[Tensor, Tensor, PackedBatch, Advantages]:
    """Hidden states, output weight (with padded rows), an annotated batch and its advantages."""
    rng = np.random.default_rng(seed)
    shapes = [(3, 6), (1, 9), (5, 1), (2, 8), (1, 12)]
    trajectories = [split(make_trajectory(p, r, rng), splits) for p, r in shapes]
    (batch,) = pack(trajectories, None, PackingSpec(64, 1, pad_to_multiple=8), "sequence")
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden, weight = noise(batch.num_tokens, HIDDEN), noise(PADDED_VOCAB, HIDDEN)
    near = dense_logprobs(hidden, weight, batch, temperature)[0].float()
    mask = batch.loss_mask
    batch = batch.annotated(
        # Wide enough that ratios fall on both sides of both clips.
        old_logprobs=torch.where(mask, near + drift * noise(batch.num_tokens), 0.0),
        ref_logprobs=torch.where(mask, near + 0.5 * noise(batch.num_tokens), 0.0),
        values=torch.where(mask, noise(batch.num_tokens), 0.0),
    )
    advantages, returns = noise(2, batch.num_tokens).where(mask, torch.tensor(0.0))
    return hidden, weight, batch, Advantages(advantages, returns)


def dense_logprobs(
    hidden: Tensor, weight: Tensor, batch: PackedBatch, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets and entropies, from whole float64 logits."""
    logits = hidden.double() @ weight[:VOCAB].double().T / temperature
    logprobs = logits.log_softmax(dim=-1)
    entropies = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(1, batch.targets[:, None]).squeeze(1), entropies


def dense_policy_terms(
    terms: PolicyTerms, logprobs: Tensor, batch: PackedBatch, advantages: Advantages
) -> dict[str, Tensor]:
    """Per-token terms of the docstring's formula, before weights and coefficients."""
    ratio = (logprobs - batch.require("old_logprobs").double()).exp()
    clipped = ratio.clamp(1 - terms.clip_low, 1 + terms.clip_high)
    signal = advantages.advantages.double()
    log_ratio = logprobs - batch.require("ref_logprobs").double()
    kl = {
        "k1": log_ratio,
        "k2": log_ratio.square() / 2,
        "k3": (-log_ratio).exp() - 1 + log_ratio,
    }[terms.kl_estimator]
    return {
        "policy": -torch.minimum(ratio * signal, clipped * signal),
        "kl": kl,
        "low": ((ratio < 1 - terms.clip_low) & (signal < 0)).double(),
        "high": ((ratio > 1 + terms.clip_high) & (signal > 0)).double(),
        "ratio": ratio,
    }


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    actual, expected = actual.detach().double(), expected.detach().double()
    assert float((actual - expected).norm()) <= tolerance * max(float(expected.norm()), 1e-3)


@pytest.mark.parametrize(
    "loss",
    [
        PolicyLoss(),
        PolicyLoss(PolicyTerms(clip_high=0.28), temperature=0.6),
        PolicyLoss(PolicyTerms(kl_coefficient=0.3, kl_estimator="k1")),
        PolicyLoss(PolicyTerms(kl_coefficient=0.3, kl_estimator="k2")),
        PolicyLoss(PolicyTerms(kl_coefficient=0.3, kl_estimator="k3", entropy_coefficient=0.1)),
    ],
    ids=["clip", "asymmetric-tempered", "k1", "k2", "k3-entropy"],
)
def test_policy_loss_is_the_dense_formula(loss: PolicyLoss) -> None:
    terms = loss.terms
    hidden, weight, batch, advantages = make_problem(temperature=loss.temperature)
    hidden.requires_grad_()
    weight.requires_grad_()
    output = loss.policy(hidden, weight, batch, advantages, vocab_size=VOCAB)
    gradients = torch.autograd.grad(output.loss, (hidden, weight))

    logprobs, entropies = dense_logprobs(hidden, weight, batch, loss.temperature)
    parts = dense_policy_terms(terms, logprobs, batch, advantages)
    weights = batch.loss_weights.double()
    expected = (
        weights
        * (
            parts["policy"]
            + terms.kl_coefficient * parts["kl"]
            - terms.entropy_coefficient * entropies
        )
    ).sum()
    assert_close(output.loss, expected)
    for actual, wanted in zip(
        gradients, torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert_close(actual, wanted)
    assert not gradients[0][~batch.loss_mask].any()
    assert_close(output.sums["policy_loss"], (weights * parts["policy"]).sum())
    assert_close(output.sums["entropy"], (weights * entropies).sum())
    assert_close(output.sums["clip_fraction_low"], (weights * parts["low"]).sum())
    assert_close(output.sums["clip_fraction_high"], (weights * parts["high"]).sum())
    assert output.sums["clip_fraction_low"] > 0 and output.sums["clip_fraction_high"] > 0
    assert_close(output.maxes["ratio_max"], parts["ratio"][batch.loss_mask].max())
    if terms.kl_coefficient:
        assert_close(output.sums["kl"], (weights * parts["kl"]).sum())


@pytest.mark.parametrize("unit", ["token", "segment", "sequence"])
@pytest.mark.parametrize(
    "loss",
    [
        PolicyLoss(temperature=0.6),
        PolicyLoss(PolicyTerms(kl_coefficient=0.3), ratio="segment", ratio_mean=True),
        PolicyLoss(ratio="sequence", ratio_mean=False),
    ],
    ids=["token", "segment", "product"],
)
def test_the_kl_of_now_is_taken_off_the_advantage(loss: PolicyLoss, unit: RatioUnit) -> None:
    """The same as advantages from which whole float64 logits have taken it off beforehand."""
    hidden, weight, batch, advantages = make_problem(
        temperature=loss.temperature, splits=3, drift=0.1
    )
    logprobs, _ = dense_logprobs(hidden, weight, batch, loss.temperature)
    gaps = logprobs - batch.require("ref_logprobs").double()
    names = torch.arange(batch.num_tokens)
    if unit != "token":
        names = batch.segment_ids if unit == "segment" else batch.sequence_of_token()
    sums = torch.zeros_like(gaps)
    for place in batch.loss_mask.nonzero().squeeze(1).tolist():
        sums[place] = gaps[(names == names[place]) & batch.loss_mask].sum()
    less = replace(advantages, advantages=(advantages.advantages - 0.4 * sums).float())
    hidden.requires_grad_()
    weight.requires_grad_()
    outputs = [
        replace(loss, advantage_kl=0.4, advantage_kl_unit=unit).policy(
            hidden, weight, batch, advantages, vocab_size=VOCAB
        ),
        loss.policy(hidden, weight, batch, less, vocab_size=VOCAB),
    ]
    ours, theirs = outputs
    assert_close(ours.loss, theirs.loss)
    for a, b in zip(
        *(torch.autograd.grad(output.loss, (hidden, weight)) for output in outputs), strict=True
    ):
        assert_close(a, b)
    assert_close(ours.sums["advantage_kl"], (batch.loss_weights.double() * sums).sum())
    assert "advantage_kl" not in theirs.sums
    # It hangs on the policy of now alone: a policy that is its reference has none.
    still = replace(batch, ref_logprobs=torch.where(batch.loss_mask, logprobs, 0.0).float())
    zero = replace(loss, advantage_kl=0.4, advantage_kl_unit=unit).policy(
        hidden, weight, still, advantages, vocab_size=VOCAB
    )
    assert abs(zero.sums["advantage_kl"]) < 1e-4


def test_kl_needs_the_reference() -> None:
    hidden, weight, batch, advantages = make_problem()
    batch = replace(batch, ref_logprobs=None)
    terms = PolicyLoss(PolicyTerms(kl_coefficient=0.1))
    with pytest.raises(ValueError, match="ref_logprobs"):
        terms.policy(hidden, weight, batch, advantages, vocab_size=VOCAB)
    PolicyLoss().policy(hidden, weight, batch, advantages, vocab_size=VOCAB)


def unit_ratios(
    loss: PolicyLoss, logprobs: Tensor, batch: PackedBatch
) -> tuple[Tensor, list[list[int]]]:
    """The definition: a ratio per loss token, float64 and differentiable, and the units."""
    log_ratios = logprobs - batch.require("old_logprobs").double()
    ids = batch.segment_ids if loss.ratio == "segment" else batch.sequence_of_token()
    units: dict[int, list[int]] = {}
    for place in batch.loss_mask.nonzero()[:, 0].tolist():
        units.setdefault(int(ids[place]), []).append(place)
    ratios = torch.ones(batch.num_tokens, dtype=torch.float64)
    for places in units.values():
        total = log_ratios[places].mean() if loss.ratio_mean else log_ratios[places].sum()
        ratios = ratios.index_put((torch.tensor(places),), total.exp())
    return ratios, list(units.values())


UNITS = [
    PolicyLoss(
        PolicyTerms(clip_low=0.1, clip_high=0.1, clip_dual=1.5), ratio=ratio, ratio_mean=mean
    )
    for ratio in ("segment", "sequence")
    for mean in (True, False)
]


@pytest.mark.parametrize("loss", UNITS, ids=lambda x: f"{x.ratio}-{x.ratio_mean}")
@pytest.mark.parametrize("extra", [{}, {"kl_coefficient": 0.3, "entropy_coefficient": 0.1}])
def test_a_ratio_of_units_is_its_definition(loss: PolicyLoss, extra: dict[str, float]) -> None:
    """Loss and gradient by autograd in float64 of one min(rho A, clip(rho) A) per unit, with the
    weights of its tokens added up; advantages and weights are those of a group baseline."""
    loss = replace(loss, terms=loss.terms._replace(**extra), temperature=0.7)
    terms = loss.terms
    hidden, weight, batch, _ = make_problem(seed=4, temperature=0.7, splits=2, drift=0.15)
    signal = torch.tensor([1.0, -0.6, 0.4, -1.5, 0.8])[batch.sequence_of_token().clamp(max=4)]
    signal = torch.where(batch.loss_mask, signal, 0.0)
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    output = loss.policy(hidden, weight, batch, Advantages(signal), vocab_size=VOCAB)
    gradients = torch.autograd.grad(output.loss, (hidden, weight))

    logprobs, entropies = dense_logprobs(hidden, weight, batch, 0.7)
    ratios, units = unit_ratios(loss, logprobs, batch)
    weights = batch.loss_weights.double()
    policy, num_clipped = torch.zeros((), dtype=torch.float64), 0
    for places in units:
        ratio, advantage = ratios[places[0]], float(signal[places[0]])
        clipped = ratio.clamp(1 - terms.clip_low, 1 + terms.clip_high)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage)
        if advantage < 0:
            surrogate = surrogate.clamp(min=terms.clip_dual * advantage)
        num_clipped += int(surrogate.item() != (ratio * advantage).item())
        policy = policy - weights[places].sum() * surrogate
    assert 0 < num_clipped < len(units)
    ref = batch.require("ref_logprobs").double()
    kl = (weights * ((ref - logprobs).exp() - 1 - ref + logprobs)).sum()
    entropy = (weights * entropies).sum()
    expected = policy + terms.kl_coefficient * kl - terms.entropy_coefficient * entropy
    assert_close(output.loss, expected)
    assert_close(output.sums["policy_loss"], policy)
    wanted = torch.autograd.grad(expected, (hidden, weight))
    for actual, truth in zip(gradients, wanted, strict=True):
        assert_close(actual, truth, tolerance=1e-9)
    assert_close(output.maxes["ratio_max"], ratios[batch.loss_mask].max())
    # Trainer against engine is of tokens, whatever the ratio is of.
    gaps = (batch.require("old_logprobs") - batch.rollout_logprobs)[batch.loss_mask]
    assert_close(output.maxes["rollout_abs_diff_max"], gaps.abs().max(), tolerance=1e-5)


@pytest.mark.parametrize("mean", [True, False])
def test_where_advantages_differ_each_token_keeps_its_share(mean: bool) -> None:
    """GSPO-token: the unit's ratio is a constant, the token's own probability has the gradient; and
    the importance of tokens weighs by trainer and engine as they are."""
    terms = PolicyTerms(importance="truncate", importance_low=0.8, importance_high=1.1)
    loss = PolicyLoss(
        terms._replace(clip_low=0.3, clip_high=0.3), ratio="sequence", ratio_mean=mean
    )
    hidden, weight, batch, advantages = make_problem(seed=5, drift=0.02)
    hidden.requires_grad_()
    output = loss.policy(hidden, weight, batch, advantages, vocab_size=VOCAB)
    (gradient,) = torch.autograd.grad(output.loss, hidden)
    logprobs, _ = dense_logprobs(hidden, weight, batch, 1.0)
    ratios, units = unit_ratios(loss, logprobs, batch)
    lengths = torch.ones(batch.num_tokens, dtype=torch.float64)
    for places in units:
        lengths[places] = 1.0 if mean else float(len(places))
    gap = batch.require("old_logprobs").double() - batch.rollout_logprobs.double()
    scale = batch.loss_weights * gap.exp().clamp(0.8, 1.1) * advantages.advantages
    value, inside = -(scale * ratios.detach()).sum(), ((ratios - 1).abs() < 0.3).all()
    assert inside
    assert_close(output.loss, value)
    share = -(scale * lengths * ratios.detach() * logprobs).sum()
    assert_close(gradient, torch.autograd.grad(share, hidden)[0])


def worked(mean: bool, advantage: float) -> tuple[float, list[float]]:
    """Loss, and its gradient in each log-probability, of one response of three tokens whose log
    ratios are 0.1, -0.05 and 0.2, with weights of 1/3."""
    # Column t of the output layer's input moves the target's log-probability alone: by 1 - p.
    trajectory = make_trajectory(1, 3, np.random.default_rng(0))
    (batch,) = pack([trajectory], None, PackingSpec(8, 1), "sequence")
    batch = replace(batch, loss_weights=batch.loss_weights / 3)
    hidden = torch.zeros(4, HIDDEN, dtype=torch.float64, requires_grad=True)
    weight = torch.zeros(VOCAB, HIDDEN, dtype=torch.float64)
    weight[batch.targets[:3], torch.arange(3)] = 1.0
    now = torch.full((4,), -math.log(VOCAB), dtype=torch.float64)
    old = now - torch.tensor([0.1, -0.05, 0.2, 0.0], dtype=torch.float64)
    signal = torch.where(batch.loss_mask, advantage, 0.0)
    loss = PolicyLoss(ratio="sequence", ratio_mean=mean)
    output = loss.policy(
        hidden, weight, batch.annotated(old_logprobs=old), Advantages(signal), vocab_size=VOCAB
    )
    (gradient,) = torch.autograd.grad(output.loss, hidden)
    slope = 1 - 1 / VOCAB
    same = [(batch.targets[:3] == t).nonzero()[:, 0] for t in batch.targets[:3]]
    assert all(len(places) == 1 for places in same)
    return output.loss.item(), [gradient[t, t].item() / slope for t in range(3)]


def test_worked_numbers_of_a_ratio_of_three_tokens() -> None:
    loss, gradient = worked(mean=True, advantage=1.0)
    assert loss == pytest.approx(-1.086904, abs=1e-6)
    assert gradient == pytest.approx([-0.362301] * 3, abs=1e-6)
    assert worked(mean=True, advantage=-1.0)[0] == pytest.approx(1.086904, abs=1e-6)
    # The product is 1.284025: clipped at 1.2 for a positive advantage, free for a negative one.
    assert worked(mean=False, advantage=1.0) == (pytest.approx(-1.2, abs=1e-6), [0.0] * 3)
    loss, gradient = worked(mean=False, advantage=-1.0)
    assert loss == pytest.approx(1.284025, abs=1e-6)
    assert gradient == pytest.approx([1.284025] * 3, abs=1e-6)


# Unequal shards; rank 1 holds the columns beyond the vocabulary.
SHARDS = (7, PADDED_VOCAB - 7)


def outcome(
    loss: PolicyLoss, head: Tensor, *, vocab_start: int = 0, group: Any = None
) -> tuple[LossOutput, Tensor, Tensor]:
    """Loss, and gradients of the hidden states and of `head`, rows of the output layer."""
    hidden, _, batch, advantages = make_problem(seed=6, splits=3, drift=0.2)
    hidden.requires_grad_()
    head = head.clone().requires_grad_()
    output = loss.policy(
        hidden,
        head,
        batch,
        advantages,
        vocab_size=VOCAB,
        vocab_start=vocab_start,
        group=group,
    )
    return output, *torch.autograd.grad(output.loss, (hidden, head))


def sharded_worker(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    weight = make_problem(seed=6)[1]
    for loss in UNITS:
        whole, of_hidden, of_weight = outcome(loss, weight)
        part, part_of_hidden, part_of_weight = outcome(
            loss,
            weight.split(SHARDS)[rank],
            vocab_start=sum(SHARDS[:rank]),
            group=dist.group.WORLD,
        )
        assert_close(part.loss, whole.loss)
        assert_close(part_of_hidden, of_hidden)
        assert_close(part_of_weight, of_weight.split(SHARDS)[rank])
        for name, number in whole.sums.items():
            torch.testing.assert_close(part.sums[name], number, rtol=1e-4, atol=1e-5)
    dist.destroy_process_group()


@pytest.mark.ranks
def test_ratios_of_units_over_a_tensor_parallel_group(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(sharded_worker, args=(tmp_path,), nprocs=2)


def test_nll_is_the_dense_formula() -> None:
    hidden, weight, batch, _ = make_problem(seed=1)
    hidden.requires_grad_()
    weight.requires_grad_()
    output = imitation_loss(hidden, weight, batch, vocab_size=VOCAB)
    gradients = torch.autograd.grad(output.loss, (hidden, weight))
    logprobs, entropies = dense_logprobs(hidden, weight, batch, 1.0)
    expected = -(batch.loss_weights * logprobs).sum()
    assert_close(output.loss, expected)
    for actual, wanted in zip(
        gradients, torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert_close(actual, wanted)
    assert_close(output.sums["nll"], expected)
    assert_close(output.sums["entropy"], (batch.loss_weights * entropies).sum())
    assert not output.maxes and not any(s.requires_grad for s in output.sums.values())


def test_anchored_imitation_is_the_dense_formula() -> None:
    hidden, weight, batch, _ = make_problem(seed=2)
    start_hidden, start_weight = hidden + 0.2, weight.roll(1, 0)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = AnchoredImitation(0.3, start_weight)
    with pytest.raises(ValueError, match="start_hidden"):
        loss(hidden, weight, batch, vocab_size=VOCAB)
    batch = batch.annotated(start_hidden=start_hidden[batch.loss_mask])
    output = loss(hidden, weight, batch, vocab_size=VOCAB)
    gradients = torch.autograd.grad(output.loss, (hidden, weight))
    logp, logq = (
        (x.double() @ w.double()[:VOCAB].T).log_softmax(-1)
        for x, w in ((hidden, weight), (start_hidden, start_weight))
    )
    kl = (batch.loss_weights * (logp.exp() * (logp - logq)).sum(-1)).sum()
    plain = imitation_loss(hidden, weight, batch, vocab_size=VOCAB)
    logprobs, _ = dense_logprobs(hidden, weight, batch, 1.0)
    expected = -(batch.loss_weights * logprobs).sum() + 0.3 * kl
    assert_close(output.loss, expected)
    for actual, wanted in zip(
        gradients, torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert_close(actual, wanted)
    assert_close(output.sums["kl"], kl)
    assert kl > 1
    for name, value in plain.sums.items():
        assert_close(output.sums[name], value)
    assert not gradients[0][~batch.loss_mask].any()
    assert not output.maxes and not any(s.requires_grad for s in output.sums.values())


@pytest.mark.parametrize("kind", ["token", "sequence", "nll", "anchored"])
def test_a_batch_of_padding_gives_zero_and_zero_gradients(kind: str) -> None:
    rng = np.random.default_rng(0)
    credit = Credit(np.ones(1, np.float32), np.zeros(1, np.float32))
    spec = PackingSpec(16, 1, data_parallel_size=2, data_parallel_rank=1, pad_to_multiple=4)
    (batch,) = pack([make_trajectory(2, 3, rng)], [credit], spec, "token")
    zeros = torch.zeros(4)
    batch = batch.annotated(old_logprobs=zeros, ref_logprobs=zeros, values=zeros)
    hidden = torch.randn(4, HIDDEN, requires_grad=True)
    weight = torch.randn(PADDED_VOCAB, HIDDEN, requires_grad=True)
    values = torch.randn(4, requires_grad=True)
    advantages = Advantages(zeros, zeros)
    ratio = "sequence" if kind == "sequence" else "token"
    loss = PolicyLoss(ratio=ratio, ratio_mean=False, value_clip=0.2)
    if kind == "nll":
        policy = imitation_loss(hidden, weight, batch, vocab_size=VOCAB)
    elif kind == "anchored":
        batch = batch.annotated(start_hidden=torch.zeros(0, HIDDEN))
        anchored = AnchoredImitation(0.1, torch.zeros(PADDED_VOCAB, HIDDEN))
        policy = anchored(hidden, weight, batch, vocab_size=VOCAB)
    else:
        policy = loss.policy(hidden, weight, batch, advantages, vocab_size=VOCAB)
    value = loss.value(values, batch, advantages)
    assert policy.loss.item() == value.loss.item() == 0.0
    for output in (policy, value):
        assert all(float(s) == 0.0 for s in output.sums.values())
        assert all(math.isfinite(float(m)) for m in output.maxes.values())
    for gradient in torch.autograd.grad(policy.loss + value.loss, (hidden, weight, values)):
        assert not gradient.any()


@pytest.mark.parametrize("value_clip", [None, 0.2])
def test_value_loss_is_the_formula(value_clip: float | None) -> None:
    _, _, batch, advantages = make_problem(seed=2)
    assert advantages.returns is not None
    generator = torch.Generator().manual_seed(9)
    old = batch.require("values").double()
    values = batch.require("values") + 0.3 * torch.randn(batch.num_tokens, generator=generator)
    values.requires_grad_()
    terms = PolicyLoss(value_clip=value_clip, value_coefficient=0.7)
    output = terms.value(values, batch, advantages)
    (gradient,) = torch.autograd.grad(output.loss, values)

    returns, weights = advantages.returns.double(), batch.loss_weights.double()
    exact = values.double()
    errors = clipped_errors = (exact - returns) ** 2
    if value_clip is not None:
        clipped = torch.maximum(torch.minimum(exact, old + value_clip), old - value_clip)
        clipped_errors = (clipped - returns) ** 2
    expected = 0.7 * 0.5 * (weights * torch.maximum(errors, clipped_errors)).sum()
    assert_close(output.loss, expected)
    assert_close(gradient, torch.autograd.grad(expected, values)[0])
    assert_close(output.sums["value_clip_fraction"], (weights * (clipped_errors > errors)).sum())
    assert (float(output.sums["value_clip_fraction"]) > 0) == (value_clip is not None)

    means = {k: float(v) / batch.num_minibatch_tokens for k, v in output.sums.items()}
    residual = (returns - old)[batch.loss_mask]
    variance = returns[batch.loss_mask].var(correction=0)
    wanted = 1 - residual.var(correction=0) / variance
    assert explained_variance(means) == pytest.approx(float(wanted), abs=1e-5)


def test_explained_variance_of_constant_returns_is_zero() -> None:
    means = {"return": 2.0, "return_square": 4.0, "residual": 0.1, "residual_square": 0.5}
    assert explained_variance(means) == 0.0


def test_value_loss_needs_returns() -> None:
    _, _, batch, advantages = make_problem()
    with pytest.raises(ValueError, match="gae"):
        PolicyLoss().value(torch.zeros(batch.num_tokens), batch, replace(advantages, returns=None))


def test_preference_loss_by_hand() -> None:
    # Margins met exactly cost log 2; a lead of margin + log 3 costs log(4 / 3).
    chosen = torch.tensor([3.0, 2.0 + math.log(3.0)], requires_grad=True)
    rejected = torch.tensor([1.0, 0.0], requires_grad=True)
    loss = preference_loss(chosen, rejected, margin=2.0)
    assert loss.item() == pytest.approx(math.log(2.0) + math.log(4.0 / 3.0), abs=1e-6)
    up, down = torch.autograd.grad(loss, (chosen, rejected))
    assert up.tolist() == pytest.approx([-0.5, -0.25], abs=1e-6)
    assert torch.equal(up, -down)


def test_preference_loss_of_a_hopeless_pair_is_finite() -> None:
    loss = preference_loss(torch.tensor([-1e4]), torch.tensor([1e4]), margin=2.0)
    assert float(loss) == pytest.approx(2e4 + 2)


def test_pairwise_loss_reads_last_tokens_and_skips_padding() -> None:
    # Two pairs and a padding sequence: scores 3, 1 and 0, 0 at the ends; the rest must not matter.
    batch = replace(
        random_batch([2, 3, 1, 2, 2]), source=torch.tensor([0, 1, 2, 3, -1], dtype=torch.int32)
    )
    values = torch.tensor([9.0, 3.0, 9.0, 9.0, 1.0, 0.0, 9.0, 0.0, 9.0, 9.0], requires_grad=True)
    assert batch.last_tokens.tolist() == [1, 4, 5, 7]
    output = pairwise_loss(values, batch, margin=2.0)
    # -log sigmoid(3 - 1 - 2) - log sigmoid(0 - 0 - 2)
    assert output.loss.item() == pytest.approx(math.log(2.0) + math.log1p(math.exp(2.0)))
    # One pair in order, one tied; leads 2 and 0.
    assert float(output.sums["accuracy"]) == 1.5 and float(output.sums["margin"]) == 2.0
    (gradient,) = torch.autograd.grad(output.loss, values)
    assert gradient.nonzero().flatten().tolist() == [1, 4, 5, 7]
    # d/dx -log sigmoid(x) = sigmoid(x) - 1: -1/2 at 0, and -sigmoid(2) at -2.
    tied = 1.0 / (1.0 + math.exp(-2.0))
    assert gradient[[1, 4, 5, 7]].tolist() == pytest.approx([-0.5, 0.5, -tied, tied])


@pytest.mark.parametrize("margin", [0.0, 2.0])
def test_pairwise_loss_and_gradient_are_torchs_cross_entropy(margin: float) -> None:
    # Bradley-Terry with margin is the cross-entropy of two classes, the rejected one raised by tau.
    generator = torch.Generator().manual_seed(0)
    batch = random_batch([3, 1, 4, 1, 5, 9])
    values = torch.randn(batch.num_tokens, generator=generator, dtype=torch.float64)
    values = (3 * values).requires_grad_()
    scores = values[batch.cu_seqlens[1:].long() - 1].view(3, 2)
    logits = scores + torch.tensor([0.0, margin])
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(3).long(), reduction="sum")
    output = pairwise_loss(values, batch, margin=margin)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, values) for x in (output.loss, expected)))


def test_pairwise_loss_of_padding_only_is_zero_and_differentiable() -> None:
    batch = replace(random_batch([4]), source=torch.tensor([-1], dtype=torch.int32))
    values = torch.ones(4, requires_grad=True)
    output = pairwise_loss(values, batch, margin=2.0)
    assert output.loss.item() == 0.0
    assert not torch.autograd.grad(output.loss, values)[0].any()
