# SPDX-License-Identifier: Apache-2.0
"""The public operations: their meaning, and checks of their arguments.

Not the mathematics (`reference` defines every operation, `cpu` calls the compiled ones) nor what
torch must know of them (`schemas`).

Shapes: T tokens, H hidden size, V vocabulary rows of `weight` (on this tensor-parallel rank), N
sequences. Log-probabilities and entropies are in nats, float32 (float64 for float64 inputs).
"""

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from satori_fast.kernels import cpu, schemas
from satori_fast.kernels.dispatch import host_function, implementation
from satori_fast.kernels.head import compute_dtype, stash_dtype
from satori_fast.kernels.reference import (
    MAX_LOG_RATIO,
    POLICY_STATS,
    Importance,
    KlEstimator,
    PolicyInputs,
    PolicyTerms,
)

__all__ = [
    "MAX_LOG_RATIO",
    "POLICY_STATS",
    "PolicyTerms",
    "gae",
    "implementation",
    "linear_logits",
    "linear_logprob",
    "linear_policy_loss",
    "pack_bins",
    "policy_loss",
    "sample_tokens",
    "segment_scan",
    "sequence_similarity",
]

MODES = ("auto", "recompute", "stash")
# "auto" keeps a softmax up to this size.
STASH_BYTES = 4 * 2**30
PLAIN_TERMS = PolicyTerms()


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    vocab_size: int | None = None,
    vocab_start: int = 0,
    group: ProcessGroup | None = None,
    mode: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(logprob [T] of `targets`, entropy [T]) of softmax(hidden weight^T / temperature).

    hidden [T, H] and weight [V, H] are differentiable and share a type; half precision is summed in
    float32. The logits [T, V] are never stored in float32.

    targets:     [T], vocabulary indices.
    temperature: > 0 and finite, a float or a tensor [T]; a constant for the gradient.
    vocab_size:  true size of the (whole) vocabulary; columns beyond it never enter the softmax.
    vocab_start: vocabulary index of weight[0], for a shard.
    group:       tensor-parallel group whose ranks hold the other shards, of any sizes. Every rank
                 gets the full results and the full gradient of `hidden`.
    mode:        "recompute" makes the logits again for the gradient, chunk by chunk; "stash" keeps
                 their softmax instead, in bfloat16 for half precision: 2 T V bytes for one matrix
                 product of four. "auto" stashes where a gradient may be asked for and this takes
                 no more than STASH_BYTES. On the host every mode recomputes.

    A word may have the logit -inf, by overflow for one: its probability is 0 and it has no part in
    entropy or gradients. A token with a logit of NaN or +inf is NaN, and only that token.

    ValueError for shapes that do not fit, for a temperature that is a number and, on the host, for
    temperatures and targets out of range. On a GPU a wrong temperature is a device-side assertion.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: one of {', '.join(MODES)}")
    _check_head(hidden, weight, targets, vocab_size)
    number, per_token = _split_temperature(temperature, hidden.shape[0])
    layout = (vocab_size, vocab_start, _group_name(group))
    mode = _stash_or_recompute(mode, hidden, weight)
    logprob, entropy, _, _ = schemas.linear_logprob(
        hidden, weight, targets, number, per_token, *layout, mode
    )
    return logprob, entropy


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_weights: Tensor,
    terms: PolicyTerms = PLAIN_TERMS,
    *,
    rollout_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    vocab_size: int | None = None,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """`policy_loss` of the head `linear_logprob`: (loss, stats) without ever storing [T, V].

    The gradients of `hidden` and `weight` are made on the way forward, while the logits are there:
    three matrix products instead of four. Tokens of weight 0 cost nothing, and their hidden states
    and targets may hold anything. With a `group`, the vocabulary shards lie in rank order.
    """
    _check_head(hidden, weight, targets, vocab_size)
    inputs = PolicyInputs(old_logprobs, advantages, loss_weights, rollout_logprobs, ref_logprobs)
    _check_policy(inputs, terms, hidden.shape[0])
    number, per_token = _split_temperature(temperature, hidden.shape[0])
    differentiates = torch.is_grad_enabled()
    loss, stats, _, _ = schemas.linear_policy_loss(
        hidden,
        weight,
        targets,
        *inputs,
        *terms.flat(),
        number,
        per_token,
        vocab_size,
        _group_name(group),
        differentiates and hidden.requires_grad,
        differentiates and weight.requires_grad,
    )
    return loss, stats


