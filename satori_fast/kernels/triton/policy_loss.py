# SPDX-License-Identifier: Apache-2.0
"""The clipped policy loss, its metrics and its gradients in one pass over the tokens, on the GPU;
see `reference.policy_loss`.

Estimator and importance rule are numbers that the kernel selects by, not compile-time constants:
selecting costs nothing where memory is the limit, and no choice of a user waits for a compiler.
Sums are made per block of tokens, then over the blocks in a fixed order: no atomics.
"""

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from satori_fast.kernels import reference
from satori_fast.kernels.reference import POLICY_STATS, PolicyInputs, PolicyTerms
from satori_fast.kernels.triton.launch import Configuration

# Partial sums of a block: one for each of POLICY_STATS, and padding to a power of 2.
WIDTH = 16
MAX_LOG_RATIO = tl.constexpr(reference.MAX_LOG_RATIO)

KL_ESTIMATORS = {"k1": 1, "k2": 2, "k3": 3}
IMPORTANCE = {"none": 0, "truncate": 1, "mask": 2}


# How kernels take the fields of `PolicyTerms`, in its order.
CHOICE_TYPES = {
    name: "i32" if name in ("kl_estimator", "importance") else "fp32"
    for name in PolicyTerms._fields
}


def choices(terms: PolicyTerms) -> tuple[float, ...]:
    """Fields of `terms` as numbers, in their order."""
    coefficients, kl_estimator, importance = terms.flat()
    return *coefficients, KL_ESTIMATORS[kl_estimator], IMPORTANCE[importance]


@triton.jit
def _clamped(log_ratio):
    # Not minimum and maximum, which would make a number of a NaN.
    below = tl.where(log_ratio > MAX_LOG_RATIO, MAX_LOG_RATIO, log_ratio)
    return tl.where(log_ratio < -MAX_LOG_RATIO, -MAX_LOG_RATIO, below)


@triton.jit
def _is_clamped(log_ratio):
    """Mask of log-ratios that `_clamped` changes, and its gradient is 0; not where it is NaN."""
    return tl.abs(log_ratio) > MAX_LOG_RATIO


@triton.jit
def _k3(d):
    """exp(d) - 1 - d of clamped d, without the cancellation of its terms near 0."""
    d = _clamped(d)
    series = 1 / 720 + d * (1 / 5040 + d * (1 / 40320))
    series = 0.5 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d * series)))
    return tl.where(tl.abs(d) < 0.5, d * d * series, tl.exp(d) - 1.0 - d)


@triton.jit
def importance_weight(log_ratio, importance_low, importance_high, importance):
    """u of `ops.policy_loss`, and where it is not the ratio itself."""
    ratio = tl.exp(_clamped(log_ratio))
    outside = (ratio < importance_low) | (ratio > importance_high)
    clamped = tl.minimum(tl.maximum(ratio, importance_low), importance_high)
    masked = tl.where(outside, 0.0, ratio)
    u = tl.where(importance == 1, clamped, tl.where(importance == 2, masked, 1.0))
    return u, outside & (importance != 0)


@triton.jit
def surrogate_and_gradient(logprob, old, advantage, u, clip_low, clip_high, clip_dual):
    """The clipped objective, its derivative in logprob without the sign, the ratio, and which of
    the three clips leave the token without a gradient."""
    ratio = tl.exp(_clamped(logprob - old))
    clipped = tl.minimum(tl.maximum(ratio, 1.0 - clip_low), 1.0 + clip_high)
    surrogate = tl.minimum(ratio * advantage, clipped * advantage)
    is_low = (advantage < 0) & (ratio < 1.0 - clip_low)
    is_high = (advantage > 0) & (ratio > 1.0 + clip_high)
    is_dual = (advantage < 0) & (ratio > clip_dual)
    surrogate = tl.where(is_dual, clip_dual * advantage, surrogate)
    # A masked token adds 0 even where its ratio is NaN.
    stops = is_low | is_high | is_dual | _is_clamped(logprob - old) | (u == 0)
    gradient = tl.where(stops, 0.0, u * ratio * advantage)
    return tl.where(u == 0, 0.0, u * surrogate), gradient, ratio, is_low, is_high, is_dual


