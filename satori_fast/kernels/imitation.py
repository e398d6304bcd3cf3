# SPDX-License-Identifier: Apache-2.0
"""Imitation held near another model: negative log-likelihood and the KL over the whole vocabulary.

Both heads are walked over in chunks of tokens, so that neither [T, V] logits nor their softmax ever
exist, nor are kept for the way back. Plain PyTorch on every device: its operations are those of
`head`. Not for losses of reinforcement (`ops.policy_loss`), which need the target's log-probability
alone.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from satori_fast.kernels.head import (
    Divergence,
    Head,
    HeadGradients,
    chunks,
    compute_dtype,
    gather_statistics,
    merge_statistics,
    shard_layout,
    shard_statistics,
)

# Sums over tokens, weighted by the loss weights.
IMITATION_SUMS = ("nll", "kl", "entropy")

# Logits of one head held at a time; about four tensors of this size exist. Where the vocabulary is
# so large that it leaves few tokens, these many are taken all the same: each chunk reads and writes
# the whole gradient of the weight once.
_CHUNK_BYTES = 4 * 2**20
_HOST_TOKENS, _DEVICE_TOKENS = 32, 256


class Anchor(NamedTuple):
    """The other model's side: its hidden states [T, H'] and this rank's rows of its output layer,
    [V_shard, H']. Constants."""

    hidden: Tensor
    weight: Tensor


def linear_imitation_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss_weights: Tensor,
    anchor: Anchor,
    *,
    kl_coefficient: float,
    vocab_size: int,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss, a scalar, and the sums `IMITATION_SUMS`, [3]; differentiable in `hidden` and `weight`.

    hidden [T, H]; weight [V_shard, H], the shards of `group` in rank order; targets int64 [T];
    loss_weights [T]; vocab_size: columns from it on are padding. With p the softmax of x W^T and q
    that of the anchor,

        sum_t w_t ( -log p_t(y_t) + kl_coefficient sum_j p_tj (log p_tj - log q_tj) ).

    Four matrix products in all: a chunk of logits becomes its own gradient while it is there. The
    gradients wait for the way back, which may be gone once.
    """
    inputs = (hidden, weight, targets, loss_weights, *anchor)
    return _ImitationLoss.apply(*inputs, kl_coefficient, vocab_size, group)  # pyright: ignore[reportReturnType]


class _ImitationLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        need_hidden, need_weight, *_ = ctx.needs_input_grad
        sums, loss, ctx.gradients = _sums_and_gradients(
            *inputs, need_hidden=need_hidden, need_weight=need_weight
        )
        ctx.mark_non_differentiable(sums)
        ctx.set_materialize_grads(False)
        return loss, sums

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        grad_loss, _ = grad_outputs
        if grad_loss is None:
            return (None,) * 9
        if ctx.gradients is None:
            raise RuntimeError("the gradients of an imitation loss were taken already")
        # In place: another copy of the weight's gradient is as large as the weight.
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (None if gradient is None else gradient.mul_(grad_loss) for gradient in gradients)
        return (*scaled, *(None,) * 7)


def _sums_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss_weights: Tensor,
    anchor_hidden: Tensor,
    anchor_weight: Tensor,
    kl_coefficient: float,
    vocab_size: int,
    group: ProcessGroup | None,
    *,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    """The sums, the loss, and the gradients of `hidden` (over the group) and `weight`."""
    start, largest_shard = shard_layout(weight, group)
    head = Head.of(weight, start, vocab_size, 1.0)
    anchor_head = Head.of(anchor_weight, start, vocab_size, 1.0)
    gradients = HeadGradients(hidden, weight, need_hidden=need_hidden, need_weight=need_weight)
    sums = hidden.new_zeros(len(IMITATION_SUMS), dtype=compute_dtype(hidden))

    # A function, so that the logits of a chunk are gone before those of the next one are made.
    def add(rows: slice) -> None:
        local_targets, weights = targets[rows] - start, loss_weights[rows].to(sums.dtype)
        both = head.logits(hidden, rows), anchor_head.logits(anchor_hidden, rows)
        statistics = torch.cat([shard_statistics(logits, local_targets) for logits in both])
        logprobs, entropies, partitions = merge_statistics(gather_statistics(statistics, group))
        divergence = Divergence.of(*both, *partitions.chunk(2), group=group)
        num = len(weights)
        terms = torch.stack([-logprobs[:num], divergence.kl, entropies[:num]])
        sums.add_((terms * weights).sum(dim=1))
        if need_hidden or need_weight:
            d = divergence.logit_gradients(local_targets, -weights, kl_coefficient * weights)
            gradients.add(d, hidden, head, rows)

    # Each chunk has collectives of its own, so every rank must cut the same chunks.
    for rows in chunks(len(hidden), largest_shard, hidden, _chunk_bytes(hidden, largest_shard)):
        add(rows)
    return sums, sums[0] + kl_coefficient * sums[1], gradients.finish(group)


def _chunk_bytes(hidden: Tensor, num_columns: int) -> int:
    num_tokens = _DEVICE_TOKENS if hidden.is_cuda else _HOST_TOKENS
    return max(_CHUNK_BYTES, num_tokens * num_columns * compute_dtype(hidden).itemsize)
