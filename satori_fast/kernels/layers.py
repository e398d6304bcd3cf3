# SPDX-License-Identifier: Apache-2.0
"""The operations inside a transformer layer: public functions, and their schemas for torch.

Not the mathematics (`reference_layers`, and the kernels of a device), nor how an operation reaches
torch (`registration`).
"""

from typing import Any, overload

import torch
from torch import Tensor

from satori_fast.kernels.dispatch import function_for
from satori_fast.kernels.head import compute_dtype
from satori_fast.kernels.registration import Run, operation

__all__ = ["decode_attention", "rms_norm", "rope", "swiglu"]


@overload
def rms_norm(x: Tensor, weight: Tensor, *, eps: float, residual: None = None) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, residual: Tensor
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467).

    x [.., H], weight [H]. With a `residual` like x: (y, x + residual), where y is the norm of the
    sum as it is after rounding. Differentiable in x, residual and weight; the mean and y itself are
    float32 until y is rounded, once (float64 for float64 inputs).

    ValueError for shapes or types that do not fit.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(
            f"weight has shape {list(weight.shape)}, expected {list(x.shape[-1:])}, "
            f"the last dimension of x"
        )
    if residual is None:
        return _rms_norm(x, weight, eps)[0]
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"residual is {residual.dtype} {list(residual.shape)}, x is {x.dtype} {list(x.shape)}: "
            "they must be alike"
        )
    y, total, _ = _add_rms_norm(x, residual, weight, eps)
    return y, total


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up [.., F] of gate_up = (gate, up) [.., 2 F], silu(g) = g / (1 + exp(-g))
    (arXiv 2002.05202 eq. 5). ValueError when the last dimension is odd."""
    if gate_up.shape[-1] % 2:
        raise ValueError(
            f"gate_up has shape {list(gate_up.shape)}: the last dimension holds two halves, so it "
            "must be even"
        )
    return _swiglu(gate_up)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(a cos - b sin, b cos + a sin) of the halves (a, b) of the last dimension of x: rotary
    position embedding (arXiv 2104.09864) with Hugging Face's order of channels.

    x [T, .., d]; cos and sin [T, d / 2] of each token's angles, constants for the gradient. Packed
    sequences need nothing more: a token's position is in its row of cos and sin.

    ValueError for shapes or types that do not fit.
    """
    _check_angles(x, cos, sin)
    return _rope(x, cos, sin, False)


def decode_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    positions: Tensor,
    *,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor | None = None,
) -> Tensor:
    """Attention [B, K, G, D] of one new token in each of B rows to all tokens so far of its row.

    Queries and keys are rotated as in `rope`, the new key and value are written into the caches at
    the row's position, and the row attends to entries 0 .. position; later entries may hold
    anything. A row's result does not depend on the other rows. No gradients.

    queries:   [B, K, G, D], G query heads to each of K key heads (grouped heads).
    keys:      [B, K, D], as `values`.
    key_cache: [S, K, T, D], as `value_cache`; both are changed. They may be views of longer ones.
    positions: integers [B], where the new token goes.
    cos, sin:  [B, D / 2], of the new tokens' angles.
    slots:     integers [B], all different: the row of the caches; None where row n has slot n.

    ValueError for shapes or types that do not fit, for tensors that ask for a gradient and, on the
    host, for positions and slots that the caches do not have.
    """
    _check_decode(queries, keys, values, key_cache, value_cache)
    for name, tensor in (("positions", positions), ("slots", slots)):
        if tensor is not None and (tensor.shape != keys.shape[:1] or tensor.is_floating_point()):
            raise ValueError(
                f"{name} must be integers [{len(keys)}], got {tensor.dtype} {list(tensor.shape)}"
            )
    _check_angles(keys, cos, sin)
    return _decode_attention(
        queries, keys, values, key_cache, value_cache, positions, cos, sin, slots
    )


def _check_angles(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    expected = (x.shape[0], x.shape[-1] // 2)
    if cos.shape != expected or sin.shape != expected or x.shape[-1] % 2:
        raise ValueError(
            f"cos and sin have shapes {list(cos.shape)} and {list(sin.shape)}, x has "
            f"{list(x.shape)}: expected [T, d / 2] for x [T, .., d] with even d"
        )
    if not cos.dtype == sin.dtype == x.dtype:
        raise ValueError(f"x, cos and sin are {x.dtype}, {cos.dtype}, {sin.dtype}: make them one")


def _check_decode(
    queries: Tensor, keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor
) -> None:
    tensors = (queries, keys, values, key_cache, value_cache)
    if not (
        queries.dim() == key_cache.dim() == 4
        and keys.dim() == 3
        and keys.shape == values.shape
        and key_cache.shape == value_cache.shape
        and queries.shape[:2] == keys.shape[:2]
        and queries.shape[3] == keys.shape[2] == key_cache.shape[3]
        and keys.shape[1] == key_cache.shape[1]
    ):
        raise ValueError(
            "queries must be [B, K, G, D], keys and values [B, K, D] and the caches [S, K, T, D], "
            f"got {', '.join(str(list(x.shape)) for x in tensors)}"
        )
    if any(x.dtype != keys.dtype for x in tensors):
        raise ValueError(f"make the tensors one type: {', '.join(str(x.dtype) for x in tensors)}")
    if key_cache.stride(3) != 1 or value_cache.stride(3) != 1:
        raise ValueError("the heads of the caches must be dense: their last stride must be 1")
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise ValueError("decode_attention has no gradient: call it under torch.no_grad()")


# Operators. A schema can neither return None nor an input, hence two forms of the norm and empty
# tensors for gradients that nobody needs.


@operation("rms_norm")
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return function_for("rms_norm", x)(x, weight, eps)


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), _fake_rstd(x)


@operation("add_rms_norm")
def _add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return function_for("add_rms_norm", x)(x, residual, weight, eps)


@_add_rms_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), _fake_rstd(x)


