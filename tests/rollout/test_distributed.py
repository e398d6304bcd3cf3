# SPDX-License-Identifier: Apache-2.0
"""Two ranks get what one would: from replicas of their own, or from one engine that they share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rollout.distributed import Distributed, shares
from satori_fast.rollout.engine import Request, SamplingParams, collect, request_seed
from tests.rollout.scripted_engine import ScriptedEngine
from tests.rollout.test_engine import PROBLEMS, RENDERER, RESPONSES

SAMPLING = SamplingParams(num_samples=2, seed=3)


class SharedEngine(ScriptedEngine):
    is_shared = True


class Rank:
    """Implements `rollout.distributed.Ranks` for a rank that is a thread of this process.

    board: what each rank says, the same list for all.
    """

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

    def on_main(self, action: Callable[[], object]) -> None:
        self.from_main(action)

    def any_rank(self, flag: bool) -> bool:
        return any(self.all_gather(flag))


def on_ranks(action: Callable[[Any], Any], size: int = 2) -> list[Any]:
    """What `action` returns on each of `size` ranks."""
    board, barrier = [None] * size, Barrier(size, timeout=20)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(action, [Rank(r, board, barrier) for r in range(size)]))


@pytest.mark.parametrize(
    ("kind", "asked"), [(ScriptedEngine, [4, 2]), (SharedEngine, [6, 0])], ids=["own", "shared"]
)
def test_ranks_share_the_requests_or_the_engine(kind: type, asked: list[int]) -> None:
    engines = [kind(RENDERER, RESPONSES) for _ in range(2)]
    results = on_ranks(
        lambda rank: collect(
            Distributed(engines[rank.data_rank], rank, SpanRecorder()), PROBLEMS, SAMPLING
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


def test_completions_come_in_order_on_every_rank() -> None:
    engines = [ScriptedEngine(RENDERER, RESPONSES) for _ in range(2)]
    requests = [
        Request(tuple(RENDERER.prompt_ids(p)), 9, (RENDERER.eos_id,), request_seed(0, i, 0))
        for i, p in enumerate(PROBLEMS)
    ]
    results = on_ranks(
        lambda rank: list(
            Distributed(engines[rank.data_rank], rank, SpanRecorder()).generate(requests, SAMPLING)
        )
    )
    for completions in results:
        assert [index for index, _ in completions] == [0, 1, 2]
        texts = [RENDERER.decode(c.tokens.tolist()[:-1]) for _, c in completions]
        assert texts == ["p", "q <|reflect|> q", "over <|explore|> less"]


def test_siblings_stay_together() -> None:
    prompts = [(1,), (1,), (2,), (3,), (3,), (3,), (1,)]
    requests = [Request(prompt, 1, (0,), seed) for seed, prompt in enumerate(prompts)]
    assert shares(requests, 2) == [[0, 1, 3, 4, 5], [2, 6]]
    assert shares(requests, 5) == [[0, 1], [2], [3, 4, 5], [6], []]
    assert shares([], 2) == [[], []]


def test_alone_completions_come_as_they_finish() -> None:
    engine = ScriptedEngine(RENDERER, RESPONSES)
    rank = Rank(0, [None], Barrier(1))
    requests = [Request(tuple(RENDERER.prompt_ids(p)), 9, (RENDERER.eos_id,), 0) for p in PROBLEMS]
    wrapped = Distributed(engine, rank, SpanRecorder())
    assert [index for index, _ in wrapped.generate(requests, SAMPLING)] == [2, 1, 0]
    assert (wrapped.max_seqlen, wrapped.renderer) == (engine.max_seqlen, RENDERER)
    wrapped.policy_version = 3
    assert engine.policy_version == 3


def test_an_engine_of_the_trainers_process_has_no_life_of_its_own() -> None:
    engine = ScriptedEngine(RENDERER, RESPONSES)
    assert not engine.is_shared and not engine.can_restart
    with pytest.raises(RuntimeError, match="ScriptedEngine lives and dies with the trainer"):
        engine.restart()
