# SPDX-License-Identifier: Apache-2.0
"""The output head on the host: `reference`'s operations of the same names, compiled (csrc/).

float32 and bfloat16 run as they are, float16 is cast to float32 on the way; logits and sums are
float32. Not for other types: `schemas` sends those to the reference. The compiled code knows one
shard and some tokens; this file walks over the tokens and talks to the other shards.

Extra memory, whatever T and V are: one chunk's logits in `linear_policy_loss`, one chunk's packed
hidden states and partial gradients elsewhere, and the weight's gradient in float32 if it is
returned in half precision.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from satori_fast.kernels.cpu import _C, policy_loss
from satori_fast.kernels.head import gather_statistics, merge_statistics, shard_layout
from satori_fast.kernels.reference import (
    POLICY_STATS,
    PolicyInputs,
    PolicyTerms,
    combine_stats,
)

OPERATIONS = frozenset(
    ("linear_logits", "linear_logprob", "linear_logprob_backward", "linear_policy_loss")
    if _C
    else ()
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# torch's own product is the faster one in float32; a copy of a float16 weight would be no gain.
LOGITS_DTYPES = (torch.bfloat16,)

CHUNK_BYTES = 64 * 2**20
# Fewer tokens would not pay for packing the weight and for passing over its gradient once more.
MIN_CHUNK_TOKENS = 256
# Chunks are whole panels of vectors on every instruction set.
PANEL_TOKENS = 32
# Partial gradients of the hidden states: kNumItems in csrc/linear_logprob.cpp.
NUM_PARTIAL_SUMS = 16


def instruction_set() -> str:
    """Instruction set that the compiled output head runs on; "none" without compiled kernels."""
    return _C.instruction_set() if _C else "none"


def instruction_sets() -> list[str]:
    """Instruction sets that this machine offers to the output head, widest first."""
    return _C.instruction_sets() if _C else []


def use_instruction_set(name: str) -> None:
    """Run on `name` from now on, for tests and measurements. ValueError if it is not there."""
    _C.use_instruction_set(name)


class _Shard(NamedTuple):
    """One shard of the output layer and the tokens at hand, as the compiled code wants them.

    hidden, weight: float32, or the bits of bfloat16 as int16; padding columns are cut off.
    rows: int64 [rows], which tokens of `hidden`; targets and temperature (float32) are theirs.
    start: vocabulary index of weight[0].
    """

    hidden: Tensor
    weight: Tensor
    rows: Tensor
    targets: Tensor
    temperature: Tensor
    start: int

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float | Tensor,
        rows: Tensor,
        *,
        start: int,
        vocab_size: int | None,
    ) -> "_Shard":
        if vocab_size is not None:
            weight = weight[: max(0, vocab_size - start)]
        if isinstance(temperature, Tensor):
            temperature = temperature.detach()[rows].to(torch.float32)
        else:
            temperature = torch.full(rows.shape, temperature, dtype=torch.float32)
        return cls(_packed(hidden), _packed(weight), rows, targets.long()[rows], temperature, start)

    def task(self, chunk: slice) -> tuple[Tensor | int, ...]:
        return (
            self.hidden,
            self.weight,
            self.rows[chunk],
            self.targets[chunk],
            self.temperature[chunk],
            self.start,
            torch.get_num_threads(),
        )

    def statistics(self, chunk: slice, logits: Any = None) -> Tensor:
        """(m, S, E, l_y or 0) of the tokens rows[chunk], [chunk, 4]; fills `logits` if there."""
        task = self.task(chunk)
        statistics = torch.empty(4 * len(self.rows[chunk]))
        _C.head_statistics(*task, statistics, logits)
        return statistics.view(-1, 4)


class _Gradients:
    """float32 gradients of `hidden` (of the shard's tokens only) and `weight`, chunk by chunk.

    With a group, the sum of a chunk's hidden gradient over the shards travels while the next chunk
    is worked on.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        shard: _Shard,
        group: ProcessGroup | None,
        *,
        need_hidden: bool,
        need_weight: bool,
    ) -> None:
        self._inputs = hidden, weight
        self._shard = shard
        self._group = group
        self._hidden = torch.empty(len(shard.rows), hidden.shape[1]) if need_hidden else None
        self._weight = torch.empty(weight.shape) if need_weight else None
        self._is_first = True
        self._pending: list[dist.Work] = []

    def add(
        self,
        chunk: slice,
        logits: Any,
        partition: Tensor,
        entropy: Tensor,
        grad_logprob: Tensor,
        grad_entropy: Tensor,
    ) -> None:
        """Add what the tokens rows[chunk] contribute; the four tensors are theirs."""
        shard = self._shard
        hidden = None if self._hidden is None else self._hidden[chunk]
        # Padding rows are not the compiled code's.
        weight = None if self._weight is None else self._weight[: len(shard.weight)]
        per_token = (partition, entropy, grad_logprob, grad_entropy)
        _C.head_gradients(
            *shard.task(chunk),
            logits,
            *(tensor.to(torch.float32).contiguous().view(-1) for tensor in per_token),
            None if hidden is None else hidden.view(-1),
            None if weight is None else weight.view(-1),
            not self._is_first,
        )
        if self._weight is not None and self._is_first:
            self._weight[len(shard.weight) :] = 0
        self._is_first = False
        if hidden is not None and self._group is not None:
            work = dist.all_reduce(hidden, group=self._group, async_op=True)
            assert work is not None
            self._pending.append(work)

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        """Both gradients in the type of the inputs."""
        hidden, weight = self._inputs
        grad_hidden, grad_weight = self._hidden, self._weight
        for work in self._pending:
            work.wait()
        if grad_hidden is not None and len(grad_hidden) < len(hidden):
            grad_hidden = torch.zeros(hidden.shape).index_copy_(0, self._shard.rows, grad_hidden)
        if grad_weight is not None and self._is_first:
            grad_weight.zero_()
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
        )


