# SPDX-License-Identifier: Apache-2.0
"""A vLLM server as the engine: samples of the embedded engine, syncs that cannot fail quietly.

One server of tied and one of untied embeddings serve all tests; each test connects anew.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.step import Learner, build_learner
from satori_fast.config import RolloutConfig
from satori_fast.experience.partial import PartialRollouts
from satori_fast.rollout import weight_sync
from satori_fast.rollout.engine import Completion, EngineDied, Request, SamplingParams
from satori_fast.rollout.server_client import ServerClient
from satori_fast.rollout.server_engine import (
    IdleEngine,
    ServerEngine,
    ServerSettings,
    check_same_kind,
)
from satori_fast.rollout.server_owner import SECRET_VARIABLE
from satori_fast.rollout.server_process import ServerCommand, ServerProcess
from satori_fast.rollout.server_routes import BroadcastRoute, FileRoute, MemoryRoute, Route
from satori_fast.rollout.weight_sync import SyncError, TensorRecord, push_weights
from satori_fast.rollout.weight_transfer import TransferRoute
from satori_fast.stages.engines import server_flags, write_engine_folder
from satori_fast.types import Problem
from tests.rollout.held_clock import HeldClock
from tests.rollout.test_embedded_engine import engine_of, random_requests, renderer
from tests.tiny_models import tiny_model

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make setup-vllm"
)
real = [pytest.mark.vllm, pytest.mark.slow, needs_vllm]
GREEDY = SamplingParams(temperature=0)
ROLLOUT = RolloutConfig(engine="server", max_seqlen=96, max_slots=4)
ROUTES = ["memory", "file", "broadcast"]


@pytest.fixture(autouse=True)
def one_process() -> None:
    initialize_parallel(seed=0)


def policy_of(*, tied: bool, seed: int = 0) -> Learner:
    # vLLM's CPU attention wants heads of 32 numbers or more.
    model = tiny_model(
        "qwen2", num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return build_learner(model.config, weights=model.state_dict())


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, bool]]:
    """A running server, and whether its embeddings are tied. Its secret is in the environment, as
    for one that a person started."""
    initialize_parallel(seed=0)
    folder = tmp_path_factory.mktemp("server")
    policy = policy_of(tied=request.param)
    write_engine_folder(folder / "engine", policy.hf_config, renderer(), dtype="float32")
    flags = server_flags(ROLLOUT, dtype="float32")
    process = ServerProcess(ServerCommand(folder / "engine", folder / "engine.log", flags))
    process.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SECRET_VARIABLE, process.secret)
        yield process, request.param
    process.close()


@contextmanager
def connected(process: ServerProcess, **settings: Any) -> Iterator[ServerEngine]:
    """An engine on a running server; it leaves the server as it is."""
    defaults = {"max_seqlen": 96, "max_slots": 4, "bucket_bytes": 2**16, "timeout_s": 60.0}
    engine = ServerEngine(
        [process.url], ServerSettings(**(defaults | settings)), renderer=renderer()
    )
    try:
        yield engine
    finally:
        engine.close()


def requests(new_tokens: int = 20) -> list[Request]:
    return random_requests((3, 17, 9, 9, 30, 1, 60), new_tokens=new_tokens, stop=(7,))


def sample(engine: Any, sampling: SamplingParams = GREEDY) -> list[Completion]:
    done = dict(engine.generate(requests(), sampling))
    return [done[i] for i in range(len(requests()))]


def tokens(completions: Sequence[Completion]) -> list[list[int]]:
    return [completion.tokens.tolist() for completion in completions]


class Tampering:
    """A route that hands `change`d buckets on."""

    def __init__(self, route: Route, change: Callable[[list[Any], list[Tensor]], Any]) -> None:
        self._route, self._change = route, change
        self.open, self.close = route.open, route.close

    def send(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        self._route.send(*self._change(list(records), list(tensors)))


def tamper(engine: ServerEngine, change: Callable[[list[Any], list[Tensor]], Any]) -> None:
    engine._route = Tampering(engine._choose_route(), change)


class TestServer:
    pytestmark = real

    @pytest.mark.parametrize("route", ROUTES)
    def test_greedy_after_syncs_equals_the_embedded_engine(
        self, served: tuple[ServerProcess, bool], route: str
    ) -> None:
        process, tied = served
        with connected(process, route=route) as engine:
            for version, seed in enumerate((0, 1, 2, 1)):
                policy = policy_of(tied=tied, seed=seed)
                report = push_weights(policy.hf_weights(), engine, version=version)
                got, want = sample(engine), sample(engine_of(policy))
                assert tokens(got) == tokens(want)
                assert [c.finish for c in got] == [c.finish for c in want]
                for a, b in zip(got, want, strict=True):
                    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
            assert engine.policy_version == report.version == 3
            assert report.num_tensors == len(list(policy.hf_weights()))

    def test_samples_belong_to_requests_and_report_their_temperature(
        self, served: tuple[ServerProcess, bool]
    ) -> None:
        process, tied = served
        warm = SamplingParams(temperature=0.7)
        policy = policy_of(tied=tied)
        with connected(process) as engine:
            push_weights(policy.hf_weights(), engine, version=0)
            first = sample(engine, warm)
            again = dict(engine.generate(requests()[::-1], warm))
            assert tokens(first) == tokens([again[i] for i in reversed(range(len(first)))])
            assert tokens(first) != tokens(sample(engine))
            cool = sample(engine, SamplingParams(temperature=0.1))
            assert np.mean([c.logprobs.mean() for c in cool]) > np.mean(
                [c.logprobs.mean() for c in first]
            )

    def test_closing_early_aborts_and_a_sync_may_follow(
        self, served: tuple[ServerProcess, bool]
    ) -> None:
        process, tied = served
        policy = policy_of(tied=tied)
        with connected(process) as engine:
            push_weights(policy.hf_weights(), engine, version=0)
            many = random_requests((3,) * 40, new_tokens=90)
            samples = engine.generate(many, SamplingParams(temperature=1.0))
            next(samples)
            samples.close()  # pyright: ignore[reportAttributeAccessIssue]
            push_weights(policy.hf_weights(), engine, version=1)
            assert tokens(sample(engine)) == tokens(sample(engine_of(policy)))

    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize("fault", ["changed", "dropped", "never sent", "late"])
    def test_a_faulty_sync_names_the_tensor_and_a_good_one_mends_it(
        self,
        served: tuple[ServerProcess, bool],
        route: str,
        fault: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        process, tied = served
        policy = policy_of(tied=tied, seed=1)
        weights = dict(policy.hf_weights())
        name = "model.layers.1.self_attn.k_proj.weight"
        clock = HeldClock()
        monkeypatch.setattr(weight_sync, "time", clock)
        with connected(process, route=route) as engine:

            def change(records: list[TensorRecord], tensors: list[Tensor]) -> Any:
                kept = [r.name != name for r in records]
                if fault == "changed" and not all(kept):
                    at = kept.index(False)
                    tensors[at] = tensors[at].clone()
                    tensors[at].view(-1)[3] += 1e-6
                elif fault == "dropped":
                    records = [r for r, keep in zip(records, kept, strict=True) if keep]
                    tensors = [t for t, keep in zip(tensors, kept, strict=True) if keep]
                return records, tensors

            sent = {n: t for n, t in weights.items() if fault != "never sent" or n != name}
            making = clock.delayed(sent.items(), name, 61.0 if fault == "late" else 0.0)
            tamper(engine, change)
            # A tensor that nobody sent is known by the layer that it left unfilled.
            named = "layers.1.self_attn.qkv_proj" if fault == "never sent" else name
            with pytest.raises(SyncError, match=named) as caught:
                push_weights(making, engine, version=1)
            assert fault == "late" or "engine rank 0" in str(caught.value)
            with pytest.raises(SyncError, match="push_weights first"):
                sample(engine)
        with connected(process, route=route) as engine:
            push_weights(weights.items(), engine, version=2)
            assert tokens(sample(engine)) == tokens(sample(engine_of(policy)))

    def test_a_broadcast_that_stalls_is_an_error_on_both_sides(
        self, served: tuple[ServerProcess, bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process, tied = served
        policy = policy_of(tied=tied)
        with connected(process, route="broadcast", timeout_s=15.0) as engine:
            push_weights(policy.hf_weights(), engine, version=0)
            route = engine._route
            assert isinstance(route, BroadcastRoute)
            group = route._groups[0][1]
            send = group.broadcast

            def after_the_others_gave_up(*args: Any, give_up: Callable[[], bool]) -> None:
                while not give_up():
                    time.sleep(0.1)
                send(*args, give_up=give_up)

            monkeypatch.setattr(group, "broadcast", after_the_others_gave_up)
            match = r"rank 1 could not receive tensor 'model\.embed.*sync_timeout_s = 15.*rank 0 of"
            with pytest.raises(SyncError, match=match):
                push_weights(policy.hf_weights(), engine, version=1)
            monkeypatch.undo()
            push_weights(policy.hf_weights(), engine, version=2)
            assert tokens(sample(engine)) == tokens(sample(engine_of(policy)))

    def test_a_partial_rollout_goes_on_over_syncs(self, served: tuple[ServerProcess, bool]) -> None:
        process, tied = served
        problems = [Problem("a", "w3 w9 w4", "1"), Problem("b", "w5 w2 w7 w7 w1", "2")]
        sampling = SamplingParams(temperature=0, max_new_tokens=15)
        remote, local = PartialRollouts(6), PartialRollouts(6)
        with connected(process) as engine:
            for version, seed in enumerate((0, 1, 2)):
                policy = policy_of(tied=tied, seed=seed)
                push_weights(policy.hf_weights(), engine, version=version)
                own = engine_of(policy)
                own.policy_version = version
                new = [] if version else problems
                got = remote.collect(engine, new, sampling)
                want = local.collect(own, new, sampling)
                assert len(got.trajectories) == (0 if version < 2 else 2)
        for a, b in zip(got.trajectories, want.trajectories, strict=True):
            assert a.tokens.tolist() == b.tokens.tolist()
            assert a.versions is not None and a.versions.tolist() == [0] * 6 + [1] * 6 + [2] * 3
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)

    def test_another_trainer_on_the_same_server_is_found_out(
        self, served: tuple[ServerProcess, bool]
    ) -> None:
        process, tied = served
        weights = dict(policy_of(tied=tied).hf_weights())
        with connected(process, run_name="mine") as mine:
            push_weights(weights.items(), mine, version=0)
            with (
                pytest.raises(ValueError, match=r"is used by run 'mine' on .*\(pid \d+\)"),
                connected(process, run_name="other"),
            ):
                pytest.fail("two owners")
            assert len(sample(mine)) == len(requests())
            # After a silence it may be taken, and the first trainer is told by whom.
            with connected(process, run_name="other", lease_s=0.0) as other:
                with pytest.raises(SyncError, match="is used by run 'other'"):
                    push_weights(weights.items(), mine, version=1)
                push_weights(weights.items(), other, version=0)
                with pytest.raises(SyncError, match="push_weights first"):
                    sample(mine)
                assert len(sample(other)) == len(requests())

    def test_a_message_without_the_servers_secret_is_refused(
        self, served: tuple[ServerProcess, bool]
    ) -> None:
        stranger = ServerClient(served[0].url, 30.0, secret="guessed")
        with pytest.raises(SyncError, match=f"another secret.*{SECRET_VARIABLE}"):
            stranger.message("describe")

    def test_a_server_that_does_not_fit_is_refused(
        self, served: tuple[ServerProcess, bool]
    ) -> None:
        with (
            pytest.raises(ValueError, match="must be started with --max-model-len 500"),
            connected(served[0], max_seqlen=500),
        ):
            pass

    def test_filters_are_refused(self, served: tuple[ServerProcess, bool]) -> None:
        process, tied = served
        with connected(process) as engine:
            push_weights(policy_of(tied=tied).hf_weights(), engine, version=0)
            with pytest.raises(ValueError, match="top_k"):
                sample(engine, SamplingParams(top_k=5))


def test_files_to_another_machine_need_a_shared_folder(tmp_path: Path) -> None:
    def engine_with(folder: Path | None) -> ServerEngine:
        settings = ServerSettings(route="file", sync_folder=folder)
        engine = ServerEngine([], settings, renderer=renderer())
        engine._clients = [ServerClient("http://10.1.2.3:8000", 1.0)]
        return engine

    with pytest.raises(ValueError, match=r"rollout\.sync_folder"):
        engine_with(None)._choose_route()
    assert isinstance(engine_with(tmp_path)._choose_route(), FileRoute)


def test_auto_takes_memory_on_one_machine_and_broadcasts_beyond() -> None:
    engine = ServerEngine([], ServerSettings(), renderer=renderer())
    engine._clients = [ServerClient("http://127.0.0.1:8000", 1.0)]
    assert isinstance(engine._choose_route(), MemoryRoute)
    engine._clients.append(ServerClient("http://10.1.2.3:8000", 1.0))
    assert isinstance(engine._choose_route(), BroadcastRoute)


def test_memory_of_another_machine_is_refused() -> None:
    engine = ServerEngine([], ServerSettings(route="memory"), renderer=renderer())
    engine._clients = [ServerClient("http://10.1.2.3:8000", 1.0)]
    with pytest.raises(ValueError, match=r'sync_route = "memory" reaches servers of this machine'):
        engine._choose_route()


class BrokenRoute:
    """A route whose server is gone."""

    def open(self, clients: Any) -> None:
        raise EngineDied("gone")

    def send(self, records: Any, tensors: Any) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(("has_peers", "num_made"), [(False, 0), (True, 3)])
def test_with_peers_every_weight_is_made_before_an_error_is_raised(
    has_peers: bool, num_made: int
) -> None:
    engine = ServerEngine([], ServerSettings(has_peers=has_peers), renderer=renderer())
    engine._route = BrokenRoute()
    made: list[str] = []
    weights = ((name, made.append(name) or torch.zeros(2)) for name in "abc")
    with pytest.raises(EngineDied, match="gone"):
        push_weights(weights, engine, version=1)
    assert len(made) == num_made and engine.policy_version == -1


def test_no_answer_within_the_limit_is_a_dead_engine() -> None:
    settings = ServerSettings(start_timeout_s=0.1)
    with pytest.raises(EngineDied, match=r"no server answered at http://127\.0\.0\.1:9"):
        ServerEngine(["http://127.0.0.1:9"], settings, renderer=renderer())


def test_an_idle_engine_takes_every_weight_and_sends_none() -> None:
    engine = IdleEngine(ServerSettings(), renderer=renderer())
    seen = []
    weights = ((name, seen.append(name) or torch.zeros(2)) for name in "abc")
    push_weights(weights, engine, version=4)
    assert seen == ["a", "b", "c"] and engine.policy_version == 4
    with pytest.raises(RuntimeError, match="main process"):
        engine.generate([], GREEDY)


class OnAnotherDevice:
    """A client whose server's workers are on GPUs."""

    url = "http://127.0.0.1:1"

    def message(self, do: str) -> list[dict[str, Any]]:
        assert do == "describe"
        return [{"device": "cuda"}]


def test_only_files_bridge_devices() -> None:
    client: Any = OnAnotherDevice()
    check_same_kind(torch.device("cuda"), client)
    with pytest.raises(ValueError, match=r'on cpu here and on cuda.*rollout\.sync_route = "file"'):
        check_same_kind(torch.device("cpu"), client)


def test_between_gpus_memory_is_for_a_trainer_of_one_process() -> None:
    def route(name: Any, *, has_peers: bool) -> Route:
        settings = ServerSettings(route=name, has_peers=has_peers, device=torch.device("cuda"))
        engine = ServerEngine([], settings, renderer=renderer())
        engine._clients = [ServerClient("http://127.0.0.1:8000", 1.0)]
        return engine._choose_route()

    assert isinstance(route("memory", has_peers=False), TransferRoute)
    assert isinstance(route("broadcast", has_peers=True), TransferRoute)
    with pytest.raises(ValueError, match='is for a trainer of one process: set "broadcast"'):
        route("memory", has_peers=True)
