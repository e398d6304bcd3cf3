# SPDX-License-Identifier: Apache-2.0
"""Probability ratios of whole segments or sequences, for a loss that knows ratios of tokens only.

The fused loss takes rho_t = exp(logprob_t - old_logprob_t). With the log-probabilities of now known
beforehand, ``old_logprob_t := logprob_t - log rho_unit`` gives every token the ratio, the clip and
the gradient of its unit: no kernel of its own, one more matrix product.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from satori_fast.types import PackedBatch

RatioUnit = Literal["token", "segment", "sequence"]

# Nats. One token further than this from its old self is as far as any: the running sums keep 1e-6.
_FARTHEST = 1e9


def unit_log_ratios(
    logprobs: Tensor, batch: PackedBatch, unit: RatioUnit, *, mean: bool
) -> tuple[Tensor, Tensor]:
    """(log ratio of each loss token's unit, tokens of that unit), float64 [T], 0 where masked.

    logprobs: float [T], of now; `batch.old_logprobs` holds the old ones.
    unit:     "segment" or "sequence": its loss tokens.
    mean:     their mean log ratio, the logarithm of the geometric mean (GSPO, arXiv 2507.18071
              eq. 7); else their sum, that of the product.

    Not clamped to MAX_LOG_RATIO: the loss does that, and knows then that there is no gradient.
    """
    mask = batch.loss_mask
    gaps = logprobs.double() - batch.require("old_logprobs").double()
    gaps = torch.where(mask, finite_gaps(gaps), 0.0)
    sums, counts = unit_sums(gaps, batch, unit)
    return (sums / counts.clamp_min(1.0) if mean else sums), counts


def finite_gaps(gaps: Tensor) -> Tensor:
    """Differences of log-probs that may be summed: an infinite one would turn the sums of all later
    units into NaN. A NaN stays in its token, as 0."""
    return gaps.nan_to_num(nan=0.0).clamp(-_FARTHEST, _FARTHEST)


def unit_sums(values: Tensor, batch: PackedBatch, unit: RatioUnit) -> tuple[Tensor, Tensor]:
    """(sum over each loss token's unit, tokens of that unit), float64 [T], 0 where masked.

    values: float64 [T], finite, 0 where masked.
    """
    mask, ids = batch.loss_mask, batch.segment_ids
    if unit == "token":
        return values, mask.double()
    if unit == "sequence":
        ids = torch.where(mask, batch.sequence_of_token(), -1)
    starts, stops = _runs(ids)
    # Differences of a running sum: no order of threads can change them.
    running = torch.cat([values.new_zeros(1), values.cumsum(0)])
    counts = torch.where(mask, stops - starts, 0).double()
    return torch.where(mask, running[stops] - running[starts], 0.0), counts


def _runs(ids: Tensor) -> tuple[Tensor, Tensor]:
    """First entry, and the one behind the last, of the run of equal ids that holds each entry,
    int64 [T]; without a look at a value, which would wait for the device."""
    num = ids.shape[0]
    places = torch.arange(num, device=ids.device)
    edge = torch.ones(1, dtype=torch.bool, device=ids.device)
    changes = ids[1:] != ids[:-1]
    begins, ends = torch.cat([edge, changes]), torch.cat([changes, edge])
    starts = torch.where(begins, places, 0).cummax(0).values
    stops = torch.where(ends, places + 1, num).flip(0).cummin(0).values.flip(0)
    return starts, stops