def linear_logits(hidden: Tensor, weight: Tensor, vocab_size: int | None) -> Tensor:
    """`reference.linear_logits`, compiled: bfloat16 as it is, summed and kept in float32."""
    rows = torch.arange(len(hidden))
    targets = torch.zeros_like(rows)
    shard = _Shard.of(hidden, weight, targets, 1.0, rows, start=0, vocab_size=vocab_size)
    everything = slice(None)
    logits = _C.head_logits(shard.weight, len(rows))
    shard.statistics(everything, logits)
    out = torch.empty(len(rows), len(shard.weight))
    _C.head_rows(*shard.task(everything), logits, out.view(-1))
    return out


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor,
    vocab_size: int | None,
    vocab_start: int,
    group: ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.linear_logprob`, compiled: one matrix product, no logit leaves the registers."""
    rows = torch.arange(len(hidden))
    shard = _Shard.of(
        hidden, weight, targets, temperature, rows, start=vocab_start, vocab_size=vocab_size
    )
    chunks = _chunks(len(rows), 4 * hidden.shape[1])
    statistics = torch.cat([torch.empty(0, 4), *map(shard.statistics, chunks)])
    return merge_statistics(gather_statistics(statistics, group))


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
) -> tuple[Tensor | None, Tensor | None]:
    """`reference.linear_logprob_backward`, compiled. A tile of logits is made again, becomes its
    gradient and enters both products before it leaves the caches."""
    zero = torch.zeros_like(entropy)
    grad_logprob = zero if grad_logprob is None else grad_logprob
    grad_entropy = zero if grad_entropy is None else grad_entropy
    live = ((grad_logprob != 0) | (grad_entropy != 0)).nonzero().squeeze(1)
    shard = _Shard.of(
        hidden, weight, targets, temperature, live, start=vocab_start, vocab_size=vocab_size
    )
    gradients = _Gradients(
        hidden, weight, shard, group, need_hidden=need_hidden, need_weight=need_weight
    )
    per_token = [tensor[live] for tensor in (partition, entropy, grad_logprob, grad_entropy)]
    for chunk in _chunks(len(live), _gradient_bytes(hidden)):
        gradients.add(chunk, None, *(tensor[chunk] for tensor in per_token))
    return gradients.finish()


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
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """`reference.linear_policy_loss`, compiled. The logits of a chunk of tokens are kept until its
    gradients are made: three matrix products, and one where no gradient is needed."""
    live = (inputs.loss_weights != 0).nonzero().squeeze(1)
    start, largest_shard = shard_layout(weight, group)
    shard = _Shard.of(
        hidden, weight, targets, temperature, live, start=start, vocab_size=vocab_size
    )
    gradients = _Gradients(
        hidden, weight, shard, group, need_hidden=need_hidden, need_weight=need_weight
    )
    loss = torch.zeros(())
    stats = torch.zeros(len(POLICY_STATS))
    logits = None
    # Each chunk has a collective of its own, so every rank must cut the same chunks.
    for chunk in _chunks(len(live), 4 * largest_shard + _gradient_bytes(hidden)):
        rows = live[chunk]
        if logits is None and (need_hidden or need_weight):
            # The first chunk is the largest.
            logits = _C.head_logits(shard.weight, len(rows))
        merged = merge_statistics(gather_statistics(shard.statistics(chunk, logits), group))
        logprob, entropy, partition = merged
        chunk_loss, chunk_stats, grad_logprob, grad_entropy = policy_loss(
            logprob, entropy, inputs.take(rows), terms
        )
        loss = loss + chunk_loss
        stats = combine_stats(stats, chunk_stats)
        if logits is not None:
            gradients.add(chunk, logits, partition, entropy, grad_logprob, grad_entropy)
    return loss, stats, *gradients.finish()


def _packed(x: Tensor) -> Tensor:
    """Contiguous float32, or the bits of bfloat16 as int16: DLPack readers know no bfloat16."""
    x = x.detach().contiguous()
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x.to(torch.float32)


def _gradient_bytes(hidden: Tensor) -> int:
    """Bytes of a token while gradients are made: its hidden state, packed twice, and sums."""
    return 4 * hidden.shape[1] * (NUM_PARTIAL_SUMS + 2)


def _chunks(num_tokens: int, token_bytes: int) -> Iterator[slice]:
    """Consecutive tokens, in chunks of nearly one size that take about CHUNK_BYTES."""
    largest = max(MIN_CHUNK_TOKENS, CHUNK_BYTES // max(1, token_bytes))
    num_chunks = -(-num_tokens // largest)
    size = -(-num_tokens // max(1, num_chunks))
    size = -(-size // PANEL_TOKENS) * PANEL_TOKENS
    for start in range(0, num_tokens, max(1, size)):
        yield slice(start, min(start + size, num_tokens))
