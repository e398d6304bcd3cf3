# SPDX-License-Identifier: Apache-2.0
"""Row kernels of the output layer: what happens to a chunk of float32 logits between the matrix
products. Not the products nor the walk over chunks (`linear_logprob`, `linear_policy_loss`).

Symbols as in `satori_fast.kernels.head`: l logits over temperature, m = max l, S = sum exp(l - m),
E = sum exp(l - m) (l - m), H entropy, g = dLoss/dlogprob, h = dLoss/dH, y target.

A row is read in tiles [LANES, WIDTH] of consecutive columns. Each lane keeps its own m, S and E, so
threads meet once a row and not once a tile; WIDTH is what one load of a thread brings. Whole tiles
need no mask, which keeps the loads wide for any number of columns.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from satori_fast.kernels import head
from satori_fast.kernels.triton.launch import TYPE_NAMES, Configuration

WIDTH = 4
NO_LOGIT = tl.constexpr(head.NO_LOGIT)


@triton.jit
def _fold(logits, m, s, e):
    """Statistics of each lane with a tile of logits added."""
    maximum = tl.maximum(m, tl.max(logits, 1))
    below = m - maximum
    scale = tl.exp(below)
    shifted = logits - maximum[:, None]
    exponential = tl.exp(shifted)
    # Moving the centre of E from m to the new maximum adds (m - maximum) S.
    e = scale * (e + below * s) + tl.sum(exponential * tl.maximum(shifted, NO_LOGIT), 1)
    s = scale * s + tl.sum(exponential, 1)
    return maximum, s, e


@triton.jit
def row_statistics(row, num_columns, scale, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """m, S and E of the logits `scale` times what `row` points to."""
    tile: tl.constexpr = LANES * WIDTH
    column = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    m = tl.full((LANES,), NO_LOGIT, tl.float32)
    s = tl.full((LANES,), 0.0, tl.float32)
    e = tl.full((LANES,), 0.0, tl.float32)
    rest = num_columns // tile * tile
    for first in range(0, rest, tile):
        m, s, e = _fold(tl.load(row + first + column) * scale, m, s, e)
    if rest < num_columns:
        exists = rest + column < num_columns
        tail = tl.load(row + rest + column, mask=exists, other=0.0) * scale
        m, s, e = _fold(tl.where(exists, tail, NO_LOGIT), m, s, e)
    # A lane without a logit stands NO_LOGIT below the maximum: its scale is 0.
    maximum = tl.max(m, 0)
    below = m - maximum
    scale = tl.exp(below)
    return maximum, tl.sum(scale * s, 0), tl.sum(scale * (e + below * s), 0)


@triton.jit
def slope(log_p, p, column, y, entropy, g, h):
    """dLoss/dl of `satori_fast.kernels.head.logit_gradients`. log_p and entropy may both be moved
    by a constant."""
    # Where log_p is -inf, p is 0 and its product must be; NaN stays NaN by p.
    log_p = tl.maximum(log_p, NO_LOGIT)
    return tl.where(column == y, g, 0.0) - p * (g + h * (log_p + entropy))


@triton.jit
def write_gradient(
    row, num_columns, scale, y, entropy, maximum, total, g, h,
    LANES: tl.constexpr, WIDTH: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """The gradient of what `row` points to, as TYPE, over the row itself.

    Half precision takes the first half of the row's memory. A tile of it covers columns that were
    read with this tile or an earlier one; the barrier makes that hold for all threads.
    """
    tile: tl.constexpr = LANES * WIDTH
    column = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    g, h = g * scale, h * scale
    # log p + H is l - m + (H - log S).
    rest_of_entropy = entropy - tl.log(total)
    inverse_total = 1.0 / total
    out = row.to(tl.pointer_type(TYPE))  # pyright: ignore[reportArgumentType]
    rest = num_columns // tile * tile
    for first in range(0, rest, tile):
        shifted = tl.load(row + first + column) * scale - maximum
        p = tl.exp(shifted) * inverse_total
        d = slope(shifted, p, first + column, y, rest_of_entropy, g, h)
        tl.debug_barrier()
        tl.store(out + first + column, d.to(TYPE))
    if rest < num_columns:
        exists = rest + column < num_columns
        shifted = tl.load(row + rest + column, mask=exists, other=0.0) * scale - maximum
        p = tl.exp(shifted) * inverse_total
        d = slope(shifted, p, rest + column, y, rest_of_entropy, g, h)
        tl.debug_barrier()
        tl.store(out + rest + column, d.to(TYPE), mask=exists)


@triton.jit
def inverse_temperature(temperatures, row, temperature, has_temperatures):
    """1 / temperature of a token, from a number or, if there is one per token, from memory."""
    own = tl.load(temperatures + row, mask=has_temperatures != 0, other=1.0)
    return 1.0 / tl.where(has_temperatures != 0, own, temperature)


@triton.jit
def own_target(targets, row, start, num_columns):
    """Column of the target in this shard, or -1."""
    y = tl.load(targets + row) - start
    return tl.where((y >= 0) & (y < num_columns), y, -1).to(tl.int32)


@triton.jit(do_not_specialize=["num_columns", "start", "has_temperatures"])
def _statistics(
    logits, statistics, stride,
    targets, temperatures, num_columns, start, temperature, has_temperatures,
    LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program per row: (m, S, E, l_y or 0)."""
    row = tl.program_id(0).to(tl.int64)
    scale = inverse_temperature(temperatures, row, temperature, has_temperatures)
    here = logits + row * stride
    m, s, e = row_statistics(here, num_columns, scale, LANES, WIDTH)
    y = own_target(targets, row, start, num_columns)
    out = statistics + 4 * row
    tl.store(out + 0, m)
    tl.store(out + 1, s)
    tl.store(out + 2, e)
    tl.store(out + 3, tl.load(here + y, mask=y >= 0, other=0.0) * scale)


