# SPDX-License-Identifier: Apache-2.0
"""Losses of the policy, the critic and the reward model. Sums, never means: the caller divides once
by a count over all microbatches and ranks, so accumulation and packing cannot change a gradient.

The losses of the policy take hidden states and the weight of the output layer, so that the [T, V]
logits never exist. Not for the choice of terms (`algorithms.recipe`), nor for optimizer steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from satori_fast.algorithms.ratios import RatioUnit, finite_gaps, unit_log_ratios, unit_sums
from satori_fast.kernels import (
    MAX_LOG_RATIO,
    POLICY_STATS,
    PolicyTerms,
    linear_logprob,
    linear_policy_loss,
    policy_loss,
)
from satori_fast.kernels.imitation import IMITATION_SUMS, Anchor, linear_imitation_loss
from satori_fast.types import Advantages, LossOutput, PackedBatch


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """Clipped policy loss of a recipe, and the loss of its critic.

    terms:             clips, KL, entropy and importance (`kernels.PolicyTerms`).
    ratio:             what the clipped probability ratio is of: each "token", or the "segment" or
                       "sequence" that holds it.
    ratio_mean:        the ratio of such a unit is the geometric mean over its tokens (GSPO, arXiv
                       2507.18071 eq. 7), which does not grow with its length; else their product.
    importance_level:  whose ratio of trainer to engine `terms.importance` weighs by: each "token",
                       or the product over a "sequence" (`importance.weigh_sequences`).
    value_clip:        distance, in units of reward, that a value may move from the value at
                       rollout; None or inf for no clipping.
    value_coefficient: factor of the value loss.
    temperature:       the logits are divided by it, as the sampler did.
    advantage_kl:      beta of a KL of the policy of now inside the advantage: every token of a unit
                       loses ``beta sum log(pi / pi_ref)``, the sum over the unit, anew in each
                       microbatch and without gradient. Where the old policy is the reference
                       (offline S2R, arXiv 2502.12853 appendix F), the KL of the old one, which
                       `AdvantageRule.kl_coefficient` takes, is 0 for ever.
    advantage_kl_unit: unit of that sum.
    """

    terms: PolicyTerms = field(default_factory=PolicyTerms)
    ratio: RatioUnit = "token"
    ratio_mean: bool = True
    importance_level: Literal["token", "sequence"] = "token"
    value_clip: float | None = None
    value_coefficient: float = 1.0
    temperature: float = 1.0
    advantage_kl: float = 0.0
    advantage_kl_unit: RatioUnit = "sequence"

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

        With loss weights w and rho_t the ratio of the unit of token t,

            sum_t w_t ( -min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t)
                        + kl_coefficient KL_t - entropy_coefficient H_t ).

        Where A and w are equal over a unit, as from a group baseline, so is the gradient. Where
        they differ, each token keeps its own share, w_t A_t rho_u d logprob_t, times the length of
        the unit for a product (as GSPO-token, arXiv 2507.18071 eq. 14).

        sums and maxes: `kernels.POLICY_STATS`, of the units where ratios are; with `advantage_kl`
        also "advantage_kl", the w-weighted sum over the units' log(pi / pi_ref), nats.
        """
        terms = self.terms
        if self.importance_level != "token":
            terms = terms._replace(importance="none")
        shard: dict[str, Any] = {"vocab_size": vocab_size, "group": group}
        now = self._logprobs_of_now(hidden, weight, batch, vocab_start=vocab_start, **shard)
        advantages, kl = self._less_kl(now, batch, advantages)
        given = self._constants(now, batch, advantages)
        # The operation skips tokens of weight 0 by itself, and knows that shards lie in rank order.
        loss, stats = linear_policy_loss(
            hidden,
            weight,
            batch.targets,
            given.old_logprobs,
            given.advantages,
            batch.loss_weights,
            terms,
            rollout_logprobs=given.rollout_logprobs,
            ref_logprobs=batch.require("ref_logprobs") if terms.kl_coefficient else None,
            temperature=self.temperature,
            **shard,
        )
        named: dict[str, Tensor] = dict(zip(POLICY_STATS, stats.unbind(), strict=True))
        if self.ratio != "token" and not self.ratio_mean:
            named["policy_loss"] = _true_policy_loss(given, batch, advantages, terms)
            # The gradient is right; the value counted each unit once per token.
            loss = loss - loss.detach() + _total(named, terms)
        sums = {name: value for name, value in named.items() if not name.endswith("_max")}
        maxes = {name: value for name, value in named.items() if name.endswith("_max")}
        return LossOutput(loss, {**sums, **kl}, maxes)

    @torch.no_grad()
    def _logprobs_of_now(
        self, hidden: Tensor, weight: Tensor, batch: PackedBatch, **shard: Any
    ) -> Tensor | None:
        """Log-probabilities of the policy of now, [T], the old ones where masked; None where
        nothing asks for them."""
        if self.ratio == "token" and not self.advantage_kl:
            return None
        # Prompts are often most of a batch, and the fused loss waits for this number anyway.
        rows = batch.loss_mask.nonzero().squeeze(1)
        of_rows, _ = linear_logprob(
            hidden.detach().index_select(0, rows),
            weight.detach(),
            batch.targets[rows],
            temperature=self.temperature,
            **shard,
        )
        return batch.require("old_logprobs").to(of_rows.dtype).index_copy(0, rows, of_rows)

    @torch.no_grad()
    def _less_kl(
        self, now: Tensor | None, batch: PackedBatch, advantages: Advantages
    ) -> tuple[Advantages, dict[str, Tensor]]:
        """The advantages with the KL taken off, and its sum by name; as they are without one."""
        if not self.advantage_kl or now is None:
            return advantages, {}
        gaps = now.double() - batch.require("ref_logprobs").double()
        # As `unit_log_ratios`: no token may turn the sums of later units into NaN.
        gaps = torch.where(batch.loss_mask, finite_gaps(gaps), 0.0)
        kl, _ = unit_sums(gaps, batch, self.advantage_kl_unit)
        signal = advantages.advantages.double() - self.advantage_kl * kl
        less = replace(advantages, advantages=signal.float())
        return less, {"advantage_kl": (batch.loss_weights * kl).sum()}

    @torch.no_grad()
    def _constants(
        self, now: Tensor | None, batch: PackedBatch, advantages: Advantages
    ) -> _Constants:
        old, rollout, signal = (
            batch.require("old_logprobs"),
            batch.rollout_logprobs,
            advantages.advantages,
        )
        if self.ratio == "token":
            return _Constants(old, rollout, signal)
        assert now is not None
        old = old.to(now.dtype)
        log_ratios, counts = unit_log_ratios(now, batch, self.ratio, mean=self.ratio_mean)
        # Just beyond where the loss clamps, so that it still sees that there is no gradient.
        log_ratios = log_ratios.clamp(-MAX_LOG_RATIO - 1.0, MAX_LOG_RATIO + 1.0)
        # A token that is impossible by now keeps its own old log-prob: infinity less infinity is
        # not a number.
        shifted = torch.where(now.isfinite(), now - log_ratios, old).to(old.dtype)
        if not self.ratio_mean:
            signal = signal * counts.to(signal.dtype)
        # Both are moved by the same: trainer against engine stays what it is.
        return _Constants(shifted, rollout + (shifted - old), signal, now)

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