def policy_loss(
    logprobs: Tensor,
    entropies: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_weights: Tensor,
    terms: PolicyTerms = PLAIN_TERMS,
    *,
    rollout_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss, stats): the clipped policy loss, a weighted SUM over tokens, and its metrics.

    With rho = exp(logprob - old_logprob), advantage A, weight w and d = ref_logprob - logprob
    (PPO, arXiv 1707.06347 eq. 7; dual clip, arXiv 1912.09729 eq. 5; the KL estimators are
    Schulman's, http://joschu.net/blog/kl-approx.html):

        loss = sum_t w (-u max(min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), floor)
                        + kl_coefficient KL - entropy_coefficient H)
        KL:  k1 = -d        k2 = d^2 / 2        k3 = exp(d) - 1 - d

    terms: the names above; floor = clip_dual A where A < 0, and u, a constant, is what
    `terms.importance` makes of r = exp(old_logprob - rollout_logprob).

    Every tensor is [T]; `logprobs` and `entropies` are differentiable. A token of weight 0 adds
    nothing, even where its log-probability is infinite or NaN. Where a ratio is exponentiated (rho,
    r, and d in k3), its logarithm is clamped to MAX_LOG_RATIO, 20 nats, on either side, and a
    clamped one has no gradient: no token can make the loss infinite.

    stats: float32 [len(POLICY_STATS)] in the order of `POLICY_STATS`, sums and maxima over tokens
    (`reference.policy_loss` tells what each is), so that the caller divides once.
    """
    inputs = PolicyInputs(old_logprobs, advantages, loss_weights, rollout_logprobs, ref_logprobs)
    _check_per_token(logprobs.numel(), logprobs=logprobs, entropies=entropies)
    _check_policy(inputs, terms, logprobs.numel())
    loss, stats, _, _ = schemas.policy_loss(logprobs, entropies, *inputs, *terms.flat())
    return loss, stats


def segment_scan(x: Tensor, decay: float, cu_seqlens: Tensor) -> Tensor:
    """y [T] with y_t = x_t + decay y_{t+1} inside each sequence, and y = x at its last token.

    Discounted returns; with x = delta and decay = gamma lambda, GAE. Differentiable in x.

    cu_seqlens: integers [N + 1] from 0 to T, not decreasing: sequence n is
                cu_seqlens[n] <= t < cu_seqlens[n + 1].
    """
    if x.dim() != 1 or not x.is_floating_point():
        raise ValueError(f"x must be floating point [T], got {x.dtype} {list(x.shape)}")
    if cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point() or cu_seqlens.shape[0] < 1:
        raise ValueError(
            f"cu_seqlens must be integers [N + 1], got {cu_seqlens.dtype} {list(cu_seqlens.shape)}"
        )
    return schemas.segment_scan(x, decay, cu_seqlens, True)


def gae(
    values: Tensor,
    rewards: Tensor,
    mask: Tensor,
    cu_seqlens: Tensor,
    *,
    gamma: float,
    lambda_: float,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(advantages, returns), each [T]: GAE (arXiv 1506.02438 eq. 16) inside each sequence,

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lambda A_{t+1},
        returns_t = A_t + V_t.

    values, rewards: float32 or float64 [T], constants. mask: bool [T], False at the last entry of
    each sequence. Where it is False, values may hold anything, and V, delta, A and the returns are
    0. cu_seqlens: as in `segment_scan`.

    segment_ids: int32 [T], where `rewards` are those of whole segments, spread over their tokens:
    r_t is then the reward at the last entry of each run of equal ids, and 0 before it. An id that
    no loss token has, such as -1, belongs where `mask` is False.
    """
    if values.dim() != 1 or values.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"values must be float32 or float64 [T], got {values.dtype} {list(values.shape)}"
        )
    _check_per_token(len(values), rewards=rewards, mask=mask)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}")
    if segment_ids is not None:
        _check_per_token(len(values), segment_ids=segment_ids)
        if segment_ids.dtype != torch.int32:
            raise ValueError(f"segment_ids must be int32, got {segment_ids.dtype}")
    decay = gamma * lambda_
    return schemas.gae(values.detach(), rewards, mask, segment_ids, cu_seqlens, gamma, decay)


def linear_logits(hidden: Tensor, weight: Tensor, *, vocab_size: int | None = None) -> Tensor:
    """Logits hidden weight^T [T, V], summed and kept in float32 (float64 for float64), as the
    softmax of `linear_logprob` has them; a product in bfloat16 would round them to 3 digits.

    For sampling: no gradients.

    hidden: [T, H]. weight: [V, H] of the same type; rows from `vocab_size` on are padding and have
    no logits.

    ValueError for shapes or types that do not fit.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {list(hidden.shape)} and weight {list(weight.shape)} must be [T, H] and [V, H]"
        )
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(f"hidden is {hidden.dtype}, weight is {weight.dtype}: make them one")
    return schemas.linear_logits(hidden.detach(), weight.detach(), vocab_size)


def sample_tokens(
    logits: Tensor, uniform: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(tokens int64 [B], log-probabilities [B]) of p = softmax(logits / temperature), by inverse
    transform: the first token whose cumulative probability exceeds `uniform`.

    One number decides a row, so a sample depends neither on the other rows nor on their number. A
    logit of -inf is never drawn. No gradients.

    logits:  [B, V], V > 0; log-probabilities are float32 (float64 for float64).
    uniform: float64 [B] in [0, 1).

    ValueError for shapes or types that do not fit.
    """
    if logits.dim() != 2 or logits.shape[1] < 1 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point [B, V] with V > 0, got {logits.dtype} "
            f"{list(logits.shape)}"
        )
    if uniform.shape != logits.shape[:1] or uniform.dtype != torch.float64:
        raise ValueError(
            f"uniform must be float64 [{len(logits)}], got {uniform.dtype} {list(uniform.shape)}"
        )
    _check_temperature(temperature)
    logits = logits.detach().to(compute_dtype(logits))
    return schemas.sample_tokens(logits, uniform, temperature)


