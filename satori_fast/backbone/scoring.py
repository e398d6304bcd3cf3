# SPDX-License-Identifier: Apache-2.0
"""Log-probs of a packed batch from the hidden states of a pass: one of its own, or an update's.

The first minibatch of a step is trained under the weights that a pass of its own would score it
with, so the update's forward pass has its log-probs: only the output layer runs once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from satori_fast.backbone.context import plan_context
from satori_fast.backbone.parallel import parallel_state
from satori_fast.kernels import linear_logprob
from satori_fast.types import PackedBatch


def logprob_head(batch: PackedBatch, *, temperature: float) -> Callable[..., Tensor]:
    """Function of a policy's hidden states and output weight (`model.PolicyHead`) to the
    log-probs [T] of targets with a loss, 0 elsewhere."""
    context = plan_context(batch.cu_seqlens)

    def logprob(hidden: Tensor, weight: Tensor, **shard: Any) -> Tensor:
        # Ranks of a context exchange equally many rows: all that each has.
        rows = batch.loss_mask.nonzero().squeeze(1) if context is None else context.own
        found, _ = linear_logprob(
            hidden.index_select(0, rows),
            weight,
            batch.targets.index_select(0, rows),
            temperature=temperature,
            **shard,
        )
        if context is not None:
            return torch.where(batch.loss_mask, context.all_rows(found, is_shared=False), 0.0)
        return found.new_zeros(batch.num_tokens).index_copy(0, rows, found)

    return logprob


@dataclass(frozen=True)
class LateScoring:
    """Log-probs of a policy's first minibatch, taken from the forward pass of its own update: the
    weights are still those that `annotate` would have scored it with.

    temperature: of the sampler. done: gets all batches, now with `old_logprobs`, before the first
    optimizer step.
    """

    temperature: float
    done: Callable[[list[PackedBatch]], None]


class LateScores:
    """The log-probs that `LateScoring` finds while a minibatch is at work."""

    def __init__(self, late: LateScoring, batches: Sequence[PackedBatch]) -> None:
        assert parallel_state().pipeline_size == 1  # other stages would not know the numbers
        self._late, self._batches = late, batches
        self._scored: dict[int, PackedBatch] = {}

    @torch.no_grad()
    def complete(
        self, batch: PackedBatch, hidden: Tensor, weight: Tensor, **shard: Any
    ) -> PackedBatch:
        """The batch with its log-probs under the weights of now."""
        if batch.old_logprobs is not None:
            return batch
        logprob = logprob_head(batch, temperature=self._late.temperature)
        scored = batch.annotated(old_logprobs=logprob(hidden.detach(), weight.detach(), **shard))
        self._scored[id(batch)] = scored
        return scored

    def hand_over(self) -> None:
        """Give all batches to `LateScoring.done`."""
        self._late.done([self._scored.get(id(batch), batch) for batch in self._batches])
