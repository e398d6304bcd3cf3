# SPDX-License-Identifier: Apache-2.0
"""The output head as others compute it, and random data for it: what ours is measured against.

Every rival takes the same `HeadBatch` as ours. Not the measuring (`measure`, `gpu.timing`).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from satori_fast.kernels import (
    POLICY_STATS,
    PolicyTerms,
    linear_logprob,
    linear_policy_loss,
    reference,
)

# The loss that every rival computes: PPO with a wider upper clip, k3 KL and an entropy bonus.
CLIP_LOW, CLIP_HIGH, KL_COEFFICIENT, ENTROPY_COEFFICIENT = 0.2, 0.28, 0.05, 0.01
TERMS = PolicyTerms(
    clip_low=CLIP_LOW,
    clip_high=CLIP_HIGH,
    kl_coefficient=KL_COEFFICIENT,
    entropy_coefficient=ENTROPY_COEFFICIENT,
)


class HeadBatch(NamedTuple):
    """Inputs of the head and of its policy loss for T tokens in sequences of one length.

    hidden [T, H] and weight [V, H]; everything else is [T]. The advantage is one per sequence and
    every weight is 1 / T, as Liger's losses want it.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    loss_weights: Tensor
    rollout_logprobs: Tensor
    ref_logprobs: Tensor
    num_sequences: int

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        return self.hidden, self.weight


Head = Callable[[HeadBatch], tuple[Tensor, Tensor]]