@operation("rms_norm_backward")
def _rms_norm_backward(
    grad: Tensor,
    grad_sum: Tensor | None,
    z: Tensor,
    weight: Tensor,
    rstd: Tensor,
    need_z: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    backward = function_for("rms_norm_backward", z)
    grad_z, grad_weight = backward(grad, grad_sum, z, weight, rstd, need_z, need_weight)
    return (
        z.new_empty(0) if grad_z is None else grad_z,
        weight.new_empty(0) if grad_weight is None else grad_weight,
    )


@_rms_norm_backward.register_fake
def _(
    grad: Tensor,
    grad_sum: Tensor | None,
    z: Tensor,
    weight: Tensor,
    rstd: Tensor,
    need_z: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    return (
        z.new_empty(z.shape if need_z else 0),
        weight.new_empty(weight.shape if need_weight else 0),
    )


@operation("swiglu")
def _swiglu(gate_up: Tensor) -> Tensor:
    return function_for("swiglu", gate_up)(gate_up)


@_swiglu.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


@operation("swiglu_backward")
def _swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    return function_for("swiglu_backward", gate_up)(grad, gate_up)


@_swiglu_backward.register_fake
def _(grad: Tensor, gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


@operation("rope")
def _rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    return function_for("rope", x)(x, cos, sin, inverse)


@_rope.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    return x.new_empty(x.shape)


@operation("decode_attention", mutates=("key_cache", "value_cache"))
def _decode_attention(
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
    return function_for("decode_attention", keys)(
        queries, keys, values, key_cache, value_cache, positions, cos, sin, slots
    )


@_decode_attention.register_fake
def _(queries: Tensor, *_: Any) -> Tensor:
    return queries.new_empty(queries.shape)


def _fake_rstd(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], 1), dtype=compute_dtype(x))


# Gradients.


def _rms_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _rms_norm_gradient(run: Run, ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None
    z, weight, rstd = ctx.saved_tensors
    need_z, need_weight, _ = ctx.needs_input_grad
    gradients = run(_rms_norm_backward, grad, None, z, weight, rstd, need_z, need_weight)
    return gradients[0] if need_z else None, gradients[1] if need_weight else None, None


def _add_rms_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, total, rstd = output
    ctx.save_for_backward(total, inputs[2], rstd)
    ctx.mark_non_differentiable(rstd)
    ctx.set_materialize_grads(False)


def _add_rms_norm_gradient(
    run: Run, ctx: Any, grad: Tensor | None, grad_sum: Tensor | None, _: Any
) -> tuple[Any, ...]:
    need_x, need_residual, need_weight, _ = ctx.needs_input_grad
    if grad is None:
        return grad_sum if need_x else None, grad_sum if need_residual else None, None, None
    z, weight, rstd = ctx.saved_tensors
    need_z = need_x or need_residual
    grad_z, grad_weight = run(
        _rms_norm_backward, grad, grad_sum, z, weight, rstd, need_z, need_weight
    )
    return (
        grad_z if need_x else None,
        grad_z if need_residual else None,
        grad_weight if need_weight else None,
        None,
    )


def _swiglu_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _swiglu_gradient(run: Run, ctx: Any, grad: Tensor) -> Tensor:
    (gate_up,) = ctx.saved_tensors
    return run(_swiglu_backward, grad, gate_up)


def _rope_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.inverse = inputs
    ctx.save_for_backward(cos, sin)


def _rope_gradient(run: Run, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    cos, sin = ctx.saved_tensors
    return run(_rope, grad, cos, sin, not ctx.inverse), None, None, None


_rms_norm.register_gradient(_rms_norm_gradient, setup=_rms_norm_setup)
_add_rms_norm.register_gradient(_add_rms_norm_gradient, setup=_add_rms_norm_setup)
_swiglu.register_gradient(_swiglu_gradient, setup=_swiglu_setup)
_rope.register_gradient(_rope_gradient, setup=_rope_setup)
