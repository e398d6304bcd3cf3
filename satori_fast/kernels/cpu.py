# SPDX-License-Identifier: Apache-2.0
"""Calls into the compiled module `satori_fast._C` (sources: csrc/). Host memory only.

Arguments are checked in `ops`; this file turns them into flat contiguous arrays. `OPERATIONS` names
what the module offers: it is empty when the package was installed without a C++ compiler.
"""

import importlib
import warnings
from array import array
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from satori_fast.kernels.head import compute_dtype
from satori_fast.kernels.reference import (
    POLICY_STATS,
    Importance,
    KlEstimator,
    PolicyInputs,
    PolicyTerms,
)

_C: Any = None
try:
    _C = importlib.import_module("satori_fast._C")
except ImportError as error:
    warnings.warn(
        f"satori_fast runs without its C++ kernels, on slower reference operations ({error}). "
        "Install a C++17 compiler, then `pip install` satori-fast again.",
        RuntimeWarning,
        stacklevel=2,
    )

OPERATIONS = frozenset(
    ("gae", "pack_bins", "policy_loss", "sample_tokens", "segment_scan", "sequence_similarity")
    if _C
    else ()
)
# Types that an operation computes in, where these are not all.
DTYPES = {"sample_tokens": (torch.float32,)}
# The enums in csrc/operations.h count them in this order.
KL_ESTIMATORS = get_args(KlEstimator)
IMPORTANCE = get_args(Importance)


def policy_loss(
    logprobs: Tensor, entropies: Tensor, inputs: PolicyInputs, terms: PolicyTerms
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference.policy_loss`, compiled; the same bits for any number of threads."""
    dtype = compute_dtype(logprobs)
    tensors = [
        None if x is None else x.to(dtype).contiguous() for x in (logprobs, entropies, *inputs)
    ]
    grad_logprobs = torch.empty(logprobs.shape, dtype=dtype)
    grad_entropies = torch.empty(logprobs.shape, dtype=dtype)
    loss = torch.empty((), dtype=dtype)
    stats = torch.empty(len(POLICY_STATS))
    tensors += (grad_logprobs, grad_entropies, loss, stats)
    run = _C.policy_loss_float64 if dtype == torch.float64 else _C.policy_loss_float32
    coefficients, kl_estimator, importance = terms.flat()
    run(
        [0 if x is None else x.data_ptr() for x in tensors],
        len(logprobs),
        coefficients,
        KL_ESTIMATORS.index(kl_estimator),
        IMPORTANCE.index(importance),
        torch.get_num_threads(),
    )
    return loss, stats, grad_logprobs, grad_entropies


def segment_scan(x: Tensor, decay: float, cu_seqlens: Tensor, *, reverse: bool) -> Tensor:
    """`reference.segment_scan`, compiled; the same bits, for any number of threads.

    ValueError if cu_seqlens does not rise from 0 to the length of x.
    """
    # bfloat16 and float16 are summed in float32, as in the reference.
    dtype = compute_dtype(x)
    values, boundaries = x.to(dtype).contiguous(), cu_seqlens.long().contiguous()
    y = torch.empty_like(values)
    scan = _C.segment_scan_float64 if dtype == torch.float64 else _C.segment_scan_float32
    scan(
        values.data_ptr(),
        len(x),
        decay,
        boundaries.data_ptr(),
        len(boundaries) - 1,
        reverse,
        torch.get_num_threads(),
        y.data_ptr(),
    )
    return y.to(x.dtype)


def gae(
    values: Tensor,
    rewards: Tensor,
    mask: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor,
    *,
    gamma: float,
    decay: float,
) -> tuple[Tensor, Tensor]:
    """`reference.gae`, compiled; the same bits, for any number of threads."""
    values, rewards = values.contiguous(), rewards.to(values.dtype).contiguous()
    mask, boundaries = mask.contiguous(), cu_seqlens.long().contiguous()
    segment_ids = None if segment_ids is None else segment_ids.contiguous()
    advantages, returns = torch.empty_like(values), torch.empty_like(values)
    tensors = (values, rewards, mask, segment_ids, advantages, returns)
    run = _C.gae_float64 if values.dtype == torch.float64 else _C.gae_float32
    run(
        [0 if x is None else x.data_ptr() for x in tensors],
        len(values),
        gamma,
        decay,
        boundaries.data_ptr(),
        len(boundaries) - 1,
        torch.get_num_threads(),
    )
    return advantages, returns


def sample_tokens(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`reference.sample_tokens`, compiled for float32; the bits of a row are its own.

    Probabilities below e^-64 of the largest count as 0.
    """
    logits, uniform = logits.contiguous(), uniform.contiguous()
    tokens = torch.empty(len(logits), dtype=torch.int64)
    logprobs = torch.empty(len(logits))
    _C.sample_tokens(
        logits.data_ptr(),
        uniform.data_ptr(),
        tokens.data_ptr(),
        logprobs.data_ptr(),
        *logits.shape,
        1.0 / temperature,
        torch.get_num_threads(),
    )
    return tokens, logprobs


def sequence_similarity(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], *, autojunk: bool
) -> np.ndarray:
    """`reference.sequence_similarity`, compiled; the same bits, pairs spread over threads."""
    ratios = np.empty(len(a))
    num_threads = torch.get_num_threads()
    _C.sequence_similarity(*_flat(a), *_flat(b), autojunk, num_threads, ratios)
    return ratios


def integer_array(values: list[int]) -> np.ndarray:
    """int64 [N] of a list, also without the compiled module.

    TypeError or OverflowError for what is not an integer of 64 bits.
    """
    if _C is None:
        return np.array(array("q", values), dtype=np.int64)
    integers = np.empty(len(values), dtype=np.int64)
    _C.read_integers(values, integers)
    return integers


def pack_bins(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """`reference.pack_bins`, compiled; the same bins."""
    bins = np.empty(len(lengths), dtype=np.int64)
    _C.pack_bins(np.ascontiguousarray(lengths), capacity, bins)
    return bins


def _flat(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All tokens end to end, and where each sequence starts (one more entry for the end)."""
    offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
    nothing = np.empty(0, dtype=np.int64)
    return np.concatenate([nothing, *sequences], dtype=np.int64), offsets
