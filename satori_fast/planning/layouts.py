# SPDX-License-Identifier: Apache-2.0
"""Layouts: how ranks share the models, and which layouts a model, an engine and a world allow.

What a rank then holds is `sizes` and `memory`. The groups themselves are `backbone.parallel`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from satori_fast.profiling.flops import ModelShape

EngineKind = Literal["embedded", "vllm", "server"]
Recompute = Literal["none", "selective", "full"]

# Tensor-parallel ranks talk in every layer: they stay in one machine.
GPUS_PER_MACHINE = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of each dimension of parallelism, and what is kept.

    chunks:          parts of the model in each stage of a pipeline.
    shard_optimizer: data-parallel ranks share the optimizer's state. overlap: they send gradients
                     and weights while they compute.
    sequence:        tensor-parallel ranks share what lies between the products of a layer.
    offload:         between updates the host holds the optimizer, and frozen models.
    recompute:       what the backward pass computes again: "none", "selective" (attention,
                     activation) or "full" (all but the input of a layer).
    """

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    data: int = 1
    chunks: int = 1
    shard_optimizer: bool = False
    overlap: bool = False
    sequence: bool = False
    offload: bool = False
    recompute: Recompute = "none"

    @property
    def model_size(self) -> int:
        """Ranks that hold one copy of the models."""
        return self.tensor * self.pipeline * self.context

    @property
    def num_sharers(self) -> int:
        """Ranks that have the same weights, and may share the optimizer."""
        return self.data * self.context

    @property
    def shares_tokens(self) -> bool:
        """Whether tensor-parallel ranks share tokens between products."""
        return self.sequence and self.tensor > 1

    @property
    def num_ranks(self) -> int:
        """Ranks in all."""
        return self.model_size * self.data

    def __str__(self) -> str:
        sizes = [f"tensor {self.tensor}", f"pipeline {self.pipeline}", f"data {self.data}"]
        if self.context > 1:
            sizes.insert(2, f"context {self.context}")
        flags = {
            f"{self.chunks} chunks": self.chunks > 1,
            "sharded optimizer": self.shard_optimizer and self.num_sharers > 1,
            "sequence": self.shares_tokens,
            "offload": self.offload,
            f"{self.recompute} recomputation": self.recompute != "none",
        }
        return ", ".join([*sizes, *(name for name, is_set in flags.items() if is_set)])


def with_data(layout: Layout, num_gpus: int, *, num_servers: int = 0) -> Layout:
    """The layout on so many GPUs, data parallel by what is left. ValueError: it does not divide
    them, or needs more.

    num_servers: GPUs among them that servers have for their own.
    """
    num_ranks = num_gpus - num_servers
    beside = f", beside {num_servers} GPUs of servers" if num_servers else ""
    sizes = f"parallel.tensor * pipeline * context = {layout.tensor} * {layout.pipeline} * "
    sizes += f"{layout.context} = {layout.model_size}"
    if num_ranks < layout.model_size:
        raise ValueError(
            f"--gpus {num_gpus} is below what one copy of the models takes, {sizes}{beside}: raise "
            "it, or lower a size"
        )
    if num_ranks % layout.model_size:
        raise ValueError(
            f"--gpus {num_gpus} is no multiple of {sizes}{beside}: change it, or one of the sizes"
        )
    return replace(layout, data=num_ranks // layout.model_size)


def check_layout(layout: Layout, shape: ModelShape) -> None:
    """ValueError for a layout that does not divide the heads or layers of a model."""
    stages = "pipeline * chunks" if layout.chunks > 1 else "pipeline"
    divided = (
        ("num_key_value_heads", shape.num_kv_heads, "tensor", layout.tensor),
        ("num_attention_heads", shape.num_heads, "tensor", layout.tensor),
        ("intermediate_size", shape.intermediate_size, "tensor", layout.tensor),
        ("num_hidden_layers", shape.num_layers, stages, layout.pipeline * layout.chunks),
    )
    for field, value, dimension, size in divided:
        if value % size:
            raise ValueError(
                f"parallel.{dimension} = {size} does not divide {field} = {value} of the model"
            )


def possible_layouts(
    shape: ModelShape, num_ranks: int, engine: EngineKind, *, like: Layout
) -> Iterator[Layout]:
    """Every split of `num_ranks` that the model and the engine allow, with the other properties of
    `like`, each with nothing, something and everything recomputed."""
    for tensor in _divisors(GPUS_PER_MACHINE if engine != "embedded" else 1):
        for pipeline in _divisors(shape.num_layers if engine == "server" else 1):
            chunks = like.chunks if pipeline > 1 else 1
            layout = replace(like, tensor=tensor, pipeline=pipeline, chunks=chunks)
            try:
                check_layout(layout, shape)
                layout = with_data(layout, num_ranks)
            except ValueError:
                continue
            for recompute in get_args(Recompute):
                yield replace(layout, recompute=recompute)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