class _Constants(NamedTuple):
    """Inputs of the loss of tokens, each [T]; where ratios are those of units, such that it is
    the loss of units, and the log-probabilities of now."""

    old_logprobs: Tensor
    rollout_logprobs: Tensor
    advantages: Tensor
    logprobs: Tensor | None = None


@torch.no_grad()
def _true_policy_loss(
    given: _Constants, batch: PackedBatch, advantages: Advantages, terms: PolicyTerms
) -> Tensor:
    """The clipped term of the loss, with every token's own advantage."""
    assert given.logprobs is not None
    _, stats = policy_loss(
        given.logprobs,
        torch.zeros_like(given.logprobs),
        given.old_logprobs,
        advantages.advantages,
        batch.loss_weights,
        terms._replace(kl_coefficient=0.0),
        rollout_logprobs=given.rollout_logprobs,
    )
    return stats[POLICY_STATS.index("policy_loss")]


def _total(sums: Mapping[str, Tensor], terms: PolicyTerms) -> Tensor:
    # A term that is off is left out, not multiplied by 0: its value may be infinite.
    total = sums["policy_loss"]
    if terms.kl_coefficient:
        total = total + terms.kl_coefficient * sums["kl"]
    if terms.entropy_coefficient:
        total = total - terms.entropy_coefficient * sums["entropy"]
    return total


def imitation_loss(
    hidden: Tensor,
    weight: Tensor,
    batch: PackedBatch,
    *,
    vocab_size: int,
    vocab_start: int = 0,
    group: ProcessGroup | None = None,
) -> LossOutput:
    """Negative log-likelihood of the responses, ``-sum_t w_t logprob_t``; arguments as in
    `PolicyLoss.policy`.

    sums: "nll" and "entropy", weighted by w.
    """
    # Prompts are often most of a batch: the output layer runs on the rows with a loss only.
    rows = batch.loss_weights.nonzero().squeeze(1)
    weights = batch.loss_weights[rows]
    logprobs, entropies = linear_logprob(
        hidden.index_select(0, rows),
        weight,
        batch.targets[rows],
        vocab_size=vocab_size,
        vocab_start=vocab_start,
        group=group,
    )
    loss = -(weights * logprobs).sum()
    entropy = (weights * entropies).sum().detach()
    return LossOutput(loss, sums={"nll": loss.detach(), "entropy": entropy}, maxes={})


@dataclass(frozen=True, slots=True)
class AnchoredImitation:
    """`imitation_loss`, and the KL to the model that imitation starts from (S2R, arXiv 2502.12853).

    kl_coefficient: nats to loss, of KL(policy || start) over the whole vocabulary on the same
                    tokens, with the same weights.
    start_weight:   [V_shard, H], this tensor-parallel rank's rows of the output layer of that
                    model; None where no loss is made (pipeline stages before the last).
    """

    kl_coefficient: float
    start_weight: Tensor | None

    def __call__(
        self,
        hidden: Tensor,
        weight: Tensor,
        batch: PackedBatch,
        *,
        vocab_size: int,
        vocab_start: int = 0,
        group: ProcessGroup | None = None,
    ) -> LossOutput:
        """Loss of one microbatch; arguments as in `PolicyLoss.policy`. The batch has
        `start_hidden`.

        sums: "nll", "kl" and "entropy", weighted by w.
        """
        assert self.start_weight is not None
        rows = batch.loss_mask.nonzero().squeeze(1)
        # The operation knows that shards lie in rank order.
        loss, sums = linear_imitation_loss(
            hidden.index_select(0, rows),
            weight,
            batch.targets[rows],
            batch.loss_weights[rows],
            Anchor(batch.require("start_hidden"), self.start_weight),
            kl_coefficient=self.kl_coefficient,
            vocab_size=vocab_size,
            group=group,
        )
        return LossOutput(loss, dict(zip(IMITATION_SUMS, sums.unbind(), strict=True)), maxes={})


def explained_variance(means: Mapping[str, float]) -> float:
    """1 - var(R - v_old) / var(R), from the sums of `PolicyLoss.value` divided by the token count.

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
