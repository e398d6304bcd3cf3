# SPDX-License-Identifier: Apache-2.0
"""Discounted scans inside packed sequences, on the GPU; see `reference.segment_scan`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from satori_fast.kernels.triton.launch import Configuration


@triton.jit
def _compose(decay_a, sum_a, decay_b, sum_b):
    """The map y -> sum_b + decay_b y after y -> sum_a + decay_a y."""
    return decay_a * decay_b, sum_b + decay_b * sum_a


@triton.jit
def _segment_scan(
    x, y, boundaries, decay, stride_x, REVERSE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One program per sequence walks over its tokens block by block and carries the last sum."""
    sequence = tl.program_id(0)
    start = tl.load(boundaries + sequence).to(tl.int64)
    length = tl.load(boundaries + sequence + 1).to(tl.int64) - start
    carry = 0.0
    for first in range(0, length, BLOCK):
        step = first + tl.arange(0, BLOCK)
        is_inside = step < length
        # Step 0 is the token whose sum is itself: the last one in reverse.
        token = start + (length - 1 - step if REVERSE else step)
        value = tl.load(x + token * stride_x, mask=is_inside, other=0.0).to(tl.float32)
        factor = tl.full((BLOCK,), decay, tl.float32)
        power, total = tl.associative_scan((factor, value), 0, _compose)
        total += power * carry
        tl.store(y + token, total, mask=is_inside)
        # Beyond the end of a sequence the carry is of no use.
        carry = tl.sum(tl.where(step == first + BLOCK - 1, total, 0.0), 0)


def _configuration(reverse: bool) -> Configuration:
    return Configuration(
        name=f"segment_scan.{'reverse' if reverse else 'forward'}",
        kernel=_segment_scan,
        types={
            "x": "*fp32:16",
            "y": "*fp32:16",
            "boundaries": "*i32:16",
            "decay": "fp32",
            "stride_x": "i32",
        },
        constants={"REVERSE": reverse, "BLOCK": 1024},
        num_warps=4,
    )


SCAN = {reverse: _configuration(reverse) for reverse in (False, True)}
CONFIGURATIONS = tuple(SCAN.values())


def segment_scan(x: Tensor, decay: float, cu_seqlens: Tensor, *, reverse: bool) -> Tensor:
    """`reference.segment_scan` on the GPU; a block's sums are a tree, not a chain. No value is
    read on the host, so the caller answers for boundaries that rise from 0 to len(x)."""
    values = x.detach().to(torch.float32)
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    num_sequences = len(cu_seqlens) - 1
    if num_sequences and len(x):
        boundaries = cu_seqlens.to(torch.int32).contiguous()
        SCAN[reverse].launch((num_sequences,), values, y, boundaries, decay, values.stride(0))
    return y.to(x.dtype)
