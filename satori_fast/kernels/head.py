# SPDX-License-Identifier: Apache-2.0
"""The pieces of a fused output layer, in plain PyTorch: logits of some tokens under one shard of
the vocabulary, their softmax statistics, the merge of shards, and the way back.

Not for walking over the tokens, nor for losses: `reference` does both.

Symbols: x hidden state, W weight, y target, l = x W^T / temperature, m = max l, S = sum exp(l - m),
E = sum exp(l - m) (l - m), H entropy, g = dLoss/dlogprob, h = dLoss/dH. In nats. T counts the
tokens at hand, C the columns of the shard.

The partition function goes about as `partition`, [T, 2], (m, S): p = exp(l - m) / S. In one number,
m + log S, all logits could be moved by 1000 and S would keep 3 digits of 7 in float32.

A word may have the logit -inf: its p is 0, and 0 log 0 is 0. NaN and +inf make their token NaN.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

# Logits held at a time; about three tensors of this size exist while a chunk is worked on. The host
# wants them near its caches, a device wants a product large enough to fill it.
HOST_CHUNK_BYTES = 16 * 2**20
DEVICE_CHUNK_BYTES = 512 * 2**20

# Stands for the maximum of no logits, or of such as are all -inf, and for l - m where that is -inf:
# finite, so that its product with 0 is 0 and not NaN.
NO_LOGIT = -1e30


def compute_dtype(x: Tensor) -> torch.dtype:
    """float32 for half precision, else the type of `x`: what logits and sums are kept in."""
    return torch.promote_types(x.dtype, torch.float32)


class Head(NamedTuple):
    """The output layer as one tensor-parallel rank sees it.

    weight:      [C, H], the real columns of the vocabulary; padding is cut off.
    start:       vocabulary index of weight[0].
    temperature: a float or [T].
    """

    weight: Tensor
    start: int
    temperature: float | Tensor

    @classmethod
    def of(
        cls, weight: Tensor, start: int, vocab_size: int | None, temperature: float | Tensor
    ) -> "Head":
        if vocab_size is not None:
            # A phantom column must not enter the softmax, so it does not even enter the product.
            weight = weight[: max(0, vocab_size - start)]
        if not weight.is_cuda:
            # Half precision products on the host come back rounded to half precision.
            weight = weight.to(compute_dtype(weight))
        if isinstance(temperature, Tensor):
            temperature = temperature.to(compute_dtype(weight))
        return cls(weight, start, temperature)

    def temperature_of(self, rows: Tensor | slice) -> float | Tensor:
        """A float, or [rows, 1]."""
        if isinstance(self.temperature, Tensor):
            return self.temperature[rows, None]
        return self.temperature

    def logits(self, hidden: Tensor, rows: Tensor | slice) -> Tensor:
        """l, [rows, C], for the tokens `rows` of `hidden` [T, H]."""
        return product(hidden[rows], self.weight.T).div_(self.temperature_of(rows))


def shard_layout(weight: Tensor, group: ProcessGroup | None) -> tuple[int, int]:
    """First column of this rank (shards lie in rank order), and the size of the largest shard."""
    if group is None:
        return 0, weight.shape[0]
    own = torch.tensor([weight.shape[0]], device=weight.device)
    sizes = _gather(own, group).flatten().tolist()
    return sum(sizes[: dist.get_rank(group)]), max(sizes)


def chunks(
    num_rows: int, num_columns: int, hidden: Tensor, chunk_bytes: int | None
) -> Iterator[slice]:
    """Consecutive tokens whose logits fit in `chunk_bytes`; at least one."""
    if chunk_bytes is None:
        chunk_bytes = DEVICE_CHUNK_BYTES if hidden.is_cuda else HOST_CHUNK_BYTES
    row_bytes = max(1, num_columns) * compute_dtype(hidden).itemsize
    num_chunk_rows = max(1, chunk_bytes // row_bytes)
    for start in range(0, num_rows, num_chunk_rows):
        yield slice(start, min(start + num_chunk_rows, num_rows))


def shard_statistics(logits: Tensor, targets: Tensor) -> Tensor:
    """(m, S, E, l_y or 0) of the columns in `logits`, [T, 4]; `targets` count from the first."""
    num_rows, num_columns = logits.shape
    if num_columns == 0:
        return logits.new_tensor([NO_LOGIT, 0.0, 0.0, 0.0]).repeat(num_rows, 1)
    maximum = logits.amax(dim=1).clamp_min(NO_LOGIT)
    shifted = logits - maximum[:, None]
    exponentials = shifted.exp()
    total = exponentials.sum(dim=1)
    weighted = exponentials.mul_(shifted.clamp_min_(NO_LOGIT)).sum(dim=1)
    owned, index = _own_targets(targets, num_columns)
    target_logits = torch.where(owned, logits.gather(1, index).squeeze(1), 0.0)
    return torch.stack([maximum, total, weighted, target_logits], dim=1)


def gather_statistics(statistics: Tensor, group: ProcessGroup | None) -> Tensor:
    """The statistics of every shard, [shards, T, 4]: 16 bytes a token and rank in float32."""
    return statistics[None] if group is None else _gather(statistics, group)


def merge_statistics(shards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logprob [T], entropy [T] and partition [T, 2] from the statistics of all shards:

        logprob = l_y - m - log S,    H = log S - E / S,    partition = (m, S).

    E is taken around the maximum: from the absolute logits, H would lose the digits that l has in
    front.
    """
    maxima, totals, weighted, target_logits = shards.unbind(dim=2)
    maximum = maxima.amax(dim=0)
    below = maxima - maximum
    scale = below.exp()
    total = (scale * totals).sum(dim=0)
    # Moving the centre of E from a shard's maximum m' to the common m adds (m' - m) S'.
    mean_shifted = (scale * (weighted + below * totals)).sum(dim=0) / total
    log_total = total.log()
    logprob = target_logits.sum(dim=0) - maximum - log_total
    return logprob, log_total - mean_shifted, torch.stack([maximum, total], dim=1)


