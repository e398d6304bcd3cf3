# SPDX-License-Identifier: Apache-2.0
"""The tensor operations as torch knows them: a schema, a fake and a gradient for each.

Not the public functions (`ops`), the mathematics (`reference`) nor the choice of an implementation
(`dispatch`). An operation is a single node for torch.compile, and its backward is another. Checks
that look at values are here, because this code runs when there are values.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import (
    _resolve_process_group,  # pyright: ignore[reportPrivateImportUsage]
)

from satori_fast.kernels import dispatch, reference
from satori_fast.kernels.head import compute_dtype, stash_dtype, stash_width
from satori_fast.kernels.reference import POLICY_STATS, PolicyInputs, PolicyTerms
from satori_fast.kernels.registration import Run, operation

# linear_logprob: the partition [T, 2] and, with the mode "stash", a softmax are outputs that only
# the backward needs.


def _head_function(name: str, hidden: Tensor, mode: str) -> Callable[..., Any]:
    # The compiled head of the host keeps no softmax.
    if mode == "stash" and dispatch.implementation("linear_logprob", hidden.device) == "cpp":
        return dispatch.reference_of(name)
    return dispatch.function_for(name, hidden)


@operation("linear_logprob")
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    vocab_size: int | None,
    vocab_start: int,
    group: str | None,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first = vocab_start if group is None else 0
    end = vocab_start + weight.shape[0] if group is None else None
    _check_temperatures(temperatures, hidden)
    _check_target_range(targets, first, _smallest(vocab_size, end))
    stash = _new_stash(hidden, weight, vocab_size, vocab_start, mode)
    outputs = _head_function("linear_logprob", hidden, mode)(
        hidden,
        weight,
        targets,
        temperature=temperature if temperatures is None else temperatures,
        vocab_size=vocab_size,
        vocab_start=vocab_start,
        group=_group(group),
        **_if_stashing(mode, stash=stash),
    )
    return *outputs, stash


@linear_logprob.register_fake
def _(hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, vocab_size, vocab_start, _, mode = rest
    per_token = hidden.new_empty(hidden.shape[0], dtype=compute_dtype(hidden))
    partition = per_token.new_empty(hidden.shape[0], 2)
    stash = _new_stash(hidden, weight, vocab_size, vocab_start, mode)
    return per_token, torch.empty_like(per_token), partition, stash


@operation("linear_logprob_backward")
def _linear_logprob_backward(
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    logprob: Tensor,
    entropy: Tensor,
    partition: Tensor,
    stash: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    vocab_size: int | None,
    vocab_start: int,
    group: str | None,
    mode: str,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    gradients = _head_function("linear_logprob_backward", hidden, mode)(
        grad_logprob,
        grad_entropy,
        hidden,
        weight,
        targets,
        entropy,
        partition,
        temperature=temperature if temperatures is None else temperatures,
        vocab_size=vocab_size,
        vocab_start=vocab_start,
        group=_group(group),
        need_hidden=need_hidden,
        need_weight=need_weight,
        **_if_stashing(mode, stash=stash, logprob=logprob),
    )
    return _present(gradients[0], hidden), _present(gradients[1], weight)


@_linear_logprob_backward.register_fake
def _(
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    need_hidden, need_weight = rest[-2:]
    return _fake_gradient(hidden, need_hidden), _fake_gradient(weight, need_weight)


def _linear_logprob_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, temperature, temperatures, *ctx.layout = inputs
    ctx.temperature = temperature
    ctx.save_for_backward(hidden, weight, targets, *output, temperatures)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _linear_logprob_gradient(
    run: Run, ctx: Any, grad_logprob: Tensor | None, grad_entropy: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_logprob is None and grad_entropy is None:
        return (None,) * 9
    *saved, temperatures = ctx.saved_tensors
    need_hidden, need_weight = ctx.needs_input_grad[:2]
    grad_hidden, grad_weight = run(
        _linear_logprob_backward,
        grad_logprob,
        grad_entropy,
        *saved,
        ctx.temperature,
        temperatures,
        *ctx.layout,
        need_hidden,
        need_weight,
    )
    return (
        grad_hidden if need_hidden else None,
        grad_weight if need_weight else None,
        *(None,) * 7,
    )


linear_logprob.register_gradient(_linear_logprob_gradient, setup=_linear_logprob_setup)


# The policy losses: both make their two gradients on the way forward, as outputs 2 and 3.


@operation("linear_policy_loss")
def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_weights: Tensor,
    rollout_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    coefficients: Sequence[float],
    kl_estimator: str,
    importance: str,
    temperature: float,
    temperatures: Tensor | None,
    vocab_size: int | None,
    group: str | None,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    end = weight.shape[0] if group is None else None
    _check_temperatures(temperatures, hidden)
    _check_target_range(targets, 0, _smallest(vocab_size, end), loss_weights)
    compute = dispatch.function_for("linear_policy_loss", hidden)
    loss, stats, grad_hidden, grad_weight = compute(
        hidden,
        weight,
        targets,
        PolicyInputs(old_logprobs, advantages, loss_weights, rollout_logprobs, ref_logprobs),
        PolicyTerms.unflat(coefficients, kl_estimator, importance),
        temperature=temperature if temperatures is None else temperatures,
        vocab_size=vocab_size,
        group=_group(group),
        need_hidden=need_hidden,
        need_weight=need_weight,
    )
    return loss, stats, _present(grad_hidden, hidden), _present(grad_weight, weight)


@linear_policy_loss.register_fake
def _(hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need_hidden, need_weight = rest[-2:]
    return (
        hidden.new_empty((), dtype=compute_dtype(hidden)),
        hidden.new_empty(len(POLICY_STATS), dtype=torch.float32),
        _fake_gradient(hidden, need_hidden),
        _fake_gradient(weight, need_weight),
    )


@operation("policy_loss")
def policy_loss(
    logprobs: Tensor,
    entropies: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_weights: Tensor,
    rollout_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    coefficients: Sequence[float],
    kl_estimator: str,
    importance: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, stats, grad_logprobs, grad_entropies = dispatch.function_for("policy_loss", logprobs)(
        logprobs,
        entropies,
        PolicyInputs(old_logprobs, advantages, loss_weights, rollout_logprobs, ref_logprobs),
        PolicyTerms.unflat(coefficients, kl_estimator, importance),
    )
    return loss, stats, grad_logprobs.to(logprobs.dtype), grad_entropies.to(entropies.dtype)


@policy_loss.register_fake
def _(logprobs: Tensor, entropies: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        logprobs.new_empty((), dtype=compute_dtype(logprobs)),
        logprobs.new_empty(len(POLICY_STATS), dtype=torch.float32),
        _fake_gradient(logprobs, True),
        _fake_gradient(entropies, True),
    )


def _policy_loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, stats, first, second = output
    ctx.num_inputs = len(inputs)
    ctx.save_for_backward(first, second)
    ctx.mark_non_differentiable(stats, first, second)
    ctx.set_materialize_grads(False)


def _policy_loss_gradient(
    _run: Run, ctx: Any, grad_loss: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * ctx.num_inputs
    gradients = (
        (saved * grad_loss).to(saved.dtype) if is_needed else None
        for saved, is_needed in zip(ctx.saved_tensors, ctx.needs_input_grad[:2], strict=True)
    )
    return (*gradients, *(None,) * (ctx.num_inputs - 2))


linear_policy_loss.register_gradient(_policy_loss_gradient, setup=_policy_loss_setup)
policy_loss.register_gradient(_policy_loss_gradient, setup=_policy_loss_setup)


# segment_scan: the backward of a scan is the scan in the other direction.


@operation("segment_scan")
def segment_scan(x: Tensor, decay: float, cu_seqlens: Tensor, reverse: bool) -> Tensor:
    return dispatch.function_for("segment_scan", x)(x, decay, cu_seqlens, reverse=reverse)


@segment_scan.register_fake
def _(x: Tensor, decay: float, cu_seqlens: Tensor, reverse: bool) -> Tensor:
    return x.new_empty(x.shape)


def _segment_scan_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.decay, cu_seqlens, ctx.reverse = inputs
    ctx.save_for_backward(cu_seqlens)


def _segment_scan_gradient(run: Run, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (cu_seqlens,) = ctx.saved_tensors
    return run(segment_scan, grad, ctx.decay, cu_seqlens, not ctx.reverse), None, None, None


segment_scan.register_gradient(_segment_scan_gradient, setup=_segment_scan_setup)


# gae: constants in, constants out.


@operation("gae")
def gae(
    values: Tensor,
    rewards: Tensor,
    mask: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor,
    gamma: float,
    decay: float,
) -> tuple[Tensor, Tensor]:
    scan = {}
    compute = dispatch.function_for("gae", values)
    if compute is reference.gae:
        scan["scan"] = dispatch.function_for("segment_scan", values)
    return compute(values, rewards, mask, segment_ids, cu_seqlens, gamma=gamma, decay=decay, **scan)


@gae.register_fake
def _(values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values), torch.empty_like(values)


gae.register_gradient(
    lambda _run, _ctx, *_: (None,) * 7,
    setup=lambda ctx, _inputs, output: ctx.mark_non_differentiable(*output),
)


# linear_logits


@operation("linear_logits")
def linear_logits(hidden: Tensor, weight: Tensor, vocab_size: int | None) -> Tensor:
    return dispatch.function_for("linear_logits", hidden)(hidden, weight, vocab_size)


@linear_logits.register_fake
def _(hidden: Tensor, weight: Tensor, vocab_size: int | None) -> Tensor:
    num_columns = weight.shape[0] if vocab_size is None else min(weight.shape[0], vocab_size)
    return hidden.new_empty((hidden.shape[0], num_columns), dtype=compute_dtype(hidden))


# sample_tokens


@operation("sample_tokens")
def sample_tokens(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return dispatch.function_for("sample_tokens", logits)(logits, uniform, temperature)


@sample_tokens.register_fake
def _(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return uniform.new_empty(uniform.shape, dtype=torch.int64), logits.new_empty(uniform.shape)


def _new_stash(
    hidden: Tensor, weight: Tensor, vocab_size: int | None, vocab_start: int, mode: str
) -> Tensor:
    """Room for `head.keep_softmax`, or nothing in the mode "recompute"."""
    if mode != "stash":
        return hidden.new_empty(0)
    end = weight.shape[0] if vocab_size is None else vocab_size - vocab_start
    num_columns = max(0, min(weight.shape[0], end))
    shape = (hidden.shape[0], stash_width(num_columns))
    return hidden.new_empty(shape, dtype=stash_dtype(hidden.dtype))


def _if_stashing(mode: str, **keywords: Tensor) -> dict[str, Tensor]:
    return keywords if mode == "stash" else {}


def _present(gradient: Tensor | None, like: Tensor) -> Tensor:
    """An operation cannot return None: a gradient that nobody needs is empty."""
    return like.new_empty(0) if gradient is None else gradient


def _fake_gradient(like: Tensor, is_needed: bool) -> Tensor:
    return like.new_empty(like.shape if is_needed else 0)


def _group(name: str | None) -> ProcessGroup | None:
    if name is None:
        return None
    return _resolve_process_group(name)  # pyright: ignore[reportArgumentType]


def _smallest(*bounds: int | None) -> int | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def _check_temperatures(temperatures: Tensor | None, hidden: Tensor) -> None:
    if temperatures is None:
        return
    # In the type that is computed in: a float64 of 1e-50 is 0 there.
    values = temperatures.to(compute_dtype(hidden))
    is_right = (values > 0) & (values < torch.inf)
    if temperatures.is_cuda:
        # Two small kernels and no wait: reading a value would stop the host until the device has
        # done all it was given. A wrong one stops the process at its next look at the device.
        torch.ops.aten._assert_async.msg(is_right.all(), "temperature must be positive and finite")
    elif not is_right.all():
        position = int((~is_right).nonzero()[0])
        raise ValueError(
            f"temperature[{position}] is {float(temperatures[position])}: it must be positive and "
            "finite"
        )


def _check_target_range(
    targets: Tensor, first: int, end: int | None, loss_weights: Tensor | None = None
) -> None:
    """Host only: looking at the values of a device tensor would stop the device."""
    if targets.is_cuda:
        return
    wrong = targets < first if end is None else (targets < first) | (targets >= end)
    if loss_weights is not None:
        wrong &= loss_weights != 0
    if wrong.any():
        position = int(wrong.nonzero()[0])
        bound = "" if end is None else f" and below {end}"
        raise ValueError(
            f"targets[{position}] is {int(targets[position])}: it must be at least {first}{bound}"
        )
