# SPDX-License-Identifier: Apache-2.0
"""The definition of the operations inside a transformer layer, and of their gradients, in plain
PyTorch.

Also what the host runs where nothing is compiled, hence the few passes over memory: each pass less
is time. Statistics and sums are float32 (float64 for float64 inputs). Not the public functions:
`layers` checks arguments and picks an implementation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from satori_fast.kernels.head import compute_dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y = x rstd weight [.., H] and rstd = 1 / sqrt(mean(x^2) + eps) [.., 1]."""
    z = x.to(compute_dtype(x))
    rstd = z.new_empty((*x.shape[:-1], 1))
    torch.linalg.vector_norm(z, dim=-1, keepdim=True, out=rstd)
    rstd.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    # A converted copy is not needed again.
    y = torch.mul(z, rstd, out=z.new_empty(x.shape) if z is x else z).mul_(weight)
    return y.to(x.dtype).contiguous(), rstd


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y, z = x + residual, rstd: the norm of the sum, as it is after rounding."""
    z = torch.add(x, residual, out=x.new_empty(x.shape))
    y, rstd = rms_norm(z, weight, eps)
    return y, z, rstd


def rms_norm_backward(
    grad: Tensor,
    grad_sum: Tensor | None,
    z: Tensor,
    weight: Tensor,
    rstd: Tensor,
    need_z: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of z, rstd (g w - n mean(g w n)) + grad_sum [.., H], and of the weight, the sum
    over rows of g n [H]; n = z rstd, and g is the gradient of y."""
    g, x = grad.to(rstd.dtype), z.to(rstd.dtype)
    product = torch.mul(g, x, out=rstd.new_empty(z.shape)).mul_(rstd)
    grad_weight = product.flatten(0, -2).sum(0).to(weight.dtype) if need_weight else None
    if not need_z:
        return None, grad_weight
    mean = (product @ weight.to(rstd.dtype)).div_(z.shape[-1])[..., None]
    grad_z = torch.mul(g, weight, out=product).addcmul_(x, mean.mul_(rstd), value=-1)
    if grad_sum is None:
        grad_z.mul_(rstd)
    else:
        torch.addcmul(grad_sum, grad_z, rstd, out=grad_z)
    return grad_z.to(z.dtype), grad_weight


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) up [.., F] of (gate, up) [.., 2 F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up).contiguous()


def swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """Gradient of gate_up [.., 2 F], both halves written where they belong. Autograd would make
    them apart and copy them together, the largest copy of a layer."""
    gate, up = gate_up.chunk(2, dim=-1)
    grad_gate_up = gate_up.new_empty(gate_up.shape)
    grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
    torch.mul(grad, F.silu(gate), out=grad_up)
    torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
    return grad_gate_up


def rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    """(a cos - b sin, b cos + a sin) of the halves (a, b) of the last dimension of x [T, .., d].

    cos, sin: [T, d / 2]. `inverse` turns the other way, which is the gradient.
    """
    shape = (x.shape[0], *(1,) * (x.dim() - 2), cos.shape[1])
    cos, sin = cos.view(shape), sin.view(shape)
    sign = -1.0 if inverse else 1.0
    out = x.new_empty(x.shape)
    (a, b), (out_a, out_b) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(a, cos, out=out_a).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=out_b).addcmul_(a, sin, value=sign)
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
    """softmax(q k^T / sqrt(D)) v [B, K, G, D] over entries 0 .. position of each row's slot, after
    the rotated key and the value have been written at `position`."""
    rows = torch.arange(len(positions), device=positions.device) if slots is None else slots
    key_cache[rows, :, positions] = rope(keys, cos, sin, False)
    value_cache[rows, :, positions] = values
    if slots is not None:
        key_cache, value_cache = key_cache[slots], value_cache[slots]
    entries = torch.arange(key_cache.shape[2], device=positions.device)
    beyond = (entries > positions[:, None])[:, None, :, None]
    # Entries beyond the position may hold anything, and 0 times NaN is NaN.
    key_cache, value_cache = key_cache.masked_fill(beyond, 0), value_cache.masked_fill(beyond, 0)
    # The heads of a group are rows of one product: no key is repeated.
    return F.scaled_dot_product_attention(
        rope(queries, cos, sin, False), key_cache, value_cache, attn_mask=~beyond.mT
    )