def random_head_batch(
    num_tokens: int,
    hidden_size: int,
    vocab_size: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    num_sequences: int = 1,
    seed: int = 0,
) -> HeadBatch:
    """Logits of standard deviation 2. Ratios near exp(+-0.05) and exp(+-0.5): on both sides of the
    clips, and far enough from them that rounding moves no token across."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def pick(count: int) -> Tensor:
        return torch.randint(count, (num_tokens,), generator=generator, device=device)

    hidden = normal(num_tokens, hidden_size).to(dtype)
    weight = (normal(vocab_size, hidden_size) * (2 / hidden_size**0.5)).to(dtype)
    targets = pick(vocab_size)
    logprobs, _, _ = reference.linear_logprob(
        hidden,
        weight,
        targets,
        temperature=1.0,
        vocab_size=None,
        vocab_start=0,
        group=None,
    )
    steps = torch.tensor([-0.5, -0.05, 0.05, 0.5], device=device)
    old = logprobs.float() + steps[pick(4)]
    advantages = normal(num_sequences).repeat_interleave(num_tokens // num_sequences)
    return HeadBatch(
        hidden.requires_grad_(),
        weight.requires_grad_(),
        targets,
        old,
        advantages,
        torch.full_like(old, 1 / num_tokens),
        old + 0.02 * normal(num_tokens),
        logprobs.float() + 0.1 * normal(num_tokens),
        num_sequences,
    )


def upcast(batch: HeadBatch, dtype: torch.dtype = torch.float64) -> HeadBatch:
    """The same numbers in a wider type, as parameters of their own: what the truth is made of."""
    wide = [x.detach().to(dtype) if x.is_floating_point() else x for x in batch[:-1]]
    hidden, weight, *rest = wide
    return HeadBatch(hidden.requires_grad_(), weight.requires_grad_(), *rest, batch.num_sequences)


# --- ours ----------------------------------------------------------------------------------------


def our_logprob(batch: HeadBatch) -> tuple[Tensor, Tensor]:
    return linear_logprob(batch.hidden, batch.weight, batch.targets)


def our_head_loss(
    batch: HeadBatch, entropy_coefficient: float = ENTROPY_COEFFICIENT
) -> tuple[Tensor, Tensor]:
    terms = TERMS._replace(entropy_coefficient=entropy_coefficient)
    *head, rollout, ref = batch[:-1]
    return linear_policy_loss(*head, terms, rollout_logprobs=rollout, ref_logprobs=ref)


# --- materialised logits -------------------------------------------------------------------------


def eager_logprob(batch: HeadBatch) -> tuple[Tensor, Tensor]:
    """What a trainer without a fused head does: logits, log-softmax, gather, entropy."""
    logits = batch.hidden @ batch.weight.T
    logprobs = torch.log_softmax(logits.to(_wide(logits)), dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, batch.targets[:, None])[:, 0], entropy


def eager_head_loss(batch: HeadBatch) -> tuple[Tensor, Tensor]:
    """The loss of `TERMS` on materialised logits, and its metrics."""
    *policy, rollout, ref = batch[3:-1]
    return eager_policy_loss(
        *eager_logprob(batch), *policy, TERMS, rollout_logprobs=rollout, ref_logprobs=ref
    )


def eager_policy_loss(
    logprobs: Tensor,
    entropies: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_weights: Tensor,
    terms: PolicyTerms,
    *,
    rollout_logprobs: Tensor,
    ref_logprobs: Tensor,
) -> tuple[Tensor, Tensor]:
    """`kernels.policy_loss` as a trainer without a fused loss writes it: loss and metrics, in the
    order of POLICY_STATS, the gradient left to autograd. KL is k3, never `importance` "mask"."""
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - terms.clip_low, 1 + terms.clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    with torch.no_grad():
        is_live = loss_weights != 0
        is_low = (advantages < 0) & (ratio < 1 - terms.clip_low)
        is_high = (advantages > 0) & (ratio > 1 + terms.clip_high)
        is_dual = (advantages < 0) & (ratio > terms.clip_dual)
        drift = old_logprobs - rollout_logprobs
        engine_ratio = drift.exp()
        is_outside = torch.zeros_like(is_live)
    if terms.clip_dual < math.inf:
        floor = terms.clip_dual * advantages
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, floor), surrogate)
    if terms.importance == "truncate":
        surrogate = surrogate * engine_ratio.clamp(terms.importance_low, terms.importance_high)
        is_outside = (engine_ratio < terms.importance_low) | (engine_ratio > terms.importance_high)
    policy = -(loss_weights * surrogate).sum()
    kl = (loss_weights * _k3(ref_logprobs - logprobs)).sum()
    entropy = (loss_weights * entropies).sum()
    loss = policy + terms.kl_coefficient * kl - terms.entropy_coefficient * entropy
    with torch.no_grad():
        stats = {
            "policy_loss": policy,
            "kl": kl,
            "entropy": entropy,
            "clip_fraction_low": (loss_weights * is_low).sum(),
            "clip_fraction_high": (loss_weights * is_high).sum(),
            "clip_fraction_dual": (loss_weights * is_dual).sum(),
            "ratio_max": torch.where(is_live, ratio, 0.0).amax(),
            "approx_kl": (loss_weights * _k3(log_ratio)).sum(),
            "rollout_abs_diff": (loss_weights * drift.abs()).sum(),
            "rollout_abs_diff_max": torch.where(is_live, drift.abs(), 0.0).amax(),
            "rollout_kl": (loss_weights * _k3(drift)).sum(),
            "rollout_clip_fraction": (loss_weights * (is_outside & is_live)).sum(),
            "num_tokens": is_live.sum(),
            "num_clamped_ratios": (is_live & (log_ratio.abs() > reference.MAX_LOG_RATIO)).sum(),
        }
        return loss, torch.stack([stats[name].float() for name in POLICY_STATS])


# --- chunks of tokens in plain torch: our own reference ------------------------------------------


class _ChunkedLogprob(torch.autograd.Function):
    """`reference.linear_logprob` with its recomputing backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logprob, entropy, partition = reference.linear_logprob(
            hidden, weight, targets, **_WHOLE_HEAD, vocab_start=0
        )
        ctx.save_for_backward(hidden, weight, targets, entropy, partition)
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs = {"need_hidden": True, "need_weight": True}
        gradients = reference.linear_logprob_backward(
            *grads, *ctx.saved_tensors, **_WHOLE_HEAD, vocab_start=0, **needs
        )
        return *gradients, None


