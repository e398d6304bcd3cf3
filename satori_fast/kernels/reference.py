# SPDX-License-Identifier: Apache-2.0
"""The definition of every operation, in plain PyTorch and plain Python.

The head operations walk over the tokens in chunks that fit a byte budget, so a [T, V] tensor never
exists (`chunk_bytes`: None takes the budget of the device). Not the public functions: `ops` checks
arguments and `schemas` picks an implementation.
"""

import bisect
import difflib
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from satori_fast.kernels.head import (
    Head,
    HeadGradients,
    chunks,
    compute_dtype,
    gather_statistics,
    keep_softmax,
    kept_logits,
    kept_partition,
    logit_gradients,
    merge_statistics,
    product,
    shard_layout,
    shard_statistics,
)

# Sums over tokens, weighted by `loss_weights`, except: "..._max" are plain maxima, "num_tokens"
# counts the tokens whose weight is not 0, and "num_clamped_ratios" those of them that the clamp to
# MAX_LOG_RATIO changed a ratio of.
POLICY_STATS = (
    "policy_loss",
    "kl",
    "entropy",
    "clip_fraction_low",
    "clip_fraction_high",
    "clip_fraction_dual",
    "ratio_max",
    "approx_kl",
    "rollout_abs_diff",
    "rollout_abs_diff_max",
    "rollout_kl",
    "rollout_clip_fraction",
    "num_tokens",
    "num_clamped_ratios",
)

# Nats. The logarithm of a ratio of two probabilities is clamped to this on either side before it is
# exponentiated, so that no token can make the loss infinite: exp(20) = 4.9e8, squared and summed
# over a batch, is far from the ends of float32, and no ratio that a clip lets through comes near.
MAX_LOG_RATIO = 20.0


KlEstimator = Literal["k1", "k2", "k3"]
Importance = Literal["none", "truncate", "mask"]


