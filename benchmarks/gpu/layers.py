# SPDX-License-Identifier: Apache-2.0
"""The operations inside a transformer layer: ours and the formulas in eager torch, on random data.

Ours are looked up when they are called, so that the suite runs where they do not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from satori_fast import kernels

EPS = 1e-6
# Tokens, hidden size, feed-forward size, heads, head size.
LayerShape = tuple[int, int, int, int, int]


class Layer(NamedTuple):
    """ours and eager: y of `inputs(shape, dtype, device)`.

    num_elements: of a shape, that forward and backward must read and write at least.
    """

    inputs: Callable[[LayerShape, torch.dtype, torch.device], list[Tensor]]
    ours: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    num_elements: Callable[[LayerShape], int]


def incoming(y: Tensor) -> Tensor:
    """A gradient of y that differs everywhere, the same in every type."""
    steps = torch.arange(y.numel(), device=y.device) % 17 - 8
    return (steps.to(y.dtype) / 8).view_as(y)


def _normal(*shape: int, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


def _norm_inputs(shape: LayerShape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    num_tokens, hidden_size = shape[:2]
    x = _normal(num_tokens, hidden_size, dtype=dtype, device=device, seed=1)
    weight = 1 + 0.1 * _normal(hidden_size, dtype=dtype, device=device, seed=2)
    return [x.requires_grad_(), weight.requires_grad_()]


def _gate_inputs(shape: LayerShape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    num_tokens, _, feed_forward = shape[:3]
    x = _normal(num_tokens, 2 * feed_forward, dtype=dtype, device=device, seed=3)
    return [x.requires_grad_()]


def _rope_inputs(shape: LayerShape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    num_tokens, _, _, num_heads, head_size = shape
    x = _normal(num_tokens, num_heads, head_size, dtype=dtype, device=device, seed=4)
    positions = torch.arange(num_tokens, device=device) % 1000
    powers = torch.arange(0, head_size, 2, device=device) / head_size
    angles = positions[:, None] * 10_000.0**-powers
    return [x.requires_grad_(), angles.cos().to(dtype), angles.sin().to(dtype)]


def _eager_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return normed.to(x.dtype) * weight


def _eager_swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def _eager_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


LAYERS = {
    # Forward: read x, write y. Backward: read x and dy, write dx.
    "rms_norm": Layer(
        _norm_inputs,
        lambda x, weight: kernels.rms_norm(x, weight, eps=EPS),
        _eager_norm,
        lambda shape: 5 * shape[0] * shape[1],
    ),
    # Forward: read gate and up, write y. Backward: read gate, up and dy, write both gradients.
    "swiglu": Layer(
        _gate_inputs,
        lambda gate_up: kernels.swiglu(gate_up),
        _eager_swiglu,
        lambda shape: 8 * shape[0] * shape[2],
    ),
    # Forward and backward each read and write every channel once.
    "rope": Layer(
        _rope_inputs,
        lambda x, cos, sin: kernels.rope(x, cos, sin),
        _eager_rope,
        lambda shape: 4 * shape[0] * shape[3] * shape[4],
    ),
}
