# SPDX-License-Identifier: Apache-2.0
"""Context parallelism: ranks that share the tokens of one packed batch.

Of 2 n equal chunks of the batch, rank k of n has chunks k and 2 n - 1 - k: early tokens see few
others and late ones many, so all ranks attend to as much. Each attends from its own tokens to the
keys and values of all, which are gathered in every layer; whatever is made of the trunk's output
(log-probabilities, values, losses over sequences and segments) is made of all tokens, on each rank.

Attention within one rank is `attention.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from torch import Tensor

from satori_fast.backbone.parallel import parallel_state


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one rank that follow each other in one sequence, and the keys that they see.

    queries: [begin, end) among the rank's tokens. keys: [begin, end) in the batch, from the first
    token of the sequence to the last one of the piece.
    """

    queries: tuple[int, int]
    keys: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """Shares of the tokens of one packed batch.

    own:    int64 [T / n], the tokens of this rank, in order.
    order:  int64 [T], the tokens of all ranks, rank after rank. places: undoes it.
    pieces: what this rank attends from and to. In the words of varlen kernels: `keys`, int64, the
            tokens that the pieces see, piece after piece; `cu_queries` and `cu_keys`, int32
            [pieces + 1]; `longest`: most queries and most keys of a piece.
    """

    own: Tensor
    order: Tensor
    places: Tensor
    pieces: tuple[Piece, ...]
    keys: Tensor
    cu_queries: Tensor
    cu_keys: Tensor
    longest: tuple[int, int]

    def all_rows(self, rows: Tensor, *, is_shared: bool) -> Tensor:
        """Rows [T, ...] of all tokens from those of this rank, [T / n, ...].

        is_shared: each rank's gradient is its share, and their sum is the gradient (keys and
        values). Else every rank has all of it, and takes its own rows.
        """
        gathered: Any = _AllRows.apply(rows, self, is_shared)
        return gathered


def plan_context(cu_seqlens: Tensor) -> ContextPlan | None:
    """The plan of a batch on this rank; None without context parallelism."""
    state = parallel_state()
    size, rank = state.context_size, state.context_rank
    if size == 1:
        return None
    ends = cu_seqlens.cpu().numpy()
    chunks = np.arange(ends[-1]).reshape(2 * size, -1)
    shares = [np.concatenate([chunks[k], chunks[2 * size - 1 - k]]) for k in range(size)]
    order = np.concatenate(shares)
    pieces = _pieces(shares[rank], ends)
    keys = np.concatenate([np.arange(*piece.keys) for piece in pieces])
    num_queries = [end - begin for begin, end in (piece.queries for piece in pieces)]
    num_keys = [end - begin for begin, end in (piece.keys for piece in pieces)]
    cuts = [np.cumsum([0, *counts]).astype(np.int32) for counts in (num_queries, num_keys)]
    own, order, places, keys, cu_queries, cu_keys = (
        torch.from_numpy(indices).to(cu_seqlens.device)
        for indices in (shares[rank], order, np.argsort(order), keys, *cuts)
    )
    longest = max(num_queries), max(num_keys)
    return ContextPlan(own, order, places, tuple(pieces), keys, cu_queries, cu_keys, longest)


def _pieces(own: np.ndarray, ends: np.ndarray) -> list[Piece]:
    sequences = np.searchsorted(ends, own, side="right") - 1
    # A piece ends where the next token is not the next one, or is of another sequence.
    cuts = np.flatnonzero((np.diff(own) != 1) | (np.diff(sequences) != 0)) + 1
    borders = [0, *cuts.tolist(), len(own)]
    return [
        Piece((begin, end), (int(ends[sequences[begin]]), int(own[end - 1]) + 1))
        for begin, end in pairwise(borders)
    ]


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: ContextPlan, is_shared: bool) -> Tensor:
        ctx.plan, ctx.is_shared = plan, is_shared
        gathered = rows.new_empty(len(plan.order), *rows.shape[1:])
        group = mpu.get_context_parallel_group()
        dist.all_gather_into_tensor(gathered, rows.contiguous(), group=group)
        return gathered.index_select(0, plan.places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        plan: ContextPlan = ctx.plan
        if not ctx.is_shared:
            return grad.index_select(0, plan.own), None, None
        own = grad.new_empty(len(plan.own), *grad.shape[1:])
        group = mpu.get_context_parallel_group()
        dist.reduce_scatter_tensor(own, grad.index_select(0, plan.order), group=group)
        return own, None, None


def attend_in_pieces(
    query: Tensor, key: Tensor, value: Tensor, plan: ContextPlan, scale: float | None
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of this rank's tokens, each over its sequence up to itself.

    query [T / n, heads, d], key and value of all tokens [T, groups, d] -> [T / n, heads * d].
    """
    outputs: list[Tensor] = []
    for piece in plan.pieces:
        q, k, v = (
            rows[slice(*place)].transpose(0, 1)[None]
            for rows, place in (
                (query, piece.queries),
                (key, piece.keys),
                (value, piece.keys),
            )
        )
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_up_to_itself(q.shape[2], k.shape[2], q.device),
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(out[0].transpose(0, 1).flatten(1))
    return torch.cat(outputs)


def _up_to_itself(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """Which keys each query sees: the last query all of them."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(
        num_keys - num_queries
    )
