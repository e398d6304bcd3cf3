# SPDX-License-Identifier: Apache-2.0
"""How ranks share a batch's tokens, without ranks; what they compute is `test_ranks.py`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from satori_fast.backbone import context
from satori_fast.backbone.context import ContextPlan, Piece, plan_context
from satori_fast.backbone.parallel import ParallelState


def plans(
    size: int, ends: list[int], one_process: ParallelState, monkeypatch: pytest.MonkeyPatch
) -> list[ContextPlan]:
    found: list[ContextPlan] = []
    for rank in range(size):
        state = replace(one_process, context_size=size, context_rank=rank)
        monkeypatch.setattr(context, "parallel_state", lambda state=state: state)
        plan = plan_context(torch.tensor(ends, dtype=torch.int32))
        assert plan is not None
        found.append(plan)
    return found


def test_one_rank_has_no_plan() -> None:
    assert plan_context(torch.tensor([0, 4], dtype=torch.int32)) is None


def test_a_rank_has_a_chunk_from_the_front_and_one_from_the_back(
    one_process: ParallelState, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two ranks, 12 tokens, four chunks of 3; sequences of 5 and 7.
    first, second = plans(2, [0, 5, 12], one_process, monkeypatch)
    assert first.own.tolist() == [0, 1, 2, 9, 10, 11]
    assert second.own.tolist() == [3, 4, 5, 6, 7, 8]
    assert first.pieces == (Piece((0, 3), (0, 3)), Piece((3, 6), (5, 12)))
    # The second sequence begins inside what the second rank has.
    assert second.pieces == (Piece((0, 2), (0, 5)), Piece((2, 6), (5, 9)))
    # The same for kernels that take lengths.
    assert second.keys.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert second.cu_queries.tolist() == [0, 2, 6] and second.cu_keys.tolist() == [0, 5, 9]
    assert second.longest == (4, 5) and first.longest == (3, 7)
    assert torch.equal(first.order, torch.cat([first.own, second.own]))
    assert first.order[first.places].tolist() == list(range(12))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_query_sees_its_sequence_up_to_itself(
    size: int, one_process: ParallelState, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = [0, 1, 8, 9, 24]
    seen: list[tuple[int, int]] = []
    for plan in plans(size, ends, one_process, monkeypatch):
        for piece in plan.pieces:
            own = plan.own[slice(*piece.queries)].tolist()
            # The last query sees all keys of the piece, and each before it one fewer.
            last = range(piece.keys[1] - len(own), piece.keys[1])
            assert own == list(last)
            seen += [(token, piece.keys[0]) for token in own]
    assert sorted(seen) == [
        (token, max(end for end in ends if end <= token)) for token in range(24)
    ]
    # A token sees as many keys as stand before it, and itself: as much work on each rank.
    shares = plans(size, [0, 24], one_process, monkeypatch)
    assert len({int((plan.own + 1).sum()) for plan in shares}) == 1