@triton.jit(do_not_specialize=["num_shards", "num_tokens"])
def _merge(shards, logprobs, entropies, partitions, num_shards, num_tokens, BLOCK: tl.constexpr):
    """The statistics of all shards [num_shards, num_tokens, 4] to what the softmax is."""
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = token < num_tokens
    maximum = tl.full((BLOCK,), NO_LOGIT, tl.float32)
    for shard in range(num_shards):
        here = shards + 4 * (shard * num_tokens.to(tl.int64) + token)
        maximum = tl.maximum(maximum, tl.load(here, mask=exists, other=0.0))
    total = tl.full((BLOCK,), 0.0, tl.float32)
    weighted = tl.full((BLOCK,), 0.0, tl.float32)
    target_logit = tl.full((BLOCK,), 0.0, tl.float32)
    for shard in range(num_shards):
        here = shards + 4 * (shard * num_tokens.to(tl.int64) + token)
        below = tl.load(here, mask=exists, other=0.0) - maximum
        s = tl.load(here + 1, mask=exists, other=1.0)
        e = tl.load(here + 2, mask=exists, other=0.0)
        scale = tl.exp(below)
        total += scale * s
        weighted += scale * (e + below * s)
        target_logit += tl.load(here + 3, mask=exists, other=0.0)
    log_total = tl.log(total)
    tl.store(logprobs + token, target_logit - maximum - log_total, mask=exists)
    tl.store(entropies + token, log_total - weighted / total, mask=exists)
    tl.store(partitions + 2 * token + 0, maximum, mask=exists)
    tl.store(partitions + 2 * token + 1, total, mask=exists)


