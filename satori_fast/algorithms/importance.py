# SPDX-License-Identifier: Apache-2.0
"""Engine against trainer: how far their log-probabilities lie apart, and weights that correct it.

The engine samples from mu, the trainer differentiates pi; both are the same policy, computed twice.
Token-level weights are made inside the loss (`kernels.PolicyTerms`, `importance`); here are those
of whole sequences, which need all tokens of a sequence. Not for the ratio to an older policy, which
is the clipped one of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from satori_fast.algorithms.losses import PolicyLoss
from satori_fast.kernels import MAX_LOG_RATIO
from satori_fast.types import Advantages, PackedBatch


def weigh_sequences(
    batches: Sequence[PackedBatch], advantages: Sequence[Advantages], loss: PolicyLoss
) -> tuple[list[Advantages], Tensor]:
    """Advantages times their sequence's weight, and (sequences reweighted, sequences) float64 [2].

    The clipped objective is linear in the advantage for a weight that is not negative, so scaling
    the advantage scales the loss; KL and entropy terms keep weight 1, as at the token level.
    Returns stay what they are. With `loss.importance_level` "token", or `loss.terms.importance`
    "none", nothing changes.
    """
    terms = loss.terms
    counts = torch.zeros(2, dtype=torch.float64)
    if terms.importance == "none" or loss.importance_level != "sequence":
        return list(advantages), counts
    weighed: list[Advantages] = []
    for batch, advantage in zip(batches, advantages, strict=True):
        # Clamped as in the loss: the ratio of a broken sequence would be infinite.
        log_ratio = batch.sequence_sums(_gaps(batch))
        ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        outside = (ratio < terms.importance_low) | (ratio > terms.importance_high)
        weight = ratio.clamp(terms.importance_low, terms.importance_high)
        if terms.importance == "mask":
            weight = torch.where(outside, 0.0, ratio)
        has_tokens = batch.sequence_sums(batch.loss_mask.double()) > 0
        counts += torch.stack([(outside & has_tokens).sum(), has_tokens.sum()]).cpu()
        per_token = weight[batch.sequence_of_token()].to(advantage.advantages.dtype)
        # Sequences without a loss token may have any ratio: their advantages are 0 already.
        scaled = torch.where(batch.loss_mask, advantage.advantages * per_token, 0.0)
        weighed.append(replace(advantage, advantages=scaled))
    return weighed, counts


def logprob_gap(batches: Sequence[PackedBatch]) -> Tensor:
    """(sum of |trainer - engine| in nats, tokens) over all loss tokens, float64 [2], on the host.

    Needs `old_logprobs`, the trainer's, under the weights that the engine sampled from.
    """
    total = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        total += torch.stack([_gaps(batch).abs().sum(), batch.loss_mask.sum().double()]).cpu()
    return total


def count_non_finite(batches: Sequence[PackedBatch]) -> Tensor:
    """Loss tokens with a log-prob that is NaN or infinite: (trainer, engine), float64 [2]."""
    total = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        sides = torch.stack([batch.require("old_logprobs"), batch.rollout_logprobs])
        total += (~sides.isfinite() & batch.loss_mask).sum(dim=1).double().cpu()
    return total


@dataclass(frozen=True, slots=True)
class TokenGap:
    """A loss token whose log-probabilities differ. source: index of its trajectory in what was
    packed; position: of the predicted token in the trajectory, prompt included."""

    source: int
    position: int
    token: int
    trainer: float
    engine: float


def first_gap(batches: Sequence[PackedBatch], limit: float) -> TokenGap | None:
    """The first loss token, in packing order, that differs by more than `limit` nats, or by what
    is not a finite number."""
    for batch in batches:
        gaps = _gaps(batch)
        where = ((gaps.abs() > limit) | ~gaps.isfinite()).nonzero()
        if len(where):
            index = int(where[0])
            sequence = int(batch.sequence_of_token()[index])
            return TokenGap(
                source=int(batch.source[sequence]),
                position=int(batch.positions[index]) + 1,
                token=int(batch.targets[index]),
                trainer=float(batch.require("old_logprobs")[index]),
                engine=float(batch.rollout_logprobs[index]),
            )
    return None


def _gaps(batch: PackedBatch) -> Tensor:
    """log pi - log mu of each loss token, 0 elsewhere: float64 [T]."""
    gap = batch.require("old_logprobs").double() - batch.rollout_logprobs.double()
    return torch.where(batch.loss_mask, gap, 0.0)
