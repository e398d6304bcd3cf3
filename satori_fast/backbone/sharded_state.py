# SPDX-License-Identifier: Apache-2.0
"""Parts of a learner that a rank holds, as rectangles of the whole model's tensors; files of them.

A checkpoint knows whole tensors by name and no layout: a parameter that tensor parallelism cut, or
a moment of which the distributed optimizer holds a flat range, is a few rectangles of one. Torch's
distributed checkpoints write and read rectangles, so any layout loads what any other one wrote.

Folders, digests and when to save: `checkpoint.py`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state as mpu
from torch import Tensor
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_global_save_plan,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.step import Learner
from satori_fast.backbone.weight_table import EMBEDDING, Entry, Layout, table
from satori_fast.backbone.weights import global_parameters

# What a rank wrote: which rectangles, and where they lie in its files.
Written = tuple[list[WriteItem], list[Any]]
_NUM_STEPS = "optimizer.num_steps"


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of a whole tensor, and the memory where this rank holds it.

    name, whole: of the tensor in the checkpoint, and its shape.
    offset:      of the rectangle in it; its size is the shape of `tensor`.
    share:       (k, n): of the n ranks that hold it, this one writes the k-th share of its rows;
                 None where other ranks write it.
    """

    name: str
    whole: tuple[int, ...]
    offset: tuple[int, ...]
    tensor: Tensor
    share: tuple[int, int] | None = (0, 1)

    @property
    def chunk(self) -> ChunkStorageMetadata:
        """The rectangle in torch's words."""
        return ChunkStorageMetadata(torch.Size(self.offset), self.tensor.shape)

    def written(self) -> Piece | None:
        """The share that this rank writes; None where there is nothing in it."""
        if self.share is None:
            return None
        number, count = self.share
        rows = self.tensor.shape[0]
        begin, end = rows * number // count, rows * (number + 1) // count
        offset = (self.offset[0] + begin, *self.offset[1:])
        return Piece(self.name, self.whole, offset, self.tensor[begin:end]) if end > begin else None


def pieces(learner: Learner) -> list[Piece]:
    """All that this rank holds of a learner: parameters, and with an optimizer its state.

    The tensors share memory with the learner: what is copied into them is loaded. The number of
    steps is the exception, see `load_pieces`.
    """
    entries = {entry.name: entry for entry in table(learner.hf_config, learner.module.kind)}
    parameters = global_parameters(learner.modules)
    found: list[Piece] = []
    for name, parameter in parameters.items():
        everything = range(parameter.numel())
        found += _of_range("model", entries[name], parameter.detach(), everything, parameter.shape)
    if learner.optimizer is None:
        return found
    names = {parameter: name for name, parameter in parameters.items()}
    sharded = learner.optimizer.is_sharded
    for parameter, held, tensors in learner.optimizer.adam_state():
        entry = entries[names[parameter]]
        for key, tensor in tensors.items():
            found += _of_range(
                f"adam.{key}", entry, tensor, held, parameter.shape, is_alone=sharded
            )
    num_steps = torch.tensor([learner.optimizer.num_steps])
    found.append(
        Piece(_NUM_STEPS, (1,), (0,), num_steps, (0, 1) if parallel_state().is_main else None)
    )
    return found


def _of_range(
    prefix: str,
    entry: Entry,
    tensor: Tensor,
    held: range,
    shape: torch.Size,
    *,
    is_alone: bool = False,
) -> Iterator[Piece]:
    """The pieces in `tensor`: the numbers `held`, counted row by row, of this rank's part, of
    `shape`, of a parameter.

    is_alone: no other data-parallel rank holds them.
    """
    state = parallel_state()
    # The copy of a tied embedding is read from the embedding, which its own stage writes.
    name = f"{prefix}.{EMBEDDING if entry.is_copy else entry.name}"
    is_first = state.tensor_rank == 0 or entry.layout.axis is not None
    share = (0, 1) if is_alone else (_replica_rank(), _num_replicas())
    if entry.is_copy or not is_first:
        share = None
    whole = entry.shape
    columns = shape[1] if len(shape) == 2 else 1
    flat = tensor.reshape(-1)
    for begin, (row, column, height, width) in _rectangles(held, columns):
        block = flat[begin : begin + height * width].view(height, width)
        for local, place, size in _places(entry.layout, shape, whole, state.tensor_rank):
            # The part of this rectangle that lies in this block of rows.
            top, bottom = max(row, local), min(row + height, local + size)
            if bottom <= top:
                continue
            rows = block[top - row : bottom - row]
            offset = (place[0] + top - local, place[1] + column)
            if len(shape) == 1:
                yield Piece(name, whole, offset[:1], rows.view(-1), share)
            else:
                yield Piece(name, whole, offset, rows, share)