class PolicyTerms(NamedTuple):
    """Terms of the policy loss: the one record of them, from a recipe to the kernels.

    `ops.policy_loss` has the equation.

    clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
    clip_dual:           a token of negative advantage A adds at most clip_dual |A|, above 1; inf
                         for no such bound (arXiv 1912.09729).
    kl_coefficient:      nats to loss, of the estimated KL(policy || reference); 0 for no KL.
    entropy_coefficient: factor of the entropy that is subtracted from the loss.
    importance_low, importance_high: the range of `importance`; inf for no upper end.
    kl_estimator:        "k1", "k2" or "k3" (http://joschu.net/blog/kl-approx.html).
    importance:          how r, the trainer's probability over the engine's, weighs a token: "none"
                         is 1, "truncate" clamps r into the range, "mask" is r in it and 0 outside.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_dual: float = math.inf
    kl_coefficient: float = 0.0
    entropy_coefficient: float = 0.0
    importance_low: float = 0.0
    importance_high: float = math.inf
    kl_estimator: KlEstimator = "k3"
    importance: Importance = "none"

    def flat(self) -> tuple[list[float], str, str]:
        """The terms as the schema of an operation can hold them; `unflat` is the way back."""
        *coefficients, kl_estimator, importance = self
        return coefficients, kl_estimator, importance

    @classmethod
    def unflat(
        cls, coefficients: Sequence[float], kl_estimator: str, importance: str
    ) -> "PolicyTerms":
        return cls(*coefficients, kl_estimator=kl_estimator, importance=importance)  # pyright: ignore[reportCallIssue, reportArgumentType]


class PolicyInputs(NamedTuple):
    """Constants of `policy_loss`, each [T]."""

    old_logprobs: Tensor
    advantages: Tensor
    loss_weights: Tensor
    rollout_logprobs: Tensor | None
    ref_logprobs: Tensor | None

    def take(self, rows: Tensor | slice) -> "PolicyInputs":
        rollout, ref = self.rollout_logprobs, self.ref_logprobs
        return PolicyInputs(
            self.old_logprobs[rows],
            self.advantages[rows],
            self.loss_weights[rows],
            None if rollout is None else rollout[rows],
            None if ref is None else ref[rows],
        )


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor,
    vocab_size: int | None,
    vocab_start: int,
    group: ProcessGroup | None,
    stash: Tensor | None = None,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """logprob [T], entropy [T] and partition [T, 2] of softmax(x W^T / temperature).

    Logits are float32 (float64 for float64 inputs) from the matrix product on. One collective.
    A `stash` is filled by `head.keep_softmax`, and the partition is that of what it keeps.
    """
    head = Head.of(weight, vocab_start, vocab_size, temperature)
    statistics = hidden.new_empty((len(hidden), 4), dtype=compute_dtype(hidden))
    for rows in chunks(len(hidden), len(head.weight), hidden, chunk_bytes):
        logits = head.logits(hidden, rows)
        statistics[rows] = shard_statistics(logits, targets[rows] - head.start)
        if stash is not None:
            keep_softmax(logits, statistics[rows], stash[rows])
    logprob, entropy, partition = merge_statistics(gather_statistics(statistics, group))
    if stash is not None:
        partition = kept_partition(partition, statistics)
    return logprob, entropy, partition


def linear_logprob_backward(
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    entropy: Tensor,
    partition: Tensor,
    *,
    temperature: float | Tensor,
    vocab_size: int | None,
    vocab_start: int,
    group: ProcessGroup | None,
    need_hidden: bool,
    need_weight: bool,
    logprob: Tensor | None = None,
    stash: Tensor | None = None,
    chunk_bytes: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `hidden` (summed over the group) and of this rank's `weight`.

    The logits are made again, chunk by chunk: four matrix products in all. Three, with the `stash`
    of the way forward and its `logprob`. Tokens whose incoming gradients are 0 are left out.
    """
    zero = torch.zeros_like(entropy)
    grad_logprob = zero if grad_logprob is None else grad_logprob
    grad_entropy = zero if grad_entropy is None else grad_entropy
    live = ((grad_logprob != 0) | (grad_entropy != 0)).nonzero().squeeze(1)
    head = Head.of(weight, vocab_start, vocab_size, temperature)
    gradients = HeadGradients(hidden, weight, need_hidden=need_hidden, need_weight=need_weight)
    for chunk in chunks(len(live), len(head.weight), hidden, chunk_bytes):
        rows = live[chunk]
        local_targets = targets[rows] - head.start
        if stash is None or logprob is None:
            logits = head.logits(hidden, rows)
        else:
            kept = (stash[rows], len(head.weight), local_targets, logprob[rows])
            logits = kept_logits(*kept, partition[rows])
        d = logit_gradients(
            logits,
            local_targets,
            entropy[rows],
            partition[rows],
            grad_logprob[rows],
            grad_entropy[rows],
        )
        gradients.add(d, hidden, head, rows)
    return gradients.finish(group)


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    inputs: PolicyInputs,
    terms: PolicyTerms,
    *,
    temperature: float | Tensor,
    vocab_size: int | None,
    group: ProcessGroup | None,
    need_hidden: bool,
    need_weight: bool,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """`policy_loss` on the log-probabilities of the head: loss, stats, and the gradients of
    `hidden` (summed over the group) and `weight`.

    A chunk of logits becomes its own gradient while it is there: three matrix products, where the
    way back through `linear_logprob` takes four. Tokens of weight 0 are left out of all of them, so
    their targets may be anything. The shards of a group lie in rank order.
    """
    live = (inputs.loss_weights != 0).nonzero().squeeze(1)
    start, largest_shard = shard_layout(weight, group)
    head = Head.of(weight, start, vocab_size, temperature)
    gradients = HeadGradients(hidden, weight, need_hidden=need_hidden, need_weight=need_weight)
    loss = hidden.new_zeros((), dtype=compute_dtype(hidden))
    stats = hidden.new_zeros(len(POLICY_STATS), dtype=torch.float32)
    # Each chunk has a collective of its own, so every rank must cut the same chunks.
    for chunk in chunks(len(live), largest_shard, hidden, chunk_bytes):
        rows = live[chunk]
        logits = head.logits(hidden, rows)
        local_targets = targets[rows] - head.start
        shards = gather_statistics(shard_statistics(logits, local_targets), group)
        logprob, entropy, partition = merge_statistics(shards)
        chunk_loss, chunk_stats, grad_logprob, grad_entropy = policy_loss(
            logprob, entropy, inputs.take(rows), terms
        )
        loss = loss + chunk_loss
        stats = combine_stats(stats, chunk_stats)
        if need_hidden or need_weight:
            d = logit_gradients(
                logits, local_targets, entropy, partition, grad_logprob, grad_entropy
            )
            gradients.add(d, hidden, head, rows)
    return loss, stats, *gradients.finish(group)


