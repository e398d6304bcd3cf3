# SPDX-License-Identifier: Apache-2.0
"""Row kernels that keep a softmax on the way forward and make the gradient from it on the way back:
one matrix product less, two bytes a logit more. What is kept is told in
`satori_fast.kernels.head.keep_softmax`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from satori_fast.kernels.head import stash_dtype
from satori_fast.kernels.triton.head import (
    GRADIENT_TILE,
    NO_LOGIT,
    ROW,
    ROW_TYPES,
    TILE,
    Rows,
    inverse_temperature,
    own_target,
    slope,
)
from satori_fast.kernels.triton.launch import TYPE_NAMES, Configuration


@triton.jit(do_not_specialize=["num_columns", "start", "has_temperatures"])
def _keep(
    logits, statistics, stash, stride, stash_stride,
    targets, temperatures, num_columns, start, temperature, has_temperatures,
    LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program per row: exp(l - m) / S, and 0 in the columns of padding."""
    row = tl.program_id(0).to(tl.int64)
    scale = inverse_temperature(temperatures, row, temperature, has_temperatures)
    maximum = tl.load(statistics + 4 * row)
    # S is at least 1, but where all logits are -inf.
    inverse_total = 1.0 / tl.maximum(tl.load(statistics + 4 * row + 1), 1.0)
    here = logits + row * stride
    kept = stash + row * stash_stride
    column = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    for first in range(0, stash_stride, LANES * WIDTH):
        exists = first + column < stash_stride
        shifted = tl.load(here + first + column, mask=exists, other=0.0) * scale - maximum
        p = tl.where(first + column < num_columns, tl.exp(shifted) * inverse_total, 0.0)
        tl.store(kept + first + column, p.to(stash.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["num_columns", "start", "has_temperatures"])
def _gradients(
    stash, out, rows, logprobs, entropies, partitions, grad_logprobs, grad_entropies,
    stash_stride, stride,
    targets, temperatures, num_columns, start, temperature, has_temperatures,
    LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program per row of `out`: the gradient of the logits from the softmax of this shard."""
    row = tl.program_id(0).to(tl.int64)
    kept = stash + tl.load(rows + row) * stash_stride
    here = out + row * stride
    scale = inverse_temperature(temperatures, row, temperature, has_temperatures)
    y = own_target(targets, row, start, num_columns)
    logprob, entropy = tl.load(logprobs + row), tl.load(entropies + row)
    maximum, total = tl.load(partitions + 2 * row), tl.load(partitions + 2 * row + 1)
    # From the softmax of the shard to that of all shards.
    factor, log_total = tl.exp(-maximum) / total, tl.log(total)
    g, h = tl.load(grad_logprobs + row) * scale, tl.load(grad_entropies + row) * scale
    column = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    for first in range(0, stash_stride, LANES * WIDTH):
        exists = first + column < stash_stride
        p = tl.load(kept + first + column, mask=exists, other=0.0).to(tl.float32)
        # What was rounded to 0 has no logarithm, and no gradient either.
        log_p = tl.where(p > 0, tl.log(tl.where(p > 0, p, 1.0)) - maximum - log_total, NO_LOGIT)
        # 1 - p of a likely target would be nothing but the rounding of p: this one is exact.
        is_target = first + column == y
        log_p = tl.where(is_target, logprob, log_p)
        p = tl.where(is_target, tl.exp(logprob), p * factor)
        d = slope(log_p, p, first + column, y, entropy, g, h)
        tl.store(here + first + column, d.to(out.dtype.element_ty), mask=exists)


KEEP = {
    dtype: Configuration(
        name=f"stash.keep.{TYPE_NAMES[dtype]}",
        kernel=_keep,
        types={
            "logits": "*fp32:16",
            "statistics": "*fp32:16",
            "stash": f"*{TYPE_NAMES[dtype]}:16",
            "stride": "i32:16",
            "stash_stride": "i32:16",
            **ROW_TYPES,
        },
        constants={**TILE},
        **ROW,
    )
    for dtype in (torch.bfloat16, torch.float32)
}
PER_ROW = ("logprobs", "entropies", "partitions", "grad_logprobs", "grad_entropies")
GRADIENTS = {
    dtype: Configuration(
        name=f"stash.gradients.{TYPE_NAMES[dtype]}",
        kernel=_gradients,
        types={
            "stash": f"*{TYPE_NAMES[stash_dtype(dtype)]}:16",
            "out": f"*{TYPE_NAMES[dtype]}:16",
            "rows": "*i64:16",
            **dict.fromkeys(PER_ROW, "*fp32:16"),
            "stash_stride": "i32:16",
            "stride": "i32:16",
            **ROW_TYPES,
        },
        constants={**GRADIENT_TILE},
        **ROW,
    )
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
}
CONFIGURATIONS = (*KEEP.values(), *GRADIENTS.values())


def keep(logits: Tensor, statistics: Tensor, rows: Rows, stash: Tensor) -> None:
    """The softmax of float32 `logits` [R, C] within this shard into `stash` [R, stash width], given
    their `statistics` [R, 4]."""
    if stash.shape[1]:
        strides = (logits.stride(0), stash.stride(0))
        grid = (len(logits),)
        KEEP[stash.dtype].launch(grid, logits, statistics, stash, *strides, *rows.arguments())


def logit_gradients(
    stash: Tensor, kept_rows: Tensor, rows: Rows, per_row: tuple[Tensor, ...], out: Tensor
) -> None:
    """The gradient of the logits before the temperature into `out` [R, stash width].

    kept_rows: int64 [R], rows of `stash`; `per_row`: PER_ROW, each [R], the partitions [R, 2].
    """
    if stash.shape[1]:
        strides = (stash.stride(0), out.stride(0))
        grid = (len(kept_rows),)
        arguments = (stash, out, kept_rows, *per_row, *strides, *rows.arguments())
        GRADIENTS[out.dtype].launch(grid, *arguments)
