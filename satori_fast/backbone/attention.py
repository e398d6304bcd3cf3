# SPDX-License-Identifier: Apache-2.0
"""Attention over packed sequences: each token sees its own sequence up to itself, nothing else.

Three ways, one result. On CUDA in half precision: flash-attn's varlen kernel, or PyTorch's.
Elsewhere sequences of similar length are laid into right-padded rectangles, and each rectangle is
one call of `scaled_dot_product_attention`: under a causal mask no real token looks at the padding
to its right. Where sequences begin alike (`PackedBatch.shared`) the layers have one row for what
they have in common; attention alone sees it once for each of them.

Everything that depends on lengths only is worked out once per batch (`AttentionPlan`), not once per
layer, and rotary embeddings read the same plan. Not for decoding with a cache: that is
`rollout.embedded_engine`.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import checkpoint
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor, nn

from satori_fast.backbone.context import ContextPlan, attend_in_pieces, plan_context
from satori_fast.backbone.spread import Spread, gathered, spread
from satori_fast.kernels import rope
from satori_fast.types import SharedRows

# A rectangle may hold this many slots per real token; 1.25 keeps the calls few and the waste small.
_MAX_SLOTS_PER_TOKEN = 1.25

_HALF = (torch.float16, torch.bfloat16)


def rotary_frequencies(head_dim: int, rope: dict[str, Any]) -> Tensor:
    """Angle per position of each pair of channels: float32 [head_dim / 2], radians.

    theta_i = rope_theta^(-2 i / head_dim). rope_type "llama3" divides the low frequencies by
    `factor` and blends in between (Llama 3.1). ValueError for any other rope_type.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope["rope_theta"] ** exponent)
    rope_type = rope.get("rope_type", "default")
    if rope_type == "default":
        return frequencies
    if rope_type != "llama3":
        raise ValueError(f"rope_type {rope_type!r} is not supported: use 'default' or 'llama3'")
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    turns = context * frequencies / (2 * math.pi)  # full turns over the original context
    blend = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * frequencies / rope["factor"] + blend * frequencies


