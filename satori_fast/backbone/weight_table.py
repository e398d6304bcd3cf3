# SPDX-License-Identifier: Apache-2.0
"""One table of Hugging Face and Megatron parameter names, shapes and layouts.

Megatron keeps query, key and value of each group together, gate and up in one matrix, and the
vocabulary padded to a multiple of the tensor-parallel size with zero rows. Every layout copies
bits, so a round trip is exact. Who reads the table: `weights.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from satori_fast.backbone.architecture import has_qk_norm, has_qkv_bias, head_dim


@dataclass(frozen=True)
class Geometry:
    """The sizes that layouts need: padded vocabulary rows and the attention heads."""

    num_heads: int
    num_groups: int
    head_dim: int
    vocab_size: int
    padded_vocab_size: int

    @classmethod
    def of(cls, hf_config: Any, tensor_size: int) -> Geometry:
        """The geometry of a model split over `tensor_size` ranks."""
        return cls(
            num_heads=hf_config.num_attention_heads,
            num_groups=hf_config.num_key_value_heads,
            head_dim=head_dim(hf_config),
            vocab_size=hf_config.vocab_size,
            padded_vocab_size=-(-hf_config.vocab_size // tensor_size) * tensor_size,
        )


def _alone(parts: list[Tensor], _: Geometry) -> Tensor:
    return parts[0]


def _whole(full: Tensor, _: Geometry) -> list[Tensor]:
    return [full]


@dataclass(frozen=True)
class Layout:
    """The way from Hugging Face tensors to one Megatron tensor, and how that is sharded.

    merge: parts -> full tensor; split undoes it.
    axis:  the dimension that tensor-parallel ranks share; None where each holds everything.
    num_blocks: the full tensor is so many stacked ones, each of which is shared for itself.
    """

    axis: int | None
    merge: Callable[[list[Tensor], Geometry], Tensor] = _alone
    split: Callable[[Tensor, Geometry], list[Tensor]] = _whole
    num_blocks: int = 1

    def shard(self, full: Tensor, size: int, rank: int) -> Tensor:
        """The part of one of `size` ranks."""
        if self.axis is None:
            return full
        blocks = full.chunk(self.num_blocks)
        own = [block.chunk(size, self.axis)[rank] for block in blocks]
        return own[0] if len(own) == 1 else torch.cat(own)

    def join(self, shards: list[Tensor]) -> Tensor:
        """The full tensor from the parts of all ranks."""
        if self.axis is None:
            return shards[0]
        blocks = zip(*(shard.chunk(self.num_blocks) for shard in shards), strict=True)
        return torch.cat([torch.cat(parts, self.axis) for parts in blocks])


def _merge_qkv(parts: list[Tensor], geometry: Geometry) -> Tensor:
    groups = [part.unflatten(0, (geometry.num_groups, -1)) for part in parts]
    return torch.cat(groups, dim=1).flatten(0, 1)


def _split_qkv(full: Tensor, geometry: Geometry) -> list[Tensor]:
    head = geometry.head_dim
    groups = full.unflatten(0, (geometry.num_groups, -1))
    sizes = [geometry.num_heads // geometry.num_groups * head, head, head]
    return [part.flatten(0, 1) for part in groups.split(sizes, dim=1)]


def _pad_vocabulary(parts: list[Tensor], geometry: Geometry) -> Tensor:
    missing = geometry.padded_vocab_size - parts[0].shape[0]
    return torch.cat([parts[0], parts[0].new_zeros(missing, parts[0].shape[1])])


_COLUMN, _ROW, REPLICATED = Layout(0), Layout(1), Layout(None)
_QKV = Layout(0, _merge_qkv, _split_qkv)
_VOCABULARY = Layout(0, _pad_vocabulary, lambda full, geometry: [full[: geometry.vocab_size]])
# Each rank holds its slice of the gate, then its slice of up: not a slice of both stacked.
_GATED = Layout(
    0, lambda parts, _: torch.cat(parts), lambda full, _: list(full.chunk(2)), num_blocks=2
)

# (Megatron name, layout, Hugging Face names with their dimensions, which models have it)
_Row = tuple[str, Layout, tuple[tuple[str, str], ...], str]
EMBEDDING = "embedding.word_embeddings.weight"
_EMBEDDING: tuple[_Row, ...] = (
    (
        EMBEDDING,
        _VOCABULARY,
        (("model.embed_tokens.weight", "vocab hidden"),),
        "all",
    ),
)
_LAYER: tuple[_Row, ...] = (
    ("input_layernorm.weight", REPLICATED, (("input_layernorm.weight", "hidden"),), "all"),
    (
        "self_attention.linear_qkv.weight",
        _QKV,
        (
            ("self_attn.q_proj.weight", "query hidden"),
            ("self_attn.k_proj.weight", "key hidden"),
            ("self_attn.v_proj.weight", "key hidden"),
        ),
        "all",
    ),
    (
        "self_attention.linear_qkv.bias",
        _QKV,
        (
            ("self_attn.q_proj.bias", "query"),
            ("self_attn.k_proj.bias", "key"),
            ("self_attn.v_proj.bias", "key"),
        ),
        "qkv_bias",
    ),
    (
        "self_attention.q_layernorm.weight",
        REPLICATED,
        (("self_attn.q_norm.weight", "head"),),
        "qk_norm",
    ),
    (
        "self_attention.k_layernorm.weight",
        REPLICATED,
        (("self_attn.k_norm.weight", "head"),),
        "qk_norm",
    ),
    (
        "self_attention.linear_proj.weight",
        _ROW,
        (("self_attn.o_proj.weight", "hidden query"),),
        "all",
    ),
    (
        "pre_mlp_layernorm.weight",
        REPLICATED,
        (("post_attention_layernorm.weight", "hidden"),),
        "all",
    ),
    (
        "mlp.linear_fc1.weight",
        _GATED,
        (("mlp.gate_proj.weight", "ffn hidden"), ("mlp.up_proj.weight", "ffn hidden")),
        "all",
    ),
    ("mlp.linear_fc2.weight", _ROW, (("mlp.down_proj.weight", "hidden ffn"),), "all"),
)
_FINAL: tuple[_Row, ...] = (
    ("decoder.final_layernorm.weight", REPLICATED, (("model.norm.weight", "hidden"),), "all"),
    ("output_layer.weight", _VOCABULARY, (("lm_head.weight", "vocab hidden"),), "untied"),
    (
        "output_layer.weight",
        _VOCABULARY,
        (("model.embed_tokens.weight", "vocab hidden"),),
        "tied_copy",
    ),
    ("output_layer.weight", REPLICATED, (("score.weight", "one hidden"),), "scalar"),
)


@dataclass(frozen=True)
class Entry:
    """One Megatron parameter (global layer number in its name) and its Hugging Face tensors.

    is_copy: the last pipeline stage's copy of a tied embedding: loaded, never exported.
    """

    name: str
    layout: Layout
    hf: tuple[tuple[str, tuple[int, ...]], ...]
    is_copy: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole Megatron tensor, without the rows that pad a vocabulary."""
        return sum(shape[0] for _, shape in self.hf), *self.hf[0][1][1:]


