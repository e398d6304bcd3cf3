# SPDX-License-Identifier: Apache-2.0
"""The operations inside a transformer layer on the host: `reference_layers`' functions of the same
names, compiled (csrc/).

float32 and bfloat16 run as they are, with float32 sums and one rounding at the end; `dispatch`
sends other types to the reference. The bits do not depend on the number of threads, nor those of a
row on the other rows.
"""

import torch
from torch import Tensor

from satori_fast.kernels.cpu import _C

OPERATIONS = frozenset(
    (
        "add_rms_norm",
        "decode_attention",
        "rms_norm",
        "rms_norm_backward",
        "rope",
        "swiglu",
        "swiglu_backward",
    )
    if _C
    else ()
)
DTYPES = (torch.float32, torch.bfloat16)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`reference_layers.rms_norm`, compiled."""
    x = x.contiguous()
    y = torch.empty_like(x)
    return y, _rms_norm(x, None, weight, y, None, eps)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference_layers.add_rms_norm`, compiled."""
    x = x.contiguous()
    y, total = torch.empty_like(x), torch.empty_like(x)
    return y, total, _rms_norm(x, residual.contiguous(), weight, y, total, eps)


def _rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, y: Tensor, total: Tensor | None, eps: float
) -> Tensor:
    """Write y and `total`; rstd [.., 1]."""
    size = x.shape[-1]
    rstd = torch.empty((*x.shape[:-1], 1))
    weight = weight.to(x.dtype).contiguous()
    _C.rms_norm(
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        y.data_ptr(),
        0 if total is None else total.data_ptr(),
        rstd.data_ptr(),
        rstd.numel(),
        size,
        eps,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return rstd


def rms_norm_backward(
    grad: Tensor,
    grad_sum: Tensor | None,
    z: Tensor,
    weight: Tensor,
    rstd: Tensor,
    need_z: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """`reference_layers.rms_norm_backward`, compiled."""
    dtype, size = z.dtype, z.shape[-1]
    own_weight = weight.to(dtype).contiguous()
    inputs = [x if x is None else x.to(dtype).contiguous() for x in (grad, grad_sum, z)]
    grad_z = torch.empty(z.shape, dtype=dtype) if need_z else None
    grad_weight = torch.empty(size) if need_weight else None
    tensors = (*inputs, own_weight, rstd, grad_z, grad_weight)
    _C.rms_norm_backward(
        [0 if x is None else x.data_ptr() for x in tensors],
        rstd.numel(),
        size,
        dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return grad_z, None if grad_weight is None else grad_weight.to(weight.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    """`reference_layers.rope`, compiled."""
    out = x.new_empty(x.shape)
    x = _with_dense_heads(x)
    if x.dim() > 4:
        x = x.flatten(1, -2)
    while x.dim() < 4:
        x = x.unsqueeze(1)
    cos, sin = cos.contiguous(), sin.contiguous()
    _C.rope(
        x.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        out.data_ptr(),
        x.stride()[:-1],
        x.shape,
        inverse,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def swiglu(gate_up: Tensor) -> Tensor:
    """`reference_layers.swiglu`, compiled."""
    gate_up = gate_up.contiguous()
    size = gate_up.shape[-1] // 2
    out = gate_up.new_empty((*gate_up.shape[:-1], size))
    _C.swiglu(
        gate_up.data_ptr(),
        out.data_ptr(),
        gate_up.numel() // (2 * size) if size else 0,
        size,
        gate_up.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """`reference_layers.swiglu_backward`, compiled."""
    grad, gate_up = grad.contiguous(), gate_up.contiguous()
    size = gate_up.shape[-1] // 2
    out = torch.empty_like(gate_up)
    _C.swiglu_backward(
        grad.data_ptr(),
        gate_up.data_ptr(),
        out.data_ptr(),
        gate_up.numel() // (2 * size) if size else 0,
        size,
        gate_up.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def decode_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor | None,
) -> Tensor:
    """`reference_layers.decode_attention`, compiled; no cache entry beyond a position is read.

    ValueError for positions and slots that the caches do not have.
    """
    num_rows, num_groups, heads_per_group, head_dim = queries.shape
    queries, keys, values = (_with_dense_heads(x) for x in (queries, keys, values))
    positions = positions.long().contiguous()
    slots = None if slots is None else slots.long().contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    out = queries.new_empty(queries.shape)
    tensors = (queries, keys, values, key_cache, value_cache, cos, sin, out, positions)
    _C.decode_attention(
        [*(x.data_ptr() for x in tensors), 0 if slots is None else slots.data_ptr()],
        *(x.stride()[:-1] for x in tensors[:5]),
        (num_rows, num_groups, heads_per_group, head_dim, key_cache.shape[0], key_cache.shape[2]),
        head_dim**-0.5,
        queries.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def _with_dense_heads(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