def _rectangles(held: range, columns: int) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """(begin in the range, (row, column, height, width)) of the at most three rectangles that a
    range of numbers is in a matrix: the end of a row, whole rows, the begin of a row."""
    at = held.start
    while at < held.stop:
        row, column = divmod(at, columns)
        whole_rows = (held.stop - at) // columns if column == 0 else 0
        height = max(1, whole_rows)
        width = columns if whole_rows else min(columns - column, held.stop - at)
        yield at - held.start, (row, column, height, width)
        at += height * width


def _places(
    layout: Layout, shape: torch.Size, whole: tuple[int, ...], rank: int
) -> Iterator[tuple[int, tuple[int, int], int]]:
    """(first row here, (row, column) in the whole tensor, number of rows) of each block of rows.

    Rows that pad the vocabulary are in no block: they are zero for ever.
    """
    if layout.axis == 1:
        yield 0, (0, rank * shape[1]), shape[0]
        return
    rank = rank if layout.axis == 0 else 0
    rows, period = shape[0] // layout.num_blocks, whole[0] // layout.num_blocks
    for block in range(layout.num_blocks):
        begin = block * period + rank * rows
        yield block * rows, (begin, 0), min(rows, whole[0] - begin)


def _num_replicas() -> int:
    return mpu.get_data_parallel_world_size(with_context_parallel=True)


def _replica_rank() -> int:
    return mpu.get_data_parallel_rank(with_context_parallel=True)


class _Writer(DefaultSavePlanner):
    """Hands out the tensors of write items."""

    def __init__(self, own: Sequence[Piece]) -> None:
        super().__init__()
        self._tensors = {MetadataIndex(piece.name, piece.offset): piece.tensor for piece in own}

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._tensors[write_item.index].contiguous()


def write_pieces(folder: str | os.PathLike[str], own: Sequence[Piece]) -> Written:
    """Write pieces, as `Piece.written` gives them, to this rank's file in `folder`. No other rank
    takes part, and it may run in a thread."""
    items = [
        WriteItem(
            index=MetadataIndex(piece.name, piece.offset),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=piece.chunk,
                properties=TensorProperties(dtype=piece.tensor.dtype),
                size=torch.Size(piece.whole),
            ),
        )
        for piece in own
    ]
    writer = FileSystemWriter(folder)
    writer.set_up_storage_writer(False, rank=parallel_state().rank, use_collectives=False)
    plan = writer.prepare_local_plan(SavePlan(items))
    return items, writer.write_data(plan, _Writer(own)).wait()


def write_index(folder: str | os.PathLike[str], written: Sequence[Written]) -> None:
    """Write the index of what all ranks wrote; one process alone. It ends the writing."""
    _, metadata = create_default_global_save_plan([SavePlan(items) for items, _ in written])
    for name, found in metadata.state_dict_metadata.items():
        assert isinstance(found, TensorStorageMetadata)
        volume = sum(math.prod(chunk.sizes) for chunk in found.chunks)
        assert volume == math.prod(found.size), f"{name}: {volume} numbers of {found.size}"
    FileSystemWriter(folder).finish(metadata, [results for _, results in written])


class _Reader(DefaultLoadPlanner):
    """Asks for what pieces need, and has it copied into them."""

    def __init__(self, wanted: Sequence[Piece]) -> None:
        super().__init__()
        self._wanted = {(piece.name, piece.offset): piece for piece in wanted}

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        items: list[ReadItem] = []
        for piece in self._wanted.values():
            found = _found(self.metadata, piece)
            # Torch names a read by the offset of where it goes: one rectangle at a time.
            items += create_read_items_for_chunk_list(piece.name, found, [piece.chunk])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self._wanted[index.fqn, tuple(index.offset)].tensor


def _found(metadata: Metadata, piece: Piece) -> TensorStorageMetadata:
    found = metadata.state_dict_metadata.get(piece.name)
    if not isinstance(found, TensorStorageMetadata):
        raise ValueError(f"it holds no tensor {piece.name}, which this model has")
    if tuple(found.size) != piece.whole:
        raise ValueError(
            f"tensor {piece.name} has shape {tuple(found.size)} there and {piece.whole} here: it is"
            " of another model"
        )
    return found


def load_pieces(folder: str | os.PathLike[str], learner: Learner) -> None:
    """Load a learner in place from what any layout wrote. Each rank reads for itself.

    ValueError, naming the tensor, for a checkpoint of another model.
    """
    learner.is_copied.wait()
    wanted = pieces(learner)
    reader, planner = FileSystemReader(folder), _Reader(wanted)
    metadata = reader.read_metadata()
    planner.set_up_planner({}, metadata)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    reader.read_data(plan, planner).wait()
    if learner.optimizer is not None:
        learner.optimizer.take_steps(int(wanted[-1].tensor))
