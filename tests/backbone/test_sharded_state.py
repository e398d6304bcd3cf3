# SPDX-License-Identifier: Apache-2.0
"""Rectangles of whole tensors: that those of any layout tile them, and what is read is in place.

Whole checkpoints are `test_checkpoint.py`, layouts over real ranks `test_ranks.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from satori_fast.backbone import sharded_state
from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.parallel import ParallelState
from satori_fast.backbone.sharded_state import (
    Piece,
    _of_range,
    _rectangles,
    load_pieces,
    pieces,
    write_index,
    write_pieces,
)
from satori_fast.backbone.step import build_learner, update
from satori_fast.backbone.weight_table import Geometry, table
from tests.tiny_models import ImitationLoss, ones, random_batch, tiny_model


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (range(0, 12), [(0, (0, 0, 3, 4))]),
        (range(2, 11), [(0, (0, 2, 1, 2)), (2, (1, 0, 1, 4)), (6, (2, 0, 1, 3))]),
        (range(5, 7), [(0, (1, 1, 1, 2))]),
        (range(4, 4), []),
    ],
)
def test_a_range_of_a_matrix_is_at_most_three_rectangles(
    held: range, expected: list[tuple[int, tuple[int, int, int, int]]]
) -> None:
    assert list(_rectangles(held, columns=4)) == expected


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_flat_ranges_of_all_ranks_tile_every_tensor(
    name: str, tensor: int, one_process: ParallelState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the distributed optimizer cuts: ranges know no rows. Numbers are those of the whole."""
    config = tiny_model(name).config
    geometry = Geometry.of(config, tensor)
    for entry in table(config, "policy"):
        full = torch.arange(float(sum(torch.Size(s).numel() for _, s in entry.hf)))
        full = full.view(entry.shape)
        padded = full
        if entry.name.endswith(("embeddings.weight", "output_layer.weight")):
            padded = entry.layout.merge([full], geometry)
        seen = torch.full_like(full, -1.0)
        for rank in range(tensor):
            state = replace(one_process, tensor_size=tensor, tensor_rank=rank)
            monkeypatch.setattr(sharded_state, "parallel_state", lambda state=state: state)
            local = entry.layout.shard(padded, tensor, rank)
            third = -(-local.numel() // 3)
            for start in range(0, local.numel(), third):
                held = range(start, min(start + third, local.numel()))
                flat = local.reshape(-1)[held.start : held.stop]
                for piece in _of_range("model", entry, flat, held, local.shape, is_alone=True):
                    assert piece.whole == tuple(full.shape)
                    sizes = zip(piece.offset, piece.tensor.shape, strict=True)
                    place = tuple(slice(begin, begin + size) for begin, size in sizes)
                    if piece.share is not None:
                        assert (seen[place] == -1).all(), entry.name
                        seen[place] = piece.tensor
                    else:
                        assert torch.equal(full[place], piece.tensor)
        assert torch.equal(seen, full), entry.name


def test_replicas_share_the_writing() -> None:
    rows = torch.arange(5.0)[:, None]
    shares = [Piece("x", (5, 1), (0, 0), rows, (k, 3)).written() for k in range(3)]
    assert [share and (share.offset[0], share.tensor.flatten().tolist()) for share in shares] == [
        (0, [0.0]),
        (1, [1.0, 2.0]),
        (3, [3.0, 4.0]),
    ]
    assert Piece("x", (1, 1), (0, 0), rows[:1], (0, 2)).written() is None
    assert Piece("x", (5, 1), (0, 0), rows, None).written() is None


def test_after_loading_every_parameter_counts_its_own_steps(tmp_path: Path) -> None:
    """Megatron's own way leaves all of them one count, which then runs ahead."""
    settings = OptimizerSettings(learning_rate=1e-3)
    config = tiny_model("qwen2", num_hidden_layers=1).config
    learner, other = (build_learner(config, optimizer=settings, seed=seed) for seed in (0, 1))
    batches = [random_batch([5, 7])]
    for _ in range(3):
        update(learner, None, batches, ones(batches), ImitationLoss())
    own = [share for piece in pieces(learner) if (share := piece.written()) is not None]
    write_index(tmp_path, [write_pieces(tmp_path, own)])
    load_pieces(tmp_path, other)
    assert other.optimizer is not None and other.optimizer.num_steps == 3
    (adam,) = other.optimizer.megatron.chained_optimizers
    counts = [state["step"] for state in adam.optimizer.state.values()]
    assert len({count.data_ptr() for count in counts}) == len(counts)
    update(other, None, batches, ones(batches), ImitationLoss())
    assert {float(count) for count in counts} == {4.0}