@triton.jit
def kl_and_gradient(d, kl_estimator):
    """KL(policy || reference) from d = ref_logprob - logprob, and its derivative in logprob."""
    k3 = _k3(d)
    kl = tl.where(kl_estimator == 1, -d, tl.where(kl_estimator == 2, d * d / 2, k3))
    k3_gradient = tl.where(_is_clamped(d), 0.0, -(k3 + d))
    gradient = tl.where(kl_estimator == 1, 1.0, tl.where(kl_estimator == 2, -d, k3_gradient))
    return kl, gradient


@triton.jit(do_not_specialize=["num_tokens", "kl_estimator", "importance"])
def _policy_loss(
    logprobs, entropies, old_logprobs, advantages, loss_weights, rollout_logprobs, ref_logprobs,
    grad_logprobs, grad_entropies, partials, num_tokens,
    clip_low, clip_high, clip_dual, kl_coefficient, entropy_coefficient,
    importance_low, importance_high, kl_estimator, importance,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program per block of tokens: both gradients, and WIDTH partial sums or maxima."""
    block = tl.program_id(0).to(tl.int64)
    token = block * BLOCK + tl.arange(0, BLOCK)
    exists = token < num_tokens
    weight = tl.load(loss_weights + token, mask=exists, other=0.0)
    # What stands at a token of weight 0 is not even read: it may be NaN.
    live = weight != 0
    logprob = tl.load(logprobs + token, mask=live, other=0.0)
    entropy = tl.load(entropies + token, mask=live, other=0.0)
    old = tl.load(old_logprobs + token, mask=live, other=0.0)
    advantage = tl.load(advantages + token, mask=live, other=0.0)
    rollout = tl.load(rollout_logprobs + token, mask=live, other=0.0)
    ref = tl.load(ref_logprobs + token, mask=live, other=0.0)

    gap = old - rollout
    u, is_reweighted = importance_weight(gap, importance_low, importance_high, importance)
    surrogate, slope, ratio, is_low, is_high, is_dual = surrogate_and_gradient(
        logprob, old, advantage, u, clip_low, clip_high, clip_dual
    )
    kl, kl_slope = kl_and_gradient(ref - logprob, kl_estimator)
    # A term that is off is left out, not multiplied by 0: its value may be infinite.
    gradient = tl.where(kl_coefficient != 0, kl_coefficient * kl_slope, 0.0) - slope
    tl.store(grad_logprobs + token, tl.where(live, weight * gradient, 0.0), mask=exists)
    tl.store(grad_entropies + token, -entropy_coefficient * weight, mask=exists)

    # In the order of POLICY_STATS.
    out = partials + block * WIDTH
    tl.store(out + 0, tl.sum(-weight * surrogate, 0))
    tl.store(out + 1, tl.sum(weight * kl, 0))
    tl.store(out + 2, tl.sum(weight * entropy, 0))
    tl.store(out + 3, tl.sum(tl.where(is_low, weight, 0.0), 0))
    tl.store(out + 4, tl.sum(tl.where(is_high, weight, 0.0), 0))
    tl.store(out + 5, tl.sum(tl.where(is_dual, weight, 0.0), 0))
    tl.store(out + 6, tl.max(tl.where(live, ratio, 0.0), 0))
    tl.store(out + 7, tl.sum(weight * _k3(logprob - old), 0))
    tl.store(out + 8, tl.sum(weight * tl.abs(gap), 0))
    tl.store(out + 9, tl.max(tl.abs(gap), 0))
    tl.store(out + 10, tl.sum(weight * _k3(gap), 0))
    tl.store(out + 11, tl.sum(tl.where(is_reweighted & live, weight, 0.0), 0))
    tl.store(out + 12, tl.sum(tl.where(live, 1.0, 0.0), 0))
    is_clamped = _is_clamped(logprob - old) | _is_clamped(gap)
    is_clamped |= (kl_estimator == 3) & _is_clamped(ref - logprob)
    tl.store(out + 13, tl.sum(tl.where(is_clamped, 1.0, 0.0), 0))


@triton.jit(do_not_specialize=["num_blocks"])
def _total(
    partials, loss, stats, num_blocks, kl_coefficient, entropy_coefficient,
    NUM_STATS: tl.constexpr, BLOCKS_AT_ONCE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program: the partials of all blocks, in their order, to the statistics and the loss."""
    column = tl.arange(0, WIDTH)
    sums = tl.full((WIDTH,), 0.0, tl.float32)
    maxima = tl.full((WIDTH,), 0.0, tl.float32)
    for first in range(0, num_blocks, BLOCKS_AT_ONCE):
        row = first + tl.arange(0, BLOCKS_AT_ONCE)
        mask = (row < num_blocks)[:, None] & (column < NUM_STATS)[None, :]
        values = tl.load(partials + row[:, None] * WIDTH + column[None, :], mask=mask, other=0.0)
        sums += tl.sum(values, 0)
        maxima = tl.maximum(maxima, tl.max(values, 0))
    is_maximum = (column == 6) | (column == 9)
    tl.store(stats + column, tl.where(is_maximum, maxima, sums), mask=column < NUM_STATS)
    policy = tl.sum(tl.where(column == 0, sums, 0.0), 0)
    kl = tl.sum(tl.where(column == 1, sums, 0.0), 0)
    entropy = tl.sum(tl.where(column == 2, sums, 0.0), 0)
    policy += tl.where(kl_coefficient != 0, kl_coefficient * kl, 0.0)
    policy -= tl.where(entropy_coefficient != 0, entropy_coefficient * entropy, 0.0)
    tl.store(loss, policy)


def _pointers(names: Iterable[str]) -> dict[str, str]:
    return dict.fromkeys(names, "*fp32:16")


TOKENS = Configuration(
    name="policy_loss.tokens",
    kernel=_policy_loss,
    types={
        **_pointers(("logprobs", "entropies", *PolicyInputs._fields)),
        **_pointers(("grad_logprobs", "grad_entropies", "partials")),
        "num_tokens": "i32",
        **CHOICE_TYPES,
    },
    constants={"BLOCK": 1024, "WIDTH": WIDTH},
    num_warps=8,
)
TOTAL = Configuration(
    name="policy_loss.total",
    kernel=_total,
    types={
        **_pointers(("partials", "loss", "stats")),
        "num_blocks": "i32",
        "kl_coefficient": "fp32",
        "entropy_coefficient": "fp32",
    },
    constants={"NUM_STATS": len(POLICY_STATS), "BLOCKS_AT_ONCE": 64, "WIDTH": WIDTH},
)
CONFIGURATIONS = (TOKENS, TOTAL)


def policy_loss(
    logprobs: Tensor, entropies: Tensor, inputs: PolicyInputs, terms: PolicyTerms
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference.policy_loss` on the GPU, in float32, whatever the types of the inputs."""
    logprobs, entropies, *constants = (
        _flat(tensor) for tensor in (logprobs, entropies, *with_stand_ins(logprobs, inputs))
    )
    grad_logprobs, grad_entropies = torch.empty_like(logprobs), torch.empty_like(logprobs)
    num_blocks = triton.cdiv(len(logprobs), TOKENS.constants["BLOCK"])
    partials = logprobs.new_empty(num_blocks, WIDTH)
    if num_blocks:
        TOKENS.launch(
            (num_blocks,), logprobs, entropies, *constants, grad_logprobs, grad_entropies, partials,
            len(logprobs), *choices(terms),
        )  # fmt: skip
    loss, stats = logprobs.new_empty(()), logprobs.new_empty(len(POLICY_STATS))
    coefficients = (terms.kl_coefficient, terms.entropy_coefficient)
    TOTAL.launch((1,), partials, loss, stats, num_blocks, *coefficients)
    return loss, stats, grad_logprobs, grad_entropies


def with_stand_ins(logprobs: Tensor, inputs: PolicyInputs) -> PolicyInputs:
    """Absent log-probabilities replaced by such as make their terms 0: the rollout engine's by the
    old ones, those of the reference by the policy's own."""
    rollout, ref = inputs.rollout_logprobs, inputs.ref_logprobs
    return inputs._replace(
        rollout_logprobs=inputs.old_logprobs if rollout is None else rollout,
        ref_logprobs=logprobs if ref is None else ref,
    )


def _flat(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.detach().to(torch.float32).contiguous()