class _ChunkedHeadLoss(torch.autograd.Function):
    """`reference.linear_policy_loss`, whose gradients are made on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, rest: HeadBatch) -> tuple[Tensor, Tensor]:
        loss, stats, grad_hidden, grad_weight = reference.linear_policy_loss(
            hidden,
            weight,
            rest.targets,
            reference.PolicyInputs(*rest[3:-1]),
            TERMS,
            **_WHOLE_HEAD,
            need_hidden=True,
            need_weight=True,
        )
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(stats)
        return loss, stats

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * grads[0].to(gradient) for gradient in ctx.saved_tensors), None


def chunked_logprob(batch: HeadBatch) -> tuple[Tensor, Tensor]:
    return _ChunkedLogprob.apply(batch.hidden, batch.weight, batch.targets)


def chunked_head_loss(batch: HeadBatch) -> tuple[Tensor, Tensor]:
    return _ChunkedHeadLoss.apply(batch.hidden, batch.weight, batch)


# --- Liger-Kernel --------------------------------------------------------------------------------


def liger_head_loss() -> Head | None:
    """`LigerFusedLinearGRPOLoss` (pure torch in chunks of a sequence): the loss of `TERMS` without
    entropy, which it does not compute. None where Liger-Kernel is not installed."""
    try:
        module = importlib.import_module("liger_kernel.chunked_loss")
    except ImportError:
        return None
    loss_function = module.LigerFusedLinearGRPOLoss(
        beta=KL_COEFFICIENT, epsilon_low=CLIP_LOW, epsilon_high=CLIP_HIGH, loss_type="bnpo"
    )

    def run(batch: HeadBatch) -> tuple[Tensor, Tensor]:
        def rows(x: Tensor) -> Tensor:
            return x.view(batch.num_sequences, -1, *x.shape[1:])

        loss, metrics = loss_function(
            rows(batch.hidden),
            batch.weight,
            rows(batch.targets),
            torch.ones_like(rows(batch.old_logprobs)),
            rows(batch.advantages)[:, 0],
            ref_per_token_logps=rows(batch.ref_logprobs),
            old_per_token_logps=rows(batch.old_logprobs),
        )
        return loss, torch.stack(list(metrics))

    return run


def liger_logprob() -> Head | None:
    """The log-probabilities inside Liger's GRPO loss, without entropy; None without Liger."""
    try:
        module = importlib.import_module("liger_kernel.chunked_loss.fused_linear_ppo")
    except ImportError:
        return None

    def run(batch: HeadBatch) -> tuple[Tensor, Tensor]:
        logprob = module.LigerFusedLinearPPOBase.chunk_forward(
            batch.hidden[None], batch.weight, batch.targets[None]
        )[0]
        return logprob, torch.zeros_like(logprob)

    return run


def liger_cross_entropy() -> Head | None:
    """`LigerFusedLinearCrossEntropyLoss`, Triton: (sum of -logprob / T, nothing). Gradients made on
    the way forward, without entropy. None without Liger-Kernel; it needs a CUDA device."""
    try:
        module = importlib.import_module("liger_kernel.transformers.fused_linear_cross_entropy")
    except ImportError:
        return None
    loss_function = module.LigerFusedLinearCrossEntropyLoss(reduction="mean")

    def run(batch: HeadBatch) -> tuple[Tensor, Tensor]:
        loss = loss_function(batch.weight, batch.hidden, batch.targets)
        return loss, torch.zeros_like(loss)

    return run


_WHOLE_HEAD: dict[str, Any] = {"temperature": 1.0, "vocab_size": None, "group": None}


def _k3(log_ratio: Tensor) -> Tensor:
    return torch.expm1(log_ratio) - log_ratio


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