def logit_gradients(
    logits: Tensor,
    targets: Tensor,
    entropy: Tensor,
    partition: Tensor,
    grad_logprob: Tensor,
    grad_entropy: Tensor,
) -> Tensor:
    """dLoss/dl, [T, C], made in the memory of `logits`:

    dLoss/dl_j = -p_j (g + h (log p_j + H)) + [j = y] g.
    """
    maximum, total = partition.unbind(dim=1)
    shifted = logits.sub_(maximum[:, None])
    probabilities = shifted.exp().div_(total[:, None])
    # log p + H is l - m + (H - log S).
    rest = entropy - total.log()
    d = shifted.clamp_min_(NO_LOGIT).add_(rest[:, None]).mul_(grad_entropy[:, None])
    d = d.add_(grad_logprob[:, None]).mul_(probabilities).neg_()
    return _add_to_targets(d, targets, grad_logprob)


class Divergence(NamedTuple):
    """The softmax p of some tokens, [T, C], against that of another model, q.

    log_ratios: log p - log q, [T, C]. kl: KL(p || q) = sum p (log p - log q) over all shards, [T].
    """

    probabilities: Tensor
    log_ratios: Tensor
    kl: Tensor

    @classmethod
    def of(
        cls,
        logits: Tensor,
        other_logits: Tensor,
        partition: Tensor,
        other_partition: Tensor,
        *,
        group: ProcessGroup | None,
    ) -> "Divergence":
        """Made in the memory of both logits [T, C]; the partitions [T, 2] are theirs."""
        maximum, total = partition.unbind(dim=1)
        other_maximum, other_total = other_partition.unbind(dim=1)
        shifted = logits.sub_(maximum[:, None]).clamp_min_(NO_LOGIT)
        other_shifted = other_logits.sub_(other_maximum[:, None]).clamp_min_(NO_LOGIT)
        log_ratios = other_shifted.neg_().add_(shifted)
        log_ratios = log_ratios.add_((other_total.log() - total.log())[:, None])
        probabilities = shifted.exp_().div_(total[:, None])
        kl = (probabilities * log_ratios).sum(dim=1)
        if group is not None:
            dist.all_reduce(kl, group=group)
        return cls(probabilities, log_ratios, kl)

    def logit_gradients(self, targets: Tensor, grad_logprob: Tensor, grad_kl: Tensor) -> Tensor:
        """dLoss/dl, [T, C], made in the memory of `log_ratios`, with k = dLoss/dKL:

        dLoss/dl_j = p_j (k (log p_j - log q_j - KL) - g) + [j = y] g.
        """
        d = self.log_ratios.sub_(self.kl[:, None]).mul_(grad_kl[:, None])
        d = d.sub_(grad_logprob[:, None]).mul_(self.probabilities)
        return _add_to_targets(d, targets, grad_logprob)


