# SPDX-License-Identifier: Apache-2.0
"""An engine that dies: started again with the weights of last time, and asked again."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence

import pytest

from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.rollout.engine import Completion, EngineDied, Request, SamplingParams
from satori_fast.rollout.restarting import Restarting
from satori_fast.rollout.server_engine import IdleEngine, ServerSettings
from satori_fast.rollout.weight_sync import NamedTensor
from satori_fast.termination import Terminated, deferred, sigterm_handled
from tests.rollout.scripted_engine import ScriptedEngine
from tests.rollout.test_embedded_engine import renderer
from tests.rollout.test_engine import RENDERER, RESPONSES

SAMPLING = SamplingParams()


class NoWeights:
    """A model without a parameter."""

    def served_weights(self) -> Iterator[NamedTensor]:
        return iter(())


class Mortal(IdleEngine):
    """Dies as often as `deaths` says, when it samples or, with `dies_at_sync`, when it is synced.

    log: what happened to it.
    """

    def __init__(
        self, deaths: int, *, dies_at_sync: bool = False, ends_process: bool = False
    ) -> None:
        super().__init__(ServerSettings(), renderer=renderer())
        self.deaths = deaths
        self.dies_at_sync = dies_at_sync
        self.ends_process = ends_process
        self.log: list[str] = []

    def begin(self, version: int) -> None:
        if self.dies_at_sync:
            self._live()
        self.log.append(f"push {version}")

    def restart(self) -> None:
        self.log.append("restart")

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        if self.ends_process:
            os.kill(os.getpid(), signal.SIGTERM)
        self._live()
        self.log.append("work")
        yield from ()

    def _live(self) -> None:
        if self.deaths:
            self.deaths -= 1
            raise EngineDied("killed")


def synced(engine: Mortal, limit: int) -> Restarting:
    """The engine with version 7 in it."""
    wrapped = Restarting(engine, initialize_parallel(seed=0), max_restarts=limit)
    wrapped.sync(NoWeights(), version=7)
    return wrapped


def test_work_is_repeated_on_a_fresh_engine_with_the_weights_of_last_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Mortal(deaths=2)
    wrapped = synced(engine, limit=3)
    with caplog.at_level(logging.WARNING):
        assert list(wrapped.generate([], SAMPLING)) == []
    assert engine.log == ["push 7", "restart", "push 7", "restart", "push 7", "work"]
    assert wrapped.policy_version == engine.policy_version == 7
    assert wrapped.metrics() == {"rollout/engine_restarts": 2.0}
    assert caplog.text.count("is started again: killed") == 2


def test_deaths_in_a_row_have_a_limit_and_success_starts_a_new_count() -> None:
    engine = Mortal(deaths=2)
    wrapped = synced(engine, limit=2)
    list(wrapped.generate([], SAMPLING))
    engine.deaths = 2
    list(wrapped.generate([], SAMPLING))
    engine.deaths = 3
    with pytest.raises(
        EngineDied, match=r"died 3 times in a row .*max_engine_restarts = 2.*killed"
    ):
        list(wrapped.generate([], SAMPLING))
    assert wrapped.num_restarts == 6


def test_an_engine_that_a_scheduler_ended_too_is_not_started_again() -> None:
    engine = Mortal(deaths=1, ends_process=True)
    wrapped = synced(engine, limit=3)
    ended = pytest.raises(Terminated, match="and the rollout engine with it")
    with ended, sigterm_handled(), deferred():
        list(wrapped.generate([], SAMPLING))
    assert engine.log == ["push 7"]


def test_an_engine_that_dies_during_a_sync_is_synced_again() -> None:
    engine = Mortal(deaths=0)
    wrapped = synced(engine, limit=1)
    engine.deaths, engine.dies_at_sync = 1, True
    report = wrapped.sync(NoWeights(), version=8)
    assert report.version == 8 and wrapped.policy_version == 8
    assert engine.log == ["push 7", "restart", "push 8"]


def test_an_engine_of_this_process_is_asked_once_and_counts_nothing() -> None:
    wrapped = Restarting(
        ScriptedEngine(RENDERER, RESPONSES), initialize_parallel(seed=0), max_restarts=3
    )
    assert wrapped.sync(NoWeights(), version=2).num_tensors == 0
    assert wrapped.policy_version == 2 and wrapped.metrics() == {}
