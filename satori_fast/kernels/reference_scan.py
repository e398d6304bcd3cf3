# SPDX-License-Identifier: Apache-2.0
"""The definitions of what runs along packed sequences: the discounted scan, and advantages by it.

`reference` offers them with the others; not the public functions (`ops`).
"""

import bisect
from collections.abc import Callable

import torch
from torch import Tensor

from satori_fast.kernels.head import compute_dtype


def segment_scan(x: Tensor, decay: float, cu_seqlens: Tensor, *, reverse: bool) -> Tensor:
    """y_t = x_t + decay y_{t+1} inside each sequence (`reverse`), or x_t + decay y_{t-1}. [T].

    All sequences advance together, one token at a time, so each sum is made in the order of the
    formula. Half precision is summed in float32. On the host, ValueError if cu_seqlens does not
    rise from 0 to T.
    """
    boundaries = cu_seqlens.long()
    # Looking at the values of a device tensor would stop the device.
    if not boundaries.is_cuda:
        is_ordered = bool((boundaries.diff() >= 0).all())
        if not (is_ordered and boundaries[0] == 0 and boundaries[-1] == x.shape[0]):
            raise ValueError(f"cu_seqlens must rise from 0 to {x.shape[0]}, the length of x")
    lengths, order = boundaries.diff().sort(descending=True, stable=True)
    first = (boundaries[1:] - 1 if reverse else boundaries[:-1])[order]
    ascending = lengths.flip(0).tolist()
    values = x.to(compute_dtype(x))
    y = torch.empty_like(values)
    carry = values.new_zeros(len(ascending))
    for step in range(ascending[-1] if ascending else 0):
        # Sequences that are longer than `step`: the first of `order`.
        num_alive = len(ascending) - bisect.bisect_right(ascending, step)
        index = first[:num_alive] + (-step if reverse else step)
        carry = values[index] + decay * carry[:num_alive]
        y[index] = carry
    return y.to(x.dtype)


def gae(
    values: Tensor,
    rewards: Tensor,
    mask: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor,
    *,
    gamma: float,
    decay: float,
    scan: Callable[..., Tensor] = segment_scan,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, each [T], 0 and V where masked; see `ops.gae`. scan: `segment_scan`
    of the device."""
    values = torch.where(mask, values, 0.0)
    # The last entry of a sequence is masked, so what roll brings there from the next one is never
    # used, and it reads as V = 0 for the entry before it.
    if segment_ids is not None:
        rewards = torch.where(segment_ids != segment_ids.roll(-1), rewards, 0.0)
    deltas = torch.where(mask, rewards + gamma * values.roll(-1) - values, 0.0)
    advantages = torch.where(mask, scan(deltas, decay, cu_seqlens, reverse=True), 0.0)
    return advantages, advantages + values
