# SPDX-License-Identifier: Apache-2.0
"""RMSNorm, with or without a residual, and its gradient, on the GPU; see
`reference_layers.rms_norm`.

Bound by memory: a row stays in registers between its sum and its use, so every number is read once
and written once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from satori_fast.kernels.triton.launch import Configuration
from satori_fast.kernels.triton.rows import Rows, rows_of

# Channels a row may have, rounded up: heads, small models, then the usual hidden sizes.
SIZES = (128, 1024, 2048, 4096, 8192, 16384)
# Programs of a backward, each with a partial sum of the weight's gradient: enough to fill a GPU,
# few enough that the sums are small beside the input. They do not depend on the GPU, so the order
# of the sum does not either.
NUM_PROGRAMS = {128: 2048, 1024: 1024, 2048: 512, 4096: 256, 8192: 256, 16384: 256}


@triton.jit
def _rms_norm(
    x, residual, weight, y, total, rstd, num_rows, size, outer, inner, stride, eps,
    HAS_RESIDUAL: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A program makes ROWS rows. Only x may be strided (see `Rows`)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, SIZE)
    is_row = row < num_rows
    is_inside = is_row[:, None] & (column < size)[None, :]
    row = row.to(tl.int64)
    place = (row * size)[:, None] + column[None, :]
    source = (row // inner * outer + row % inner * stride)[:, None] + column[None, :]
    z = tl.load(x + source, mask=is_inside, other=0.0)
    if HAS_RESIDUAL:
        added = tl.load(residual + place, mask=is_inside, other=0.0)
        # The norm is that of the sum as it is stored.
        z = (z.to(tl.float32) + added.to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + place, z, mask=is_inside)
    z = z.to(tl.float32)
    scale = tl.rsqrt(tl.sum(z * z, 1) / size + eps)
    w = tl.load(weight + column, mask=column < size, other=0.0).to(tl.float32)
    tl.store(y + place, z * scale[:, None] * w[None, :], mask=is_inside)
    tl.store(rstd + row, scale, mask=is_row)


@triton.jit
def _rms_norm_backward(
    grad, grad_sum, z, weight, rstd, grad_z, partials,
    num_rows, size, outer, inner, stride, rows_per_program,
    HAS_SUM: tl.constexpr, READ_TWICE: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A program walks over its own rows, writes their gradients and one partial sum over rows."""
    first = tl.program_id(0) * rows_per_program
    last = tl.minimum(first + rows_per_program, num_rows)
    column = tl.arange(0, SIZE)
    is_column = column < size
    partial = tl.zeros((ROWS, SIZE), tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        is_inside = (row < last)[:, None] & is_column[None, :]
        scale = tl.load(rstd + row, mask=row < last, other=0.0)[:, None]
        row = row.to(tl.int64)
        place = (row * size)[:, None] + column[None, :]
        source = (row // inner * outer + row % inner * stride)[:, None] + column[None, :]
        g = tl.load(grad + place, mask=is_inside, other=0.0).to(tl.float32)
        normed = tl.load(z + source, mask=is_inside, other=0.0).to(tl.float32) * scale
        # The weight is read again for every row, from a cache: registers are dearer.
        w = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
        mean = tl.sum(g * w * normed, 1) / size
        if READ_TWICE:
            tl.debug_barrier()
            g = tl.load(grad + place, mask=is_inside, other=0.0).to(tl.float32)
            normed = tl.load(z + source, mask=is_inside, other=0.0).to(tl.float32) * scale
            w = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
        partial += g * normed
        result = (g * w - normed * mean[:, None]) * scale
        if HAS_SUM:
            result += tl.load(grad_sum + place, mask=is_inside, other=0.0).to(tl.float32)
        tl.store(grad_z + place, result, mask=is_inside)
    target = partials + tl.program_id(0).to(tl.int64) * size + column
    tl.store(target, tl.sum(partial, 0), mask=is_column)


def _name(kernel: str, option: str, has_option: bool, size: int) -> str:
    return f"norm.{kernel}{option if has_option else ''}_{size}"


def _forward(has_residual: bool, size: int) -> Configuration:
    numbers = dict.fromkeys(("x", "residual", "weight", "y", "total"), "*bf16:16")
    return Configuration(
        name=_name("rms_norm", "_residual", has_residual, size),
        kernel=_rms_norm,
        types={
            **numbers,
            "rstd": "*fp32:16",
            "num_rows": "i32",
            "size": "i32:16",
            "outer": "i32:16",
            "inner": "i32",
            "stride": "i32:16",
            "eps": "fp32",
        },
        constants={"HAS_RESIDUAL": has_residual, "ROWS": max(1, 2048 // size), "SIZE": size},
        num_warps=max(4, size // 512),
    )


def _backward(has_sum: bool, size: int) -> Configuration:
    numbers = dict.fromkeys(("grad", "grad_sum", "z", "weight"), "*bf16:16")
    return Configuration(
        name=_name("rms_norm_backward", "_sum", has_sum, size),
        kernel=_rms_norm_backward,
        types={
            **numbers,
            "rstd": "*fp32:16",
            "grad_z": "*bf16:16",
            "partials": "*fp32:16",
            "num_rows": "i32",
            "size": "i32:16",
            "outer": "i32:16",
            "inner": "i32",
            "stride": "i32:16",
            "rows_per_program": "i32",
        },
        constants={
            "HAS_SUM": has_sum,
            "READ_TWICE": size > 8192,
            "ROWS": max(1, 1024 // size),
            "SIZE": size,
        },
        num_warps=max(4, size // 512),
    )


FORWARD = {(flag, size): _forward(flag, size) for flag in (False, True) for size in SIZES}
BACKWARD = {(flag, size): _backward(flag, size) for flag in (False, True) for size in SIZES}
CONFIGURATIONS = (*FORWARD.values(), *BACKWARD.values())


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`reference_layers.rms_norm` on the GPU."""
    y, _, rstd = _launch_forward(rows_of(x), None, weight, eps)
    return y, rstd


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference_layers.add_rms_norm` on the GPU."""
    return _launch_forward(rows_of(x), residual.contiguous(), weight, eps)


def _launch_forward(
    rows: Rows, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, count, *layout = rows
    y = x.new_empty(x.shape)
    total = y if residual is None else x.new_empty(x.shape)
    rstd = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    size = x.shape[-1]
    configuration = FORWARD[residual is not None, _padded(size)]
    if x.numel():
        grid = (triton.cdiv(count, configuration.constants["ROWS"]),)
        added = x if residual is None else residual
        weight = weight.contiguous()
        configuration.launch(grid, x, added, weight, y, total, rstd, count, size, *layout, eps)
    return y, total, rstd


def rms_norm_backward(
    grad: Tensor,
    grad_sum: Tensor | None,
    z: Tensor,
    weight: Tensor,
    rstd: Tensor,
    need_z: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """`reference_layers.rms_norm_backward` on the GPU; both gradients at once, needed or not."""
    x, count, *layout = rows_of(z)
    grad, size = grad.contiguous(), x.shape[-1]
    added = grad if grad_sum is None else grad_sum.contiguous()
    configuration = BACKWARD[grad_sum is not None, _padded(size)]
    block = configuration.constants["ROWS"]
    blocks_per_program = triton.cdiv(count, block * NUM_PROGRAMS[_padded(size)])
    rows_per_program = block * max(1, blocks_per_program)
    num_programs = triton.cdiv(count, rows_per_program)
    grad_z = x.new_empty(x.shape)
    partials = x.new_empty((num_programs, size), dtype=torch.float32)
    if x.numel():
        configuration.launch(
            (num_programs,), grad, added, x, weight.contiguous(), rstd, grad_z, partials,
            count, size, *layout, rows_per_program,
        )  # fmt: skip
    grad_weight = partials.sum(0).to(weight.dtype) if need_weight else None
    return grad_z if need_z else None, grad_weight


def _padded(size: int) -> int:
    if size > SIZES[-1]:
        raise ValueError(
            f"x has {size} channels: a norm on a GPU holds a row in registers, at most {SIZES[-1]}"
        )
    return next(padded for padded in SIZES if padded >= size)
