# SPDX-License-Identifier: Apache-2.0
"""Trajectories and their credit become packed microbatches: the crossing from host to device types.

Everything that depends on a whole minibatch (its token count, loss weights) is decided here, once,
from the full list of trajectories that every data-parallel rank holds; each rank then builds only
its own microbatches. So neither packing order nor the number of ranks can change a gradient.

Not for credit (`algorithms.credit`), nor for anything that needs a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch

from satori_fast.data.shared_prefixes import lexicographic, shared_lengths, shared_rows
from satori_fast.kernels import pack_bins
from satori_fast.types import (
    Credit,
    PackedBatch,
    PreferencePair,
    SharedRows,
    Trajectory,
    Weighting,
)

Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]

# The search for even microbatches stops this close to a perfectly even split.
_BALANCE_TOLERANCE = 0.02
# Of the rows of full microbatches, what those of neighbours may have.
_WORTH_MORE_BINS = 0.9


@dataclass(frozen=True, slots=True)
class PackingSpec:
    """Sizes by which `pack` cuts a rollout into optimizer steps and microbatches.

    max_tokens_per_microbatch: tokens, prompt and padding included; bounds activation memory.
    num_minibatches:     optimizer steps; fewer when there are fewer trajectories.
    data_parallel_size, data_parallel_rank: which share of every minibatch to build.
    pad_to_multiple:     the length of a microbatch is a multiple of this (sequence parallelism).
    max_seqlen:          context limit of the model in tokens, None for no limit.
    seed:                of the shuffle before the split into minibatches; use a new one every step.
    fixed_length:        tokens, the constant divisor of weighting "fixed" (Dr.GRPO).
    share_prefixes:      lay sequences that begin alike side by side, and compute that once.
    """

    max_tokens_per_microbatch: int
    num_minibatches: int
    data_parallel_size: int = 1
    data_parallel_rank: int = 0
    pad_to_multiple: int = 1
    max_seqlen: int | None = None
    seed: int = 0
    fixed_length: int | None = None
    share_prefixes: bool = False

    def __post_init__(self) -> None:
        for name in ("num_minibatches", "data_parallel_size", "pad_to_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"packing.{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.data_parallel_rank < self.data_parallel_size:
            raise ValueError(
                f"packing.data_parallel_rank is {self.data_parallel_rank}: it must be below "
                f"data_parallel_size, {self.data_parallel_size}"
            )
        if self.max_tokens_per_microbatch < self.pad_to_multiple:
            raise ValueError(
                f"packing.max_tokens_per_microbatch is {self.max_tokens_per_microbatch}: it must "
                f"be at least pad_to_multiple, {self.pad_to_multiple}"
            )
        if self.fixed_length is not None and self.fixed_length < 1:
            raise ValueError(f"packing.fixed_length is {self.fixed_length}: it must be at least 1")

    @property
    def capacity(self) -> int:
        """Most trajectory tokens of a microbatch: what is left once its tail can be padded."""
        return self.max_tokens_per_microbatch // self.pad_to_multiple * self.pad_to_multiple


def pack(
    trajectories: Sequence[Trajectory],
    credits: Sequence[Credit] | None,
    packing: PackingSpec,
    weighting: Weighting,
    *,
    trained: Sequence[Sequence[bool]] | None = None,
) -> list[PackedBatch]:
    """The microbatches of this data-parallel rank, in the order of their minibatches.

    credits: one per trajectory; None where nothing is compared (imitation, scoring): credit is 0.
    trained: segments of each that have a loss (`data.masks`), for weighting "token"; None: all. The
             others are read like a prompt: masked, and in no denominator.

    Deterministic in its arguments. Every rank gets the same number of microbatches in a minibatch;
    where there is not enough to share, a rank gets one that holds padding only. No trajectories, no
    batches: an empty list.

    Loss weights ``w`` make ``sum_t w_t l_t / num_minibatch_tokens`` the mean that the paper means:
    "token":    w = 1, the mean over loss tokens (DAPO);
    "sequence": w = num_minibatch_tokens / (num_sequences R_i), the mean over responses of their own
                token means (GRPO);
    "segment":  w = num_minibatch_tokens / (num_sequences S_i |segment|), the mean over responses of
                the means over their S_i segments of the segments' token means;
    "fixed":    w = num_minibatch_tokens / (num_sequences fixed_length), as Dr.GRPO divides.

    Raises ValueError for a trajectory that fits neither a microbatch nor the context, and for
    weighting "fixed" without `packing.fixed_length`.
    """
    assert credits is None or len(trajectories) == len(credits)
    if not trajectories:
        return []
    lengths = np.array([len(t.tokens) for t in trajectories], dtype=np.int64)
    response_lengths = np.array([t.num_response_tokens for t in trajectories], dtype=np.int64)
    _check_context(trajectories, lengths, packing)
    _check_capacity(trajectories, lengths, packing, what="trajectory")
    batches: list[PackedBatch] = []
    for minibatch, members in enumerate(_split_minibatches(lengths, packing)):
        num_tokens = _num_loss_tokens(trajectories, trained, members)
        together = [trajectories[int(i)] for i in members]
        weights = _segment_weights(
            together, response_lengths[members], packing.fixed_length, weighting
        )
        for rows in _own_microbatches(lengths[members], packing, [t.tokens for t in together]):
            source = members[rows]
            batch = _build_batch(
                [together[int(i)] for i in rows],
                None if credits is None else [credits[int(i)] for i in source],
                source=source,
                weights=[weights[int(i)] for i in rows],
                packing=packing,
                minibatch=minibatch,
                num_minibatch_tokens=num_tokens,
            )
            if trained is not None:
                batch = _masked(batch, [trained[int(i)] for i in source])
            batches.append(batch)
    return batches


def pack_pairs(pairs: Sequence[PreferencePair], packing: PackingSpec) -> list[PackedBatch]:
    """Pack pairs, as `pack` does trajectories: both solutions lie in one microbatch.

    Sequences come as chosen, rejected, chosen, rejected, ...; the `source` of pair i is 2i and
    2i + 1. `num_minibatch_tokens` is the number of pairs: the loss has a term for each of them.
    """
    if not pairs:
        return []
    solutions = [solution for pair in pairs for solution in (pair.chosen, pair.rejected)]
    lengths = np.array([pair.num_tokens for pair in pairs], dtype=np.int64)
    _check_context(solutions, np.array([len(s.tokens) for s in solutions]), packing)
    _check_capacity([pair.chosen for pair in pairs], lengths, packing, what="pair of solutions")
    batches: list[PackedBatch] = []
    for minibatch, members in enumerate(_split_minibatches(lengths, packing)):
        for rows in _own_microbatches(lengths[members], packing):
            source = (2 * members[rows, None] + np.arange(2)).ravel()
            batches.append(
                _build_batch(
                    [solutions[int(i)] for i in source],
                    None,
                    source=source,
                    weights=[np.ones(len(solutions[int(i)].segments)) for i in source],
                    packing=packing,
                    minibatch=minibatch,
                    num_minibatch_tokens=len(members),
                )
            )
    return batches


def _check_context(
    trajectories: Sequence[Trajectory], lengths: Indices, packing: PackingSpec
) -> None:
    longest = int(lengths.argmax())
    length, problem_id = int(lengths[longest]), trajectories[longest].problem.problem_id
    if packing.max_seqlen is not None and length > packing.max_seqlen:
        raise ValueError(
            f"problem {problem_id!r} has a trajectory of {length} tokens, above the context limit "
            f"packing.max_seqlen = {packing.max_seqlen}: shorten the prompt or the response limit"
        )


def _check_capacity(
    trajectories: Sequence[Trajectory], lengths: Indices, packing: PackingSpec, *, what: str
) -> None:
    """lengths: of the units that may not be split, each of which `trajectories` has one of."""
    longest = int(lengths.argmax())
    if lengths[longest] > packing.capacity:
        raise ValueError(
            f"problem {trajectories[longest].problem.problem_id!r} has a {what} of "
            f"{lengths[longest]} tokens, more than packing.max_tokens_per_microbatch = "
            f"{packing.max_tokens_per_microbatch} can hold (padded to a multiple of "
            f"{packing.pad_to_multiple}): raise it or shorten responses"
        )


def _split_minibatches(lengths: Indices, packing: PackingSpec) -> list[Indices]:
    """Shuffled indices, cut where the running token count passes the even split."""
    num_minibatches = min(packing.num_minibatches, len(lengths))
    order = np.random.default_rng(packing.seed).permutation(len(lengths))
    ends = np.cumsum(lengths[order])
    # A trajectory goes to the side of the cut that holds its middle.
    middles = ends - lengths[order] / 2
    step = np.arange(1, num_minibatches)
    even = float(ends[-1]) / num_minibatches * step
    cuts = np.searchsorted(middles, even)
    # At least one trajectory on each side of every cut: cut k stays in [k, n - (M - k)].
    spare: Indices = np.maximum.accumulate(np.maximum(cuts - step, 0))
    return np.split(order, step + np.minimum(spare, len(lengths) - num_minibatches))


def _segment_weights(
    trajectories: Sequence[Trajectory],
    response_lengths: Indices,
    fixed_length: int | None,
    weighting: Weighting,
) -> list[Weights]:
    """The loss weight of the tokens of each segment, [S] for each trajectory of one minibatch."""
    num_segments = [len(t.segments) for t in trajectories]
    if weighting == "token":
        return [np.ones(num) for num in num_segments]
    num_tokens_per_sequence = response_lengths.sum() / len(response_lengths)
    if weighting == "segment":
        return [
            num_tokens_per_sequence / (len(t.segments) * _segment_lengths(t)) for t in trajectories
        ]
    if weighting == "sequence":
        divisors = response_lengths
    elif weighting != "fixed":
        known = ", ".join(get_args(Weighting))
        raise ValueError(f"weighting {weighting!r}: it must be one of {known}")
    elif fixed_length is None:
        raise ValueError('weighting "fixed" needs packing.fixed_length, a number of tokens')
    else:
        divisors = np.full(len(response_lengths), fixed_length)
    per_sequence = num_tokens_per_sequence / divisors
    return [np.full(num, w) for num, w in zip(num_segments, per_sequence, strict=True)]


def _num_loss_tokens(
    trajectories: Sequence[Trajectory], trained: Sequence[Sequence[bool]] | None, members: Indices
) -> int:
    """Tokens with a loss in one minibatch, over all of its microbatches and ranks."""
    if trained is None:
        return sum(trajectories[int(i)].num_response_tokens for i in members)
    return sum(
        segment.stop - segment.start
        for i in members
        for segment, is_trained in zip(trajectories[int(i)].segments, trained[int(i)], strict=True)
        if is_trained
    )


def _masked(batch: PackedBatch, trained: Sequence[Sequence[bool]]) -> PackedBatch:
    """The batch with a loss on the trained segments of its trajectories alone."""
    of_segments = torch.tensor([*(is_trained for mask in trained for is_trained in mask), False])
    # The number of no segment, -1, finds the last of them.
    kept = of_segments[batch.segment_ids.long()]
    return replace(
        batch,
        loss_mask=kept,
        segment_ids=torch.where(kept, batch.segment_ids, -1),
        loss_weights=torch.where(kept, batch.loss_weights, 0.0),
        credit=torch.where(kept, batch.credit, 0.0),
        rollout_logprobs=torch.where(kept, batch.rollout_logprobs, 0.0),
    )


def _segment_lengths(trajectory: Trajectory) -> Indices:
    return np.array([s.stop - s.start for s in trajectory.segments], dtype=np.int64)


def _own_microbatches(
    lengths: Indices, packing: PackingSpec, tokens: Sequence[np.ndarray] | None = None
) -> list[Indices]:
    """The microbatches of one minibatch that belong to this rank: positions in `lengths`.

    tokens: of each sequence; None: no sequence may go to the microbatch that suits its beginning.
    """
    num_ranks = packing.data_parallel_size
    bins = _even_bins(lengths, packing, pack_bins)
    loads = [float(lengths[members].sum()) for members in bins]
    if tokens is not None and packing.share_prefixes:
        bins, loads = _bins_that_share(lengths, packing, tokens, bins)
    per_rank = -(-len(bins) // num_ranks)
    nothing = np.zeros(0, dtype=np.int64)
    bins += [nothing] * (per_rank * num_ranks - len(bins))
    loads += [0.0] * (len(bins) - len(loads))
    # Heaviest first to the rank with the fewest tokens among those that still take one: ranks wait
    # for each other only at the end of a minibatch, so its total is what must be even.
    rank_loads = np.zeros(num_ranks)
    owned: list[list[int]] = [[] for _ in range(num_ranks)]
    for heaviest in np.argsort(-np.array(loads), kind="stable"):
        open_ranks = [r for r in range(num_ranks) if len(owned[r]) < per_rank]
        rank = min(open_ranks, key=lambda r: (rank_loads[r], r))
        owned[rank].append(int(heaviest))
        rank_loads[rank] += loads[heaviest]
    return [bins[i] for i in owned[packing.data_parallel_rank]]


def _bins_that_share(
    lengths: Indices, packing: PackingSpec, tokens: Sequence[np.ndarray], bins: list[Indices]
) -> tuple[list[Indices], list[float]]:
    """Bins whose sequences lie in lexicographic order, and the rows of each.

    Of `bins`, which are full, and of bins that hold neighbours in that order, those with fewer rows
    in all; neighbours have to save a tenth, as they may need more bins.
    """
    order = lexicographic(tokens)
    ranks = np.argsort(order)
    full = [members[np.argsort(ranks[members])] for members in bins]
    in_order = _even_bins(lengths[order], packing, _bins_in_order)
    alike = [order[places] for places in in_order]

    def rows(bins: list[Indices]) -> list[float]:
        shared = [shared_lengths([tokens[int(i)] for i in members]) for members in bins]
        return [float(lengths[m].sum() - s.sum()) for m, s in zip(bins, shared, strict=True)]

    of_full, of_alike = rows(full), rows(alike)
    if sum(of_alike) < _WORTH_MORE_BINS * sum(of_full):
        return alike, of_alike
    return full, of_full


def _bins_in_order(lengths: Indices, capacity: int) -> Indices:
    """The bin of each sequence where all stay in their order (next fit)."""
    bins, room, current = np.empty_like(lengths), capacity, 0
    for place, length in enumerate(lengths.tolist()):
        if length > room:
            room, current = capacity, current + 1
        bins[place], room = current, room - length
    return bins


def _even_bins(
    lengths: Indices, packing: PackingSpec, fit: Callable[[Indices, int], Indices]
) -> list[Indices]:
    """The sequences of each bin: as many bins of even load as `fit` needs, equally many for each
    rank; bisect the capacity (Coffman's MULTIFIT).

    Best fit fills bins to the brim and leaves a small rest, which would be one rank's whole share.
    """
    bins = fit(lengths, packing.capacity)
    num_ranks = packing.data_parallel_size
    num_bins = -(-(int(bins.max()) + 1) // num_ranks) * num_ranks
    ideal = max(int(lengths.max()), -(-int(lengths.sum()) // num_bins))
    low, high = ideal, int(np.bincount(bins, weights=lengths).max())
    candidate = low
    while high > ideal * (1 + _BALANCE_TOLERANCE) and low < high:
        trial = fit(lengths, candidate)
        if trial.max() < num_bins:
            bins, high = trial, candidate
        else:
            low = candidate + 1
        candidate = (low + high) // 2
    return [np.flatnonzero(bins == i) for i in range(num_bins)]


def _build_batch(
    trajectories: Sequence[Trajectory],
    credits: Sequence[Credit] | None,
    *,
    source: Indices,
    weights: Sequence[Weights],
    packing: PackingSpec,
    minibatch: int,
    num_minibatch_tokens: int,
) -> PackedBatch:
    """Lay sequences end to end, label-aligned as `PackedBatch` documents."""
    lengths = np.array([len(t.tokens) for t in trajectories], dtype=np.int64)
    prompts = np.array([t.prompt_len for t in trajectories], dtype=np.int64)
    num_real = int(lengths.sum())
    # A microbatch without trajectories still needs a token: every rank must run its collectives.
    padding = -num_real % packing.pad_to_multiple if num_real else packing.pad_to_multiple
    if padding:  # all prompt, hence masked
        lengths, prompts = np.append(lengths, padding), np.append(prompts, padding)
        source = np.append(source, -1)
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    tokens = np.zeros(total, dtype=np.int64)
    if trajectories:
        np.concatenate([t.tokens for t in trajectories], out=tokens[:num_real])
    positions = np.arange(total) - np.repeat(ends - lengths, lengths)
    targets = np.append(tokens[1:], 0)
    targets[ends - 1] = 0
    # Entry p - 1 predicts the first response token, entry L - 2 the last one.
    loss_mask = (positions >= np.repeat(prompts - 1, lengths)) & (
        positions < np.repeat(lengths - 1, lengths)
    )

    segment_ids = np.full(total, -1, dtype=np.int32)
    credit, loss_weights, rollout_logprobs = np.zeros((3, total), dtype=np.float32)
    if trajectories:
        segment_lengths = np.concatenate([_segment_lengths(t) for t in trajectories])
        # Masked entries in order are response tokens in order, so no index is needed.
        segment_ids[loss_mask] = np.repeat(np.arange(len(segment_lengths)), segment_lengths)
        loss_weights[loss_mask] = np.repeat(np.concatenate(weights), segment_lengths)
        if credits is not None:
            segment_credit = np.concatenate([c.values - c.baselines for c in credits])
            credit[loss_mask] = np.repeat(segment_credit, segment_lengths)
        rollout_logprobs[loss_mask] = np.concatenate([t.logprobs for t in trajectories])
    return PackedBatch(
        tokens=torch.as_tensor(tokens),
        positions=torch.as_tensor(positions),
        targets=torch.as_tensor(targets),
        loss_mask=torch.as_tensor(loss_mask),
        loss_weights=torch.as_tensor(loss_weights),
        cu_seqlens=torch.as_tensor(np.append(0, ends).astype(np.int32)),
        max_seqlen=int(lengths.max()),
        segment_ids=torch.as_tensor(segment_ids),
        credit=torch.as_tensor(credit),
        rollout_logprobs=torch.as_tensor(rollout_logprobs),
        source=torch.as_tensor(source.astype(np.int32)),
        goes_on=_cuts(credits or (), ends),
        minibatch=minibatch,
        num_minibatch_tokens=num_minibatch_tokens,
        shared=_shared(trajectories, lengths, packing),
    )


def _shared(
    trajectories: Sequence[Trajectory], lengths: Indices, packing: PackingSpec
) -> SharedRows | None:
    """Field `shared` of a batch. lengths: of the trajectories, and of a padding after them."""
    if not packing.share_prefixes:
        return None
    shared = np.zeros(len(lengths), dtype=np.int64)
    shared[: len(trajectories)] = shared_lengths([t.tokens for t in trajectories])
    return shared_rows(lengths, shared, multiple=packing.pad_to_multiple)


def _cuts(credits: Sequence[Credit], ends: Indices) -> torch.Tensor | None:
    """Field `goes_on` of a batch whose sequences end at `ends`; None where no response was cut."""
    # Entry L - 2 predicts the last response token.
    cut = [int(end) - 2 for end, credit in zip(ends, credits, strict=False) if credit.goes_on]
    if not cut:
        return None
    goes_on = torch.zeros(int(ends[-1]), dtype=torch.bool)
    goes_on[cut] = True
    return goes_on
