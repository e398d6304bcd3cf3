# SPDX-License-Identifier: Apache-2.0
"""Advantages per token, on the device, from packed credit and the critic's values.

Not for group statistics: they need siblings that packing has scattered (`algorithms.credit`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from satori_fast.algorithms.ratios import RatioUnit, unit_sums
from satori_fast.kernels import gae
from satori_fast.types import Advantages, PackedBatch

# Floor of the variance that whitening divides by, as OpenRLHF (the base of Satori's code) has it.
VARIANCE_FLOOR = 1e-8


@dataclass(frozen=True, slots=True)
class AdvantageRule:
    """Rule by which credit becomes a signal per token.

    kind:    "spread": every token of a segment gets the segment's credit;
             "gae": generalised advantage estimation, needs `batch.values`.
    gamma:   discount per token (gae).
    lambda_: weight of longer look-aheads (gae).
    whiten:  subtract the mean and divide by the standard deviation over all loss tokens of the
             rollout, over all minibatches and ranks.
    kl_coefficient: beta of a KL inside the advantage (spread): every token of a unit loses
             ``beta sum log(pi_old / pi_ref)``, the sum over the unit (S2R, arXiv 2502.12853). It is
             no loss term: there each token has its own share only.
    kl_unit: unit of that sum.
    """

    kind: Literal["spread", "gae"]
    gamma: float = 1.0
    lambda_: float = 0.95
    whiten: bool = False
    kl_coefficient: float = 0.0
    kl_unit: RatioUnit = "sequence"


def estimate_advantages(
    batches: Sequence[PackedBatch],
    rule: AdvantageRule,
    all_reduce_sum: Callable[[Tensor], Tensor],
) -> list[Advantages]:
    """One `Advantages` per batch, in order, float32 [T], 0 where masked.

    batches:        every microbatch of this rank's share of the rollout.
    all_reduce_sum: returns its argument summed over data-parallel ranks; called at most once, with
                    a float64 tensor, and on every rank alike.

    Whitening leaves `returns` alone: the critic learns returns in units of reward.
    """
    if rule.kind == "gae":
        estimates = [_gae(batch, rule.gamma, rule.lambda_) for batch in batches]
    else:
        estimates = [_spread(batch, rule) for batch in batches]
    if rule.whiten and estimates:
        return _whiten(batches, estimates, all_reduce_sum)
    return estimates


def reference_kl(batches: Sequence[PackedBatch]) -> Tensor:
    """(sum of log(pi_old / pi_ref) in nats, tokens) over all loss tokens, float64 [2]: the k1
    estimate of the KL to the reference."""
    sums = [torch.stack([_reference_gaps(b).sum(), b.loss_mask.sum().double()]) for b in batches]
    return torch.stack(sums).sum(dim=0)


def _spread(batch: PackedBatch, rule: AdvantageRule) -> Advantages:
    credit = batch.credit * batch.loss_mask
    if not rule.kl_coefficient:
        return Advantages(credit)
    sums, _ = unit_sums(_reference_gaps(batch), batch, rule.kl_unit)
    return Advantages((credit.double() - rule.kl_coefficient * sums).float())


def _reference_gaps(batch: PackedBatch) -> Tensor:
    """log(pi_old / pi_ref) of each loss token, 0 elsewhere: float64 [T]."""
    old, reference = batch.require("old_logprobs"), batch.require("ref_logprobs")
    return torch.where(batch.loss_mask, old.double() - reference.double(), 0.0)


def _gae(batch: PackedBatch, gamma: float, lambda_: float) -> Advantages:
    """GAE (arXiv 1506.02438 eq. 16) on the response tokens of every packed sequence:

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lambda A_{t+1},
        returns_t = A_t + V_t.

    Label-aligned, values[t] is V of the state in which targets[t] is generated, and r_t is the
    credit of a segment at its last token. The episode ends with the response: V and A are 0 after
    it, except where the response goes on beyond a cut (`PackedBatch.goes_on`): there V is that of
    the state after the last token, the entry without a target.

    A response is the contiguous tail of its sequence, and the scan runs from the tail towards the
    head: what it has gathered when it reaches a response token comes from later response tokens
    only. Prompt entries have delta 0 and lie further down, where they receive and never give.
    """
    values, credit = batch.require("values").float(), batch.credit
    if batch.goes_on is not None:
        credit = credit + gamma * torch.where(batch.goes_on, values.roll(-1), 0.0)
    advantages, returns = gae(
        values,
        credit,
        batch.loss_mask,
        batch.cu_seqlens,
        gamma=gamma,
        lambda_=lambda_,
        segment_ids=batch.segment_ids,
    )
    return Advantages(advantages, returns)


def _whiten(
    batches: Sequence[PackedBatch],
    estimates: Sequence[Advantages],
    all_reduce_sum: Callable[[Tensor], Tensor],
) -> list[Advantages]:
    """(A - mean) / std with the biased variance, one mean and one std for the whole rollout."""
    # Masked entries are 0 and add nothing. float64: the variance is a difference of two sums.
    moments = torch.stack(
        [
            torch.stack([b.loss_mask.sum().double(), a.sum(), a.square().sum()])
            for b, a in (
                (batch, estimate.advantages.double())
                for batch, estimate in zip(batches, estimates, strict=True)
            )
        ]
    ).sum(dim=0)
    count, total, total_square = all_reduce_sum(moments).unbind()
    mean = total / count
    variance = (total_square / count - mean.square()).clamp_min(VARIANCE_FLOOR)
    return [
        replace(
            estimate,
            advantages=torch.where(
                batch.loss_mask, (estimate.advantages - mean) * variance.rsqrt(), 0.0
            ).float(),
        )
        for batch, estimate in zip(batches, estimates, strict=True)
    ]