def stash_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of a kept softmax: bfloat16, which has the range of float32, for half precision."""
    return torch.bfloat16 if dtype.itemsize == 2 else dtype


def stash_width(num_columns: int) -> int:
    """Columns of a kept row: a multiple of 16, so that every row starts at an aligned address."""
    return -(-num_columns // 16) * 16


def _shard_partition(statistics: Tensor) -> tuple[Tensor, Tensor]:
    """m and S of a shard alone, each [T]. S is at least 1, but where no column has a p above 0."""
    return statistics[:, 0], statistics[:, 1].clamp_min(1.0)


def keep_softmax(logits: Tensor, statistics: Tensor, stash: Tensor) -> None:
    """Fill `stash` [T, stash_width(C)] with exp(l - m) / S, the softmax within the shard, and with
    0 beyond C. Its relative rounding is that of the gradient made from it."""
    maximum, total = _shard_partition(statistics)
    stash.zero_()
    stash[:, : logits.shape[1]] = (logits - maximum[:, None]).exp().div_(total[:, None])


def kept_partition(partition: Tensor, statistics: Tensor) -> Tensor:
    """[T, 2]: what `partition`, that of all shards, is for the logits that this shard keeps."""
    maximum, total = _shard_partition(statistics)
    return torch.stack([partition[:, 0] - maximum, partition[:, 1] / total], dim=1)


def kept_logits(
    stash: Tensor, num_columns: int, targets: Tensor, logprob: Tensor, partition: Tensor
) -> Tensor:
    """Logits [T, C] that `keep_softmax` kept, log (exp(l - m) / S) of the shard.

    partition: their `kept_partition`. The logit of a target comes from its exact `logprob`: for a
    likely one, 1 - p would be nothing but the rounding of p.
    """
    kept = stash[:, :num_columns].to(logprob.dtype)
    # What was rounded to 0 has no logarithm, and no gradient either.
    logits = torch.where(kept > 0, kept.log(), NO_LOGIT)
    if num_columns:
        owned, index = _own_targets(targets, num_columns)
        maximum, total = partition.unbind(dim=1)
        exact = logprob + maximum + total.log()
        exact = torch.where(owned, exact, logits.gather(1, index).squeeze(1))
        logits.scatter_(1, index, exact[:, None])
    return logits


class HeadGradients:
    """Sums of the gradients of `hidden` and `weight` over chunks, in at least float32."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, *, need_hidden: bool, need_weight: bool
    ) -> None:
        dtype = compute_dtype(hidden)
        self._dtype = hidden.dtype
        self._hidden = hidden.new_zeros(hidden.shape, dtype=dtype) if need_hidden else None
        self._weight = weight.new_zeros(weight.shape, dtype=dtype) if need_weight else None

    def add(
        self, logit_gradients: Tensor, hidden: Tensor, head: Head, rows: Tensor | slice
    ) -> None:
        """Add what dLoss/dl of the tokens `rows` contributes."""
        d = logit_gradients.div_(head.temperature_of(rows))
        if self._hidden is not None:
            self._hidden[rows] = product(d, head.weight)
        if self._weight is not None:
            # Padding rows of the weight keep the gradient 0.
            real = self._weight[: len(head.weight)]
            x = hidden[rows].to(head.weight.dtype)
            if x.dtype == real.dtype:
                real.addmm_(d.T, x)
            else:
                real += product(d.T, x)

    def finish(self, group: ProcessGroup | None) -> tuple[Tensor | None, Tensor | None]:
        """Both gradients in the type of the inputs; `hidden` summed over the group."""
        if self._hidden is not None and group is not None:
            # Each shard holds the part that comes from its own columns.
            dist.all_reduce(self._hidden, group=group)
        return (
            None if self._hidden is None else self._hidden.to(self._dtype),
            None if self._weight is None else self._weight.to(self._dtype),
        )


def _own_targets(targets: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    """Mask of the targets that lie in this shard, [T], and a column to look at for each, [T, 1]."""
    owned = (targets >= 0) & (targets < num_columns)
    return owned, targets.clamp(0, num_columns - 1)[:, None]


def _add_to_targets(d: Tensor, targets: Tensor, values: Tensor) -> Tensor:
    """`d` [T, C] with `values` [T] added in place where a target lies in this shard."""
    if d.shape[1]:
        owned, index = _own_targets(targets, d.shape[1])
        d.scatter_add_(1, index, torch.where(owned, values, 0.0)[:, None])
    return d


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b, summed and returned in at least float32; `a` is cast to the type of `b`."""
    a = a.to(b.dtype)
    if b.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b)


def _gather(x: Tensor, group: ProcessGroup) -> Tensor:
    """`x` of every rank, stacked in rank order."""
    gathered = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, x.contiguous(), group=group)
    return torch.stack(gathered)