def table(hf_config: Any, kind: str) -> list[Entry]:
    """All parameters of a model of this `kind` ("policy" or "scalar"), in Hugging Face's order."""
    tied = bool(hf_config.tie_word_embeddings)
    present = {
        "all": True,
        "qkv_bias": has_qkv_bias(hf_config),
        "qk_norm": has_qk_norm(hf_config),
        "untied": kind == "policy" and not tied,
        "tied_copy": kind == "policy" and tied,
        "scalar": kind == "scalar",
    }
    sizes = {
        "one": 1,
        "hidden": hf_config.hidden_size,
        "ffn": hf_config.intermediate_size,
        "vocab": hf_config.vocab_size,
        "head": head_dim(hf_config),
        "query": hf_config.num_attention_heads * head_dim(hf_config),
        "key": hf_config.num_key_value_heads * head_dim(hf_config),
    }
    prefixed = [("", "", row) for row in _EMBEDDING]
    for layer in range(hf_config.num_hidden_layers):
        prefixed += [(f"decoder.layers.{layer}.", f"model.layers.{layer}.", row) for row in _LAYER]
    prefixed += [("", "", row) for row in _FINAL]
    return [
        Entry(
            name=prefix + name,
            layout=layout,
            hf=tuple(
                (hf_prefix + hf_name, tuple(sizes[size] for size in dimensions.split()))
                for hf_name, dimensions in parts
            ),
            is_copy=condition == "tied_copy",
        )
        for prefix, hf_prefix, (name, layout, parts, condition) in prefixed
        if present[condition]
    ]