def sequence_similarity(
    a: Sequence[Sequence[int]], b: Sequence[Sequence[int]], *, autojunk: bool = False
) -> np.ndarray:
    """float64 [N]: similarity in [0, 1] of a[n] and b[n], equal to the last bit to
    `difflib.SequenceMatcher(None, a[n], b[n], autojunk).ratio()`. Host only.
    """
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} sequences and b has {len(b)}: they are compared in pairs")
    compare = host_function("sequence_similarity")
    return compare(_token_arrays("a", a), _token_arrays("b", b), autojunk=autojunk)


def pack_bins(lengths: Sequence[int] | np.ndarray, capacity: int) -> np.ndarray:
    """int64 [N]: the bin of each length, best-fit decreasing, bins numbered as they are opened.

    No bin holds more than `capacity`. The same lengths always give the same bins. Host only.
    ValueError for a length that is negative or above `capacity`.
    """
    values = np.asarray(lengths)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError(f"lengths must be integers [N], got {values.dtype} {list(values.shape)}")
    values = values.astype(np.int64)
    wrong = np.flatnonzero((values < 0) | (values > capacity))
    if wrong.size:
        raise ValueError(
            f"lengths[{wrong[0]}] is {values[wrong[0]]}: it must be between 0 and the capacity "
            f"of a bin, {capacity}"
        )
    return host_function("pack_bins")(values, capacity)


def _stash_or_recompute(mode: str, hidden: Tensor, weight: Tensor) -> str:
    may_need_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if mode == "recompute" or not (hidden.is_cuda and may_need_gradient):
        return "recompute"
    num_bytes = hidden.shape[0] * weight.shape[0] * stash_dtype(hidden.dtype).itemsize
    return "stash" if mode == "stash" or num_bytes <= STASH_BYTES else "recompute"


def _split_temperature(temperature: float | Tensor, num_tokens: int) -> tuple[float, Tensor | None]:
    """A number and, if there is one per token, the tensor that replaces it."""
    if isinstance(temperature, Tensor):
        if temperature.dim() == 0:
            temperature = temperature.expand(num_tokens)
        _check_per_token(num_tokens, temperature=temperature)
        return 1.0, temperature
    _check_temperature(temperature)
    return float(temperature), None


def _check_temperature(temperature: float) -> None:
    if not temperature > 0.0 or math.isinf(temperature):
        raise ValueError(f"temperature is {temperature}: it must be positive and finite")


def _token_arrays(name: str, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    arrays: list[np.ndarray] = []
    for index, sequence in enumerate(sequences):
        try:
            is_list = isinstance(sequence, list)
            tokens = cpu.integer_array(sequence) if is_list else np.asarray(sequence)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"{name}[{index}] must be a sequence of integers: {error}") from None
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
            raise ValueError(
                f"{name}[{index}] must be a sequence of integers, got {tokens.dtype} "
                f"{list(tokens.shape)}"
            )
        arrays.append(tokens.astype(np.int64, copy=False))
    return arrays


def _check_per_token(num_tokens: int, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tuple(tensor.shape) != (num_tokens,):
            raise ValueError(f"{name} has shape {list(tensor.shape)}, expected [{num_tokens}]")


def _check_head(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int | None) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be [T, H] and weight [V, H], got {list(hidden.shape)} and "
            f"{list(weight.shape)}"
        )
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(
            f"hidden and weight must share a floating type, got {hidden.dtype} and {weight.dtype}"
        )
    _check_per_token(hidden.shape[0], targets=targets)
    if vocab_size is not None and vocab_size < 1:
        raise ValueError(f"vocab_size is {vocab_size}: it must be positive")


def _check_policy(inputs: PolicyInputs, terms: PolicyTerms, num_tokens: int) -> None:
    _check_per_token(num_tokens, **inputs._asdict())
    for name, known in (("kl_estimator", KlEstimator), ("importance", Importance)):
        if getattr(terms, name) not in get_args(known):
            raise ValueError(
                f"{name} is {getattr(terms, name)!r}: one of {', '.join(get_args(known))}"
            )
    if terms.kl_coefficient and inputs.ref_logprobs is None:
        raise ValueError("kl_coefficient is not 0: ref_logprobs is needed")
    if not terms.clip_dual > 1.0:
        raise ValueError(f"clip_dual is {terms.clip_dual}: it must be above 1")
    if terms.importance != "none" and inputs.rollout_logprobs is None:
        raise ValueError(f"importance is {terms.importance!r}: rollout_logprobs is needed")
    if not 0.0 <= terms.importance_low <= terms.importance_high:
        raise ValueError(
            f"importance_low is {terms.importance_low} and importance_high "
            f"{terms.importance_high}: 0 <= importance_low <= importance_high"
        )


def _group_name(group: ProcessGroup | None) -> str | None:
    """Name under which a group is registered: a schema can hold it, but not the group."""
    return None if group is None or group.size() == 1 else group.group_name
