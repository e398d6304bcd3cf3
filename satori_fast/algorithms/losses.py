# SPDX-License-Identifier: Apache-2.0
"""Losses of the policy, the critic and the reward model. Sums, never means: the caller divides once
by a count over all microbatches and ranks, so accumulation and packing cannot change a gradient.

The policy losses take hidden states and the weight of the output layer, so that the [T, V] logits
never exist. Not for the choice of terms (`algorithms.recipe`), nor for optimizer steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from satori_fast.kernels import POLICY_STATS, linear_logprob, linear_policy_loss
from satori_fast.types import Advantages, LossOutput, PackedBatch


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Which terms the loss has, and their coefficients.

    kind:                "policy" (clipped ratio) or "nll" (imitation; the policy terms are unused).
    clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
    clip_dual:           a token of negative advantage A adds at most clip_dual |A|; inf for no
                         such bound (arXiv 1912.09729).
    importance:          "none", "truncate" or "mask": how the trainer's probability over the
                         engine's weighs a token, with the range importance_low, importance_high
                         (`kernels.policy_loss`).
    value_clip:          distance, in units of reward, that a value may move from the value at
                         rollout; None for no clipping.
    value_coefficient:   factor of the value loss.
    kl_coefficient:      nats to loss, of the estimated KL(policy || reference); 0 for no KL.
    kl_estimator:        "k1", "k2" or "k3" (http://joschu.net/blog/kl-approx.html).
    entropy_coefficient: factor of the entropy that is subtracted from the loss.
    temperature:         the logits are divided by it, as the sampler did.
    """

    kind: Literal["policy", "nll"]
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_dual: float = math.inf
    importance: Literal["none", "truncate", "mask"] = "none"
    importance_low: float = 0.0
    importance_high: float = math.inf
    value_clip: float | None = None
    value_coefficient: float = 1.0
    kl_coefficient: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    entropy_coefficient: float = 0.0
    temperature: float = 1.0

    def policy(
        self,
        hidden: Tensor,
        weight: Tensor,
        batch: PackedBatch,
        advantages: Advantages,
        *,
        vocab_size: int,
        vocab_start: int = 0,
        group: ProcessGroup | None = None,
    ) -> LossOutput:
        """Loss of the policy on one microbatch; differentiable in `hidden` and `weight`.

        hidden:      [T, H], the input of the output layer.
        weight:      [V_shard, H], this tensor-parallel rank's rows of the output layer, from
                     `vocab_start` on.
        vocab_size:  true size of the vocabulary; rows beyond it never enter the softmax.
        group:       tensor-parallel group, None without one.

        kind "policy", with rho = exp(logprob - old_logprob) and loss weights w:

            sum_t w_t ( -min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t)
                        + kl_coefficient KL_t - entropy_coefficient H_t )

        kind "nll": ``-sum_t w_t logprob_t``, with sums "nll" and "entropy".
        """
        if self.kind == "nll":
            return self._imitation(
                hidden, weight, batch, vocab_size=vocab_size, vocab_start=vocab_start, group=group
            )
        # The operation skips tokens of weight 0 by itself, and knows that shards lie in rank order.
        loss, stats = linear_policy_loss(
            hidden,
            weight,
            batch.targets,
            batch.require("old_logprobs"),
            advantages.advantages,
            batch.loss_weights,
            rollout_logprobs=batch.rollout_logprobs,
            ref_logprobs=batch.require("ref_logprobs") if self.kl_coefficient else None,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            clip_dual=self.clip_dual,
            importance=self.importance,
            importance_low=self.importance_low,
            importance_high=self.importance_high,
            kl_coefficient=self.kl_coefficient,
            kl_estimator=self.kl_estimator,
            entropy_coefficient=self.entropy_coefficient,
            temperature=self.temperature,
            vocab_size=vocab_size,
            group=group,
        )
        named = dict(zip(POLICY_STATS, stats.unbind(), strict=True))
        return LossOutput(
            loss,
            sums={name: value for name, value in named.items() if not name.endswith("_max")},
            maxes={name: value for name, value in named.items() if name.endswith("_max")},
        )

    def _imitation(
        self,
        hidden: Tensor,
        weight: Tensor,
        batch: PackedBatch,
        *,
        vocab_size: int,
        vocab_start: int,
        group: ProcessGroup | None,
    ) -> LossOutput:
        # Prompts are often most of a batch: the output layer runs on the predicted rows only.
        rows = batch.loss_mask.nonzero().squeeze(1)
        weights = batch.loss_weights[rows]
        logprobs, entropies = linear_logprob(
            hidden.index_select(0, rows),
            weight,
            batch.targets[rows],
            temperature=self.temperature,
            vocab_size=vocab_size,
            vocab_start=vocab_start,
            group=group,
        )
        loss = -(weights * logprobs).sum()
        entropy = (weights * entropies).sum().detach()
        return LossOutput(loss, sums={"nll": loss.detach(), "entropy": entropy}, maxes={})

    def value(self, values: Tensor, batch: PackedBatch, advantages: Advantages) -> LossOutput:
        """Loss of the critic on one microbatch; differentiable in `values`, float32 [T].

        With v_old = batch.values and R = advantages.returns:

            value_coefficient sum_t w_t / 2 max((v - R)^2, (v_clip - R)^2),
            v_clip = clip(v, v_old - value_clip, v_old + value_clip)

        sums: "value_loss" and "value_clip_fraction" are weighted by w; "return", "return_square",
        "residual" and "residual_square", with residual = R - v_old, count every loss token once and
        are what `explained_variance` takes.
        """
        if advantages.returns is None:
            raise ValueError('the value loss needs returns: use an advantage rule of kind "gae"')
        mask, weights = batch.loss_mask, batch.loss_weights
        values, old_values, returns = (
            torch.where(mask, x, 0.0) for x in (values, batch.require("values"), advantages.returns)
        )
        errors = (values - returns).square()
        clipped_errors = errors
        if self.value_clip is not None:
            moved = (values - old_values).clamp(-self.value_clip, self.value_clip)
            clipped_errors = (old_values + moved - returns).square()
        loss = (
            self.value_coefficient * 0.5 * (weights * torch.maximum(errors, clipped_errors)).sum()
        )
        residuals = returns - old_values
        return LossOutput(
            loss,
            sums={
                "value_loss": loss.detach(),
                "value_clip_fraction": (weights * (clipped_errors > errors)).sum().detach(),
                "return": returns.sum(),
                "return_square": returns.square().sum(),
                "residual": residuals.sum(),
                "residual_square": residuals.square().sum(),
            },
            maxes={},
        )


