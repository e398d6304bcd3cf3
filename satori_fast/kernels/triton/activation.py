# SPDX-License-Identifier: Apache-2.0
"""silu(gate) * up and its gradient, on the GPU; see `reference_layers.swiglu`.

Bound by memory: every number is read once and written once, computed in float32 and rounded once.
"""

import triton
import triton.language as tl
from torch import Tensor

from satori_fast.kernels.triton.launch import Configuration

BLOCK = 1024


@triton.jit
def _swiglu(gate_up, out, stride, size, BLOCK: tl.constexpr):
    """A program makes BLOCK numbers of a row. out [rows, size], gate_up [rows, 2 size]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = column < size
    source = gate_up + row * stride + column
    gate = tl.load(source, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(source + size, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + column, gate * tl.sigmoid(gate) * up, mask=is_inside)


@triton.jit
def _swiglu_backward(
    grad, gate_up, grad_gate_up, stride_grad, stride, size, BLOCK: tl.constexpr
):  # fmt: skip
    """Both halves of the gradient. d silu(g) / dg = s + g s (1 - s) with s = sigmoid(g)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = column < size
    source = gate_up + row * stride + column
    gate = tl.load(source, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(source + size, mask=is_inside, other=0.0).to(tl.float32)
    upstream = tl.load(grad + row * stride_grad + column, mask=is_inside, other=0.0)
    upstream = upstream.to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    target = grad_gate_up + row * (2 * size) + column
    tl.store(target, upstream * up * (sigmoid + silu * (1.0 - sigmoid)), mask=is_inside)
    tl.store(target + size, upstream * silu, mask=is_inside)


FORWARD = Configuration(
    name="activation.swiglu",
    kernel=_swiglu,
    types={"gate_up": "*bf16:16", "out": "*bf16:16", "stride": "i32:16", "size": "i32:16"},
    constants={"BLOCK": BLOCK},
)
BACKWARD = Configuration(
    name="activation.swiglu_backward",
    kernel=_swiglu_backward,
    types={
        "grad": "*bf16:16",
        "gate_up": "*bf16:16",
        "grad_gate_up": "*bf16:16",
        "stride_grad": "i32:16",
        "stride": "i32:16",
        "size": "i32:16",
    },
    constants={"BLOCK": BLOCK},
)
CONFIGURATIONS = (FORWARD, BACKWARD)


def swiglu(gate_up: Tensor) -> Tensor:
    """`reference_layers.swiglu` on the GPU."""
    rows = _rows(gate_up)
    out = gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))
    if out.numel():
        grid = (len(rows), triton.cdiv(out.shape[-1], BLOCK))
        FORWARD.launch(grid, rows, out, rows.stride(0), out.shape[-1])
    return out


def swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """`reference_layers.swiglu_backward` on the GPU."""
    rows, upstream = _rows(gate_up), _rows(grad)
    out = gate_up.new_empty(gate_up.shape)
    if out.numel():
        size = grad.shape[-1]
        grid = (len(rows), triton.cdiv(size, BLOCK))
        BACKWARD.launch(grid, upstream, rows, out, upstream.stride(0), rows.stride(0), size)
    return out


def _rows(x: Tensor) -> Tensor:
    """[rows, size] with neighbours in memory next to each other; a copy only where need be."""
    return (x if x.stride(-1) == 1 else x.contiguous()).reshape(-1, x.shape[-1])