@dataclass(frozen=True)
class AttentionPlan:
    """Layout of one packed batch for the attention of every layer.

    The layers compute R rows (`PackedBatch.num_rows`), with context parallelism those of this
    rank's tokens. Attention runs on P slots: the T tokens in batch order on the varlen path, P >= T
    slots of the rectangles otherwise.

    cu_seqlens: int32 [N + 1] and max_seqlen describe the sequences.
    cos, sin:   [P, head_dim / 2] of each slot's position.
    rectangles: (number of sequences, length) of each, in slot order; empty on the varlen path.
    slots:      the row in each slot, a padding slot repeating its sequence's last one; None where
                slots are rows.
    context:    how ranks share the tokens; None where one has all of them.
    shared:     `PackedBatch.shared`.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    cos: Tensor
    sin: Tensor
    rectangles: tuple[tuple[int, int], ...] = ()
    slots: Spread | None = None
    context: ContextPlan | None = None
    shared: SharedRows | None = None

    @property
    def rows(self) -> Tensor | None:
        """The token of each row that this rank computes; None where it computes all, in order."""
        if self.context is not None:
            return self.context.own
        return None if self.shared is None else self.shared.tokens

    def of_tokens(self, rows: Tensor) -> Tensor:
        """Rows [T, ...] of all tokens from those that this rank computed, at the end of the trunk:
        what reads them gives every rank of a context the full gradient."""
        if self.context is not None:
            return self.context.all_rows(rows, is_shared=False)
        if self.shared is None:
            return rows
        return spread(rows, _at_tokens(self.shared))


def plan_attention(
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    positions: Tensor,
    frequencies: Tensor,
    dtype: torch.dtype,
    shared: SharedRows | None = None,
) -> AttentionPlan:
    """The plan of a batch. positions: int64 [T]; frequencies: see `rotary_frequencies`; shared:
    `PackedBatch.shared`, which ranks of a context cannot use (ValueError).

    The rectangle path reads the lengths on the host (one device sync per batch, none per layer).
    """
    context = plan_context(cu_seqlens)
    layout: dict[str, Any] = {"context": context, "shared": shared}
    if context is not None:
        if shared is not None:
            raise ValueError("context parallelism shares no rows: pack with share_prefixes = False")
        positions = positions.index_select(0, context.own)
    elif not _uses_varlen(positions.device, dtype):
        rectangles, *places = _rectangles(cu_seqlens.cpu().numpy())
        tokens, slots = (torch.from_numpy(each).to(positions.device) for each in places)
        layout |= {"rectangles": rectangles, "slots": _in_slots(tokens, slots, shared)}
        positions = positions.index_select(0, tokens)
    elif shared is not None:
        layout["slots"] = _at_tokens(shared)
    angles = torch.outer(positions.float(), frequencies.to(positions.device))
    return AttentionPlan(
        cu_seqlens, max_seqlen, cos=angles.cos().to(dtype), sin=angles.sin().to(dtype), **layout
    )


def _rectangles(
    cu_seqlens: np.ndarray,
) -> tuple[tuple[tuple[int, int], ...], np.ndarray, np.ndarray]:
    lengths = np.diff(cu_seqlens)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    sorted_lengths = lengths[order]
    rectangles, tokens = [], []
    slots = np.empty(int(cu_seqlens[-1]), dtype=np.int64)
    first, offset = 0, 0
    while first < len(order):
        length = int(sorted_lengths[first])
        real = np.cumsum(sorted_lengths[first:])
        area = length * np.arange(1, len(real) + 1)
        # Lengths fall, so the waste only grows: take the longest run that keeps it in bounds.
        count = int(np.searchsorted(area > _MAX_SLOTS_PER_TOKEN * real, True))
        chosen = order[first : first + count]
        column = np.arange(length)[None]
        rows = cu_seqlens[chosen, None] + np.minimum(column, lengths[chosen, None] - 1)
        is_real = column < lengths[chosen, None]
        slots[rows[is_real]] = offset + np.flatnonzero(is_real)
        tokens.append(rows.reshape(-1).astype(np.int64))
        rectangles.append((count, length))
        first, offset = first + count, offset + count * length
    return tuple(rectangles), np.concatenate(tokens), slots


def _at_tokens(shared: SharedRows) -> Spread:
    return Spread(shared.rows, shared.tokens, shared.repeats)


def _in_slots(tokens: Tensor, slots: Tensor, shared: SharedRows | None) -> Spread:
    """tokens: int64 [P], the token in each slot; slots: int64 [T], the slot of each token."""
    if shared is None:
        return Spread(tokens, slots)
    repeats = tuple((rows, slots[places]) for rows, places in shared.repeats)
    return Spread(shared.rows[tokens], slots[shared.tokens], repeats)


class PackedCoreAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v within each sequence, causal. Holds no parameters.

    q [rows, heads, d], k and v [rows, groups, d] in the plan's row order -> [rows, heads * d].
    """

    def __init__(self, config: Any, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        self.scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan) -> Tensor:
        if plan.context is not None:
            return _attend_to_all(query, key, value, plan.context, self.scale)
        if not plan.rectangles:
            cuts = plan.cu_seqlens, plan.cu_seqlens
            longest = plan.max_seqlen, plan.max_seqlen
            return _varlen_attention(query, key, value, cuts, longest, self.scale).flatten(1)
        grouped = query.shape[1] != key.shape[1]
        outputs, offset = [], 0
        for count, length in plan.rectangles:
            rows = slice(offset, offset + count * length)
            q, k, v = (
                x[rows].unflatten(0, (count, length)).transpose(1, 2) for x in (query, key, value)
            )
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=self.scale, enable_gqa=grouped
            )
            outputs.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
            offset += count * length
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class PackedSelfAttention(SelfAttention):
    """Megatron's self-attention with the forward reduced to what packed training needs.

    `packed_seq_params` carries the `AttentionPlan`: the one argument that Megatron hands to every
    layer, recomputed or not, without looking inside.
    """

    linear_qkv: Any  # Megatron's protocols for these are not callable in the eyes of a type checker
    q_layernorm: Any
    k_layernorm: Any
    core_attention: Any

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, *, packed_seq_params: AttentionPlan, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [T, 1, H] -> the same, and no bias."""
        plan = packed_seq_params
        mixed, _bias = self.linear_qkv(hidden_states)
        if self.config.recompute_granularity == "selective" and torch.is_grad_enabled():
            out: Any = checkpoint(partial(self._attend, plan=plan), False, mixed)
        else:
            out = self._attend(mixed, plan)
        return self.linear_proj(out.unsqueeze(1))

    def _attend(self, mixed: Tensor, plan: AttentionPlan) -> Tensor:
        """Queries, keys and values [T, 1, C] of this rank's heads -> what they attend to."""
        rows = mixed.squeeze(1)
        if plan.slots is not None:
            rows = spread(rows, plan.slots)
        groups = self.num_query_groups_per_partition
        rows = rows.unflatten(1, (groups, -1, self.hidden_size_per_attention_head))
        # Per group: its query heads, then its key, then its value.
        query, key, value = rows.split([rows.shape[2] - 2, 1, 1], dim=2)
        if self.config.qk_layernorm:
            query, key = self.q_layernorm(query), self.k_layernorm(key)
        query = rope(query, plan.cos, plan.sin).flatten(1, 2)
        key = rope(key, plan.cos, plan.sin).flatten(1, 2)
        out = self.core_attention(query, key, value.flatten(1, 2), plan)
        return out if plan.slots is None else gathered(out, plan.slots)


@cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _uses_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and dtype in _HALF


def _attend_to_all(
    query: Tensor, key: Tensor, value: Tensor, context: ContextPlan, scale: float | None
) -> Tensor:
    """Attention of a rank's tokens to keys and values of all ranks of its context."""
    both = context.all_rows(torch.cat([key, value], dim=1), is_shared=True)
    key, value = both.split(key.shape[1], dim=1)
    if not _uses_varlen(query.device, query.dtype):
        return attend_in_pieces(query, key, value, context, scale)
    # Of a causal mask these kernels align the last query with the last key.
    key, value = key.index_select(0, context.keys), value.index_select(0, context.keys)
    cuts = (context.cu_queries, context.cu_keys)
    return _varlen_attention(query, key, value, cuts, context.longest, scale).flatten(1)


def _varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cuts: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    scale: float | None,
) -> Tensor:
    """cuts: int32 [N + 1] of queries and of keys. longest: of these sequences, tokens."""
    if _has_flash_attn():
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

        return flash_attn_varlen_func(
            query,
            key,
            value,
            *cuts,
            *longest,
            softmax_scale=scale,
            causal=True,
        )
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        query,
        key,
        value,
        *cuts,
        *longest,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out