def policy_loss(
    logprobs: Tensor, entropies: Tensor, inputs: PolicyInputs, terms: PolicyTerms
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss (a sum), stats float32 [len(POLICY_STATS)], dLoss/dlogprob [T] and dLoss/dH [T].

    The loss, u, floor and the estimators k1, k2, k3 of "kl" are those of `ops.policy_loss`.

    stats: "clip_fraction_low", "_high" and "_dual" are tokens that a clip leaves without a
    gradient; "approx_kl" is k3 of old against new. Trainer against engine: "rollout_abs_diff" is
    |old_logprob - rollout_logprob|, "rollout_kl" k3 of engine against trainer,
    "rollout_clip_fraction" tokens whose u was truncated or masked. "num_clamped_ratios" counts the
    tokens with a log-ratio beyond MAX_LOG_RATIO: to the old policy, trainer to engine, or, where
    the estimator is k3, to the reference. A token of weight 0 adds nothing to anything, whatever
    its other fields hold.
    """
    dtype = compute_dtype(logprobs)
    live = inputs.loss_weights != 0

    def clean(tensor: Tensor) -> Tensor:
        return torch.where(live, tensor, 0.0).to(dtype)

    logprobs, entropies, old, advantages, weights = map(clean, (logprobs, entropies, *inputs[:3]))
    rollout = old if inputs.rollout_logprobs is None else clean(inputs.rollout_logprobs)
    importance, is_reweighted = _importance(old - rollout, terms)
    log_ratio, gap = logprobs - old, old - rollout
    ratio = _exp(log_ratio)
    surrogate, clips = _surrogate(ratio, advantages, terms)
    # A masked token has no gradient even where its ratio is NaN.
    is_flat = clips.any(dim=0) | _is_clamped(log_ratio) | (importance == 0)
    exponents = [log_ratio, gap]
    gradient = torch.where(is_flat, 0.0, -importance * ratio * advantages)
    kl = torch.zeros_like(logprobs)
    if inputs.ref_logprobs is not None:
        ref_log_ratio = clean(inputs.ref_logprobs) - logprobs
        kl, kl_gradient = _kl_estimate(ref_log_ratio, terms.kl_estimator)
        exponents += [ref_log_ratio] if terms.kl_estimator == "k3" else []
        if terms.kl_coefficient:
            gradient = gradient + terms.kl_coefficient * kl_gradient
    sums = {
        # A masked token adds 0 even where its ratio is NaN.
        "policy_loss": torch.where(importance == 0, 0.0, -importance * surrogate),
        "kl": kl,
        "entropy": entropies,
        "clip_fraction_low": clips[0],
        "clip_fraction_high": clips[1],
        "clip_fraction_dual": clips[2],
        "approx_kl": _k3(log_ratio),
        "rollout_abs_diff": gap.abs(),
        "rollout_kl": _k3(gap),
        "rollout_clip_fraction": is_reweighted & live,
    }
    gradient = torch.where(live, gradient, 0.0)
    stats = {name: (weights * value).sum() for name, value in sums.items()}
    loss = _total_loss(stats, terms)
    stats["ratio_max"] = _maximum(torch.where(live, ratio, 0.0))
    stats["rollout_abs_diff_max"] = _maximum(sums["rollout_abs_diff"])
    stats["num_tokens"] = live.sum()
    stats["num_clamped_ratios"] = _is_clamped(torch.stack(exponents)).any(dim=0).sum()
    stacked = torch.stack([stats[name].float() for name in POLICY_STATS])
    return loss, stacked, weights * gradient, -terms.entropy_coefficient * weights


def _surrogate(ratio: Tensor, advantages: Tensor, terms: PolicyTerms) -> tuple[Tensor, Tensor]:
    """The clipped objective of each token, and which of the three clips (low, high, dual) leave it
    without a gradient, bool [3, T]."""
    clipped_ratio = ratio.clamp(1.0 - terms.clip_low, 1.0 + terms.clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped_ratio * advantages)
    clipped_low = (advantages < 0) & (ratio < 1.0 - terms.clip_low)
    clipped_high = (advantages > 0) & (ratio > 1.0 + terms.clip_high)
    clipped_dual = (advantages < 0) & (ratio > terms.clip_dual)
    surrogate = torch.where(clipped_dual, terms.clip_dual * advantages, surrogate)
    return surrogate, torch.stack([clipped_low, clipped_high, clipped_dual])


def _importance(log_ratio: Tensor, terms: PolicyTerms) -> tuple[Tensor, Tensor]:
    """u of `policy_loss` and where it is not the ratio itself, the trainer's probability over the
    engine's: "none" is 1; "truncate" clamps it to [importance_low, importance_high]; "mask" is 0
    outside that range."""
    if terms.importance == "none":
        return torch.ones_like(log_ratio), torch.zeros_like(log_ratio, dtype=torch.bool)
    ratio = _exp(log_ratio)
    outside = (ratio < terms.importance_low) | (ratio > terms.importance_high)
    if terms.importance == "mask":
        return torch.where(outside, 0.0, ratio), outside
    return ratio.clamp(terms.importance_low, terms.importance_high), outside


def _total_loss(stats: dict[str, Tensor], terms: PolicyTerms) -> Tensor:
    # A term that is off is left out, not multiplied by 0: its value may be infinite.
    loss = stats["policy_loss"]
    if terms.kl_coefficient:
        loss = loss + terms.kl_coefficient * stats["kl"]
    if terms.entropy_coefficient:
        loss = loss - terms.entropy_coefficient * stats["entropy"]
    return loss


def _kl_estimate(log_ratio: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """KL(policy || reference) per token and its derivative in logprob; d of `policy_loss`."""
    if estimator == "k1":
        return -log_ratio, torch.ones_like(log_ratio)
    if estimator == "k2":
        return log_ratio.square() / 2, -log_ratio
    slope = torch.where(_is_clamped(log_ratio), 0.0, -torch.expm1(_clamped(log_ratio)))
    return _k3(log_ratio), slope


def _k3(log_ratio: Tensor) -> Tensor:
    log_ratio = _clamped(log_ratio)
    return torch.expm1(log_ratio) - log_ratio


def _exp(log_ratio: Tensor) -> Tensor:
    return _clamped(log_ratio).exp()


def _clamped(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _is_clamped(log_ratio: Tensor) -> Tensor:
    """Mask of log-ratios that the clamp changes, and its gradient is 0; not where it is NaN."""
    return log_ratio.abs() > MAX_LOG_RATIO


def _maximum(x: Tensor) -> Tensor:
    return x.amax() if x.numel() else x.new_zeros(())


def combine_stats(a: Tensor, b: Tensor) -> Tensor:
    is_maximum = torch.tensor([name.endswith("_max") for name in POLICY_STATS], device=a.device)
    return torch.where(is_maximum, torch.maximum(a, b), a + b)


def segment_scan(x: Tensor, decay: float, cu_seqlens: Tensor, *, reverse: bool) -> Tensor:
    """y_t = x_t + decay y_{t+1} inside each sequence (`reverse`), or x_t + decay y_{t-1}. [T].

    All sequences advance together, one token at a time, so each sum is made in the order of the
    formula. Half precision is summed in float32. On the host, ValueError if cu_seqlens does not
    rise from 0 to T.
    """
    boundaries = cu_seqlens.long()
    # Looking at the values of a device tensor would stop the device.
    if not boundaries.is_cuda:
        is_ordered = bool((boundaries.diff() >= 0).all())
        if not (is_ordered and boundaries[0] == 0 and boundaries[-1] == x.shape[0]):
            raise ValueError(f"cu_seqlens must rise from 0 to {x.shape[0]}, the length of x")
    lengths, order = boundaries.diff().sort(descending=True, stable=True)
    first = (boundaries[1:] - 1 if reverse else boundaries[:-1])[order]
    ascending = lengths.flip(0).tolist()
    values = x.to(compute_dtype(x))
    y = torch.empty_like(values)
    carry = values.new_zeros(len(ascending))
    for step in range(ascending[-1] if ascending else 0):
        # Sequences that are longer than `step`: the first of `order`.
        num_alive = len(ascending) - bisect.bisect_right(ascending, step)
        index = first[:num_alive] + (-step if reverse else step)
        carry = values[index] + decay * carry[:num_alive]
        y[index] = carry
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
    scan: Callable[..., Tensor] = segment_scan,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, each [T], 0 and V where masked; see `ops.gae`. scan: `segment_scan`
    of the device."""
    values = torch.where(mask, values, 0.0)
    # The last entry of a sequence is masked, so what roll brings there from the next one is never
    # used, and it reads as V = 0 for the entry before it.
    if segment_ids is not None:
        rewards = torch.where(segment_ids != segment_ids.roll(-1), rewards, 0.0)
    deltas = torch.where(mask, rewards + gamma * values.roll(-1) - values, 0.0)
    advantages = torch.where(mask, scan(deltas, decay, cu_seqlens, reverse=True), 0.0)
    return advantages, advantages + values


def sequence_similarity(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], *, autojunk: bool
) -> np.ndarray:
    """float64 [N]: 2 M / (len(a) + len(b)) of each pair, M the total size of the blocks that
    `difflib.SequenceMatcher` (Ratcliff and Obershelp) matches; 1 for two empty sequences."""
    return np.array(
        [
            difflib.SequenceMatcher(None, x.tolist(), y.tolist(), autojunk).ratio()
            for x, y in zip(a, b, strict=True)
        ],
        dtype=np.float64,
    )


def pack_bins(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """int64 [N]: best-fit-decreasing bin of each length. Longest first, equal ones in their order;
    each goes to the fullest bin that has room, of equally full ones to the oldest."""
    bins = np.empty(len(lengths), dtype=np.int64)
    open_bins: list[tuple[int, int]] = []  # (room left, bin), ascending
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        position = bisect.bisect_left(open_bins, (length, -1))
        if position < len(open_bins):
            room, bins[item] = open_bins.pop(position)
        else:
            room, bins[item] = capacity, len(open_bins)
        bisect.insort(open_bins, (room - length, int(bins[item])))
    return bins


def linear_logits(hidden: Tensor, weight: Tensor, vocab_size: int | None) -> Tensor:
    """Logits [T, V or vocab_size] of hidden [T, H] and weight [V, H]."""
    head = Head.of(weight, 0, vocab_size, 1.0)
    return product(hidden, head.weight.T)


def sample_tokens(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B] and log-probabilities [B] of softmax(logits / temperature) [B, V]."""
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    # float64: over 150,000 words a running sum in float32 loses the tail.
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    drawn = uniform[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, drawn, right=True).clamp_(max=logits.shape[1] - 1)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]