@triton.jit(do_not_specialize=["num_columns", "start", "has_temperatures"])
def _gradients(
    logits, entropies, partitions, grad_logprobs, grad_entropies, stride,
    targets, temperatures, num_columns, start, temperature, has_temperatures,
    LANES: tl.constexpr, WIDTH: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """One program per row: the gradient of the logits over the logits."""
    row = tl.program_id(0).to(tl.int64)
    scale = inverse_temperature(temperatures, row, temperature, has_temperatures)
    y = own_target(targets, row, start, num_columns)
    entropy = tl.load(entropies + row)
    maximum, total = tl.load(partitions + 2 * row), tl.load(partitions + 2 * row + 1)
    g, h = tl.load(grad_logprobs + row), tl.load(grad_entropies + row)
    here = logits + row * stride
    write_gradient(
        here, num_columns, scale, y, entropy, maximum, total, g, h, LANES, WIDTH, TYPE
    )  # fmt: skip


# Several programs a multiprocessor, so that one reduces its row while others load. No software
# pipeline: it would load past the barrier of `write_gradient`.
ROW = {"num_warps": 16, "num_stages": 1}
TILE = {"LANES": 2048, "WIDTH": WIDTH}
# A gradient needs more registers for each logit of a tile.
GRADIENT_TILE = {"LANES": 1024, "WIDTH": WIDTH}
ROW_TYPES = {
    "targets": "*i64:16",
    "temperatures": "*fp32:16",
    "num_columns": "i32",
    "start": "i32",
    "temperature": "fp32",
    "has_temperatures": "i32",
}


def language_type(dtype: torch.dtype) -> tl.dtype:
    return getattr(tl, str(dtype).removeprefix("torch."))


STATISTICS = Configuration(
    name="head.statistics",
    kernel=_statistics,
    types={"logits": "*fp32:16", "statistics": "*fp32:16", "stride": "i32:16", **ROW_TYPES},
    constants={**TILE},
    **ROW,
)
MERGE = Configuration(
    name="head.merge",
    kernel=_merge,
    types={
        **dict.fromkeys(("shards", "logprobs", "entropies", "partitions"), "*fp32:16"),
        "num_shards": "i32",
        "num_tokens": "i32",
    },
    constants={"BLOCK": 256},
)
GRADIENTS = {
    dtype: Configuration(
        name=f"head.gradients.{TYPE_NAMES[dtype]}",
        kernel=_gradients,
        types={
            **dict.fromkeys(("logits", "entropies", "partitions"), "*fp32:16"),
            **dict.fromkeys(("grad_logprobs", "grad_entropies"), "*fp32:16"),
            "stride": "i32:16",
            **ROW_TYPES,
        },
        constants={**GRADIENT_TILE, "TYPE": language_type(dtype)},
        **ROW,
    )
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
}
CONFIGURATIONS = (STATISTICS, MERGE, *GRADIENTS.values())


class Rows(NamedTuple):
    """Arguments of the row kernels: R tokens, and the shard of the vocabulary.

    targets:      int64 [R], vocabulary indices.
    temperature:  a number, used where `temperatures`, float32 [R], is None.
    start:        vocabulary index of the first column.
    num_columns:  real columns of the shard.
    """

    targets: Tensor
    temperature: float
    temperatures: Tensor | None
    start: int
    num_columns: int

    @classmethod
    def of(
        cls, targets: Tensor, temperature: float | Tensor, start: int, num_columns: int
    ) -> "Rows":
        targets = targets.to(torch.int64).contiguous()
        if isinstance(temperature, Tensor):
            temperatures = temperature.to(torch.float32).contiguous()
            return cls(targets, 1.0, temperatures, start, num_columns)
        return cls(targets, temperature, None, start, num_columns)

    def take(self, rows: Tensor | slice) -> "Rows":
        temperatures = None if self.temperatures is None else self.temperatures[rows]
        return self._replace(targets=self.targets[rows], temperatures=temperatures)

    def arguments(self) -> tuple[Tensor, Tensor, int, int, float, int]:
        """The arguments in the order of ROW_TYPES. Temperatures that are absent are not read."""
        has_temperatures = self.temperatures is not None
        temperatures = self.temperatures if has_temperatures else self.targets.view(torch.float32)
        layout = (self.num_columns, self.start, self.temperature, int(has_temperatures))
        return self.targets, temperatures, *layout  # pyright: ignore[reportReturnType]


def statistics(logits: Tensor, rows: Rows, out: Tensor) -> None:
    """(m, S, E, l_y or 0) of each row of float32 `logits` [R, C] into `out`, float32 [R, 4]."""
    if rows.num_columns:
        STATISTICS.launch((len(logits),), logits, out, logits.stride(0), *rows.arguments())
    else:
        out.copy_(out.new_tensor([head.NO_LOGIT, 0.0, 0.0, 0.0]))


def merge(shards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`kernels.head.merge_statistics` on the GPU; shards: float32 [shards, T, 4], contiguous."""
    num_shards, num_tokens, _ = shards.shape
    # Not views of one tensor: outputs of an operation must not share memory.
    outputs = (
        shards.new_empty(num_tokens),
        shards.new_empty(num_tokens),
        shards.new_empty(num_tokens, 2),
    )
    if num_tokens:
        grid = (triton.cdiv(num_tokens, MERGE.constants["BLOCK"]),)
        MERGE.launch(grid, shards, *outputs, num_shards, num_tokens)
    return outputs


def logit_gradients(
    logits: Tensor,
    rows: Rows,
    entropies: Tensor,
    partitions: Tensor,
    grad_logprobs: Tensor,
    grad_entropies: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of the logits before the temperature, `dtype` [R, C], in their memory.

    logits: float32 [R, C], R at least 1, rows a multiple of 16 apart.
    """
    if rows.num_columns:
        per_row = (entropies, partitions, grad_logprobs, grad_entropies)
        grid = (len(logits),)
        GRADIENTS[dtype].launch(grid, logits, *per_row, logits.stride(0), *rows.arguments())
    return in_place(logits, dtype)


def in_place(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """The `dtype` [R, C] that `write_gradient` leaves in the memory of `logits` [R, C]."""
    widened = logits.as_strided((len(logits), logits.stride(0)), (logits.stride(0), 1))
    return widened.view(dtype)[:, : logits.shape[1]]