def explained_variance(means: Mapping[str, float]) -> float:
    """1 - var(R - v_old) / var(R), from the sums of `LossTerms.value` divided by the token count.

    1 for a perfect critic, 0 for one no better than a constant; 0 where the returns do not vary.
    """
    variance = means["return_square"] - means["return"] ** 2
    if variance <= 0.0:
        return 0.0
    return 1.0 - (means["residual_square"] - means["residual"] ** 2) / variance


def pairwise_loss(values: Tensor, batch: PackedBatch, *, margin: float) -> LossOutput:
    """`preference_loss` of a microbatch of pairs; differentiable in `values`, float32 [T].

    batch: from `data.pairs.pack_pairs`: its sequences are chosen, rejected, chosen, rejected, ...
    A score is the value of a sequence's last token.

    sums, over pairs: "accuracy" (1 where the chosen one leads, 1/2 where both score the same) and
    "margin" (the lead).
    """
    scores = values[batch.last_tokens].view(-1, 2)
    chosen, rejected = scores.unbind(dim=1)
    leads = (chosen - rejected).detach()
    loss = preference_loss(chosen, rejected, margin)
    accuracy = (0.5 + 0.5 * leads.sign()).sum()
    return LossOutput(loss, sums={"accuracy": accuracy, "margin": leads.sum()}, maxes={})


def preference_loss(chosen: Tensor, rejected: Tensor, margin: float) -> Tensor:
    """Sum of ``-log sigmoid(chosen - rejected - margin)`` over pairs (Bradley-Terry with margin).

    chosen, rejected: scores [P] of the better and the worse response of each pair. Satori trains
    its outcome reward model with margin 2 (arXiv 2502.02508 appendix D.3).
    """
    return -F.logsigmoid(chosen - rejected - margin).sum()
