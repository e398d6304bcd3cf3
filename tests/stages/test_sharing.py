# SPDX-License-Identifier: Apache-2.0
"""Two ranks get what one would: from replicas of their own, or from one engine that they share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, ClassVar

import pytest

from satori_fast.grading import GradingPool
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rollout.engine import Request, SamplingParams, collect, request_seed
from satori_fast.stages.sharing import SharedGrader, collect_shared, generate_shared
from tests.rollout.scripted_engine import ScriptedEngine
from tests.rollout.test_engine import PROBLEMS, RENDERER, RESPONSES

SAMPLING = SamplingParams(num_samples=2, seed=3)


class SharedEngine(ScriptedEngine):
    is_shared: ClassVar[bool] = True


class Rank:
    """A data-parallel rank that is a thread of this process: the part of `ParallelState` that
    sharing uses. board: what each rank says, the same list for all."""

    def __init__(self, data_rank: int, board: list[Any], barrier: Barrier) -> None:
        self.data_rank, self.data_size = data_rank, len(board)
        self._board, self._barrier = board, barrier

    def all_gather(self, value: Any) -> list[Any]:
        self._board[self.data_rank] = value
        self._barrier.wait()
        gathered = list(self._board)
        self._barrier.wait()
        return gathered

    def from_main(self, action: Callable[[], Any]) -> Any:
        return self.all_gather(action() if self.data_rank == 0 else None)[0]


def on_ranks(action: Callable[[Any], Any], size: int = 2) -> list[Any]:
    """What `action` returns on each of `size` ranks."""
    board, barrier = [None] * size, Barrier(size, timeout=20)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(action, [Rank(r, board, barrier) for r in range(size)]))


@pytest.mark.parametrize(
    ("kind", "asked"), [(ScriptedEngine, [2, 4]), (SharedEngine, [6, 0])], ids=["own", "shared"]
)
def test_ranks_share_the_problems_or_the_engine(kind: type, asked: list[int]) -> None:
    engines = [kind(RENDERER, RESPONSES) for _ in range(2)]
    results = on_ranks(
        lambda rank: collect_shared(
            engines[rank.data_rank], PROBLEMS, SAMPLING, parallel=rank, spans=SpanRecorder()
        )
    )
    alone = collect(ScriptedEngine(RENDERER, RESPONSES), PROBLEMS, SAMPLING)
    for result in results:
        assert [t.tokens.tolist() for t in result.trajectories] == [
            t.tokens.tolist() for t in alone.trajectories
        ]
        assert [t.group_id for t in result.trajectories] == [0, 0, 1, 1, 2, 2]
        assert result.num_generated_tokens == alone.num_generated_tokens
    assert [len(engine.requests) for engine in engines] == asked


@pytest.mark.parametrize(
    ("kind", "asked"), [(ScriptedEngine, [2, 1]), (SharedEngine, [3, 0])], ids=["own", "shared"]
)
def test_requests_are_answered_in_order_on_every_rank(kind: type, asked: list[int]) -> None:
    engines = [kind(RENDERER, RESPONSES) for _ in range(2)]
    requests = [
        Request(tuple(RENDERER.prompt_ids(p)), 9, (RENDERER.eos_id,), request_seed(0, i, 0))
        for i, p in enumerate(PROBLEMS)
    ]
    results = on_ranks(
        lambda rank: generate_shared(engines[rank.data_rank], requests, SAMPLING, parallel=rank)
    )
    for completions in results:
        texts = [RENDERER.decode(c.tokens.tolist()[:-1]) for c in completions]
        assert texts == ["p", "q <|reflect|> q", "over <|explore|> less"]
    assert [len(engine.requests) for engine in engines] == asked


def test_verdicts_are_the_same_on_every_rank() -> None:
    pairs = [("the answer is \\boxed{1}", "1"), ("\\boxed{2}", "1"), ("\\boxed{3}", "3")]
    with GradingPool(num_workers=0) as pool:
        for verdicts in on_ranks(lambda rank: SharedGrader(pool, rank).grade_many(pairs)):
            assert [v.correct for v in verdicts] == [True, False, True]


def test_an_engine_of_the_trainers_process_has_no_life_of_its_own() -> None:
    engine = ScriptedEngine(RENDERER, RESPONSES)
    assert not engine.is_shared and not engine.can_restart
    with pytest.raises(RuntimeError, match="ScriptedEngine lives and dies with the trainer"):
        engine.restart()
