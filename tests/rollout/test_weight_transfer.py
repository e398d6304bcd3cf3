# SPDX-License-Identifier: Apache-2.0
"""vLLM's weight-transfer engines, spoken to by our two ends. This is the contract that a release of
vLLM has to pass: its own code runs, with CUDA and NCCL replaced by the host (`cuda_stand_in`).
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from satori_fast.rollout.weight_sync import (
    SyncError,
    TensorRecord,
    check_bucket,
    describe,
    records_of,
)
from satori_fast.rollout.weight_transfer import (
    Backend,
    TransferReceiver,
    TransferRoute,
    backend_of,
    check_reach,
    coded,
    decoded,
)
from tests.rollout.cuda_stand_in import PATIENCE_S, cuda_on_the_host
from tests.rollout.test_vllm_engine import checkpoints, run_scenario

HOST = torch.device("cpu")
BACKENDS: tuple[Backend, ...] = get_args(Backend)
needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make setup-vllm"
    ),
]


class Server:
    """Stands where a `ServerClient` stands; its workers are receivers of this process, and what it
    is told has been JSON."""

    url, host = "http://127.0.0.1:1", "127.0.0.1"

    def __init__(self, num_workers: int, gpu: str = "") -> None:
        self.gpu = gpu
        self.held: list[dict[str, Tensor]] = [{} for _ in range(num_workers)]
        self.receivers: list[TransferReceiver] = []
        self.silence: threading.Event | None = None
        self.added: list[TensorRecord] = []
        self.damage: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(num_workers)

    def message(self, do: str, **fields: Any) -> list[dict[str, Any]]:
        told = json.loads(json.dumps(fields))
        if do == "transfer":
            made = self._pool.map(lambda rank: self._receiver(rank, told), range(len(self.held)))
            self.receivers = list(made)
        elif do == "receive":
            assert told["via"] == "transfer"
            if self.silence is not None:
                self.silence.wait(PATIENCE_S)
            records = records_of(told["records"]) + self.added
            list(self._pool.map(lambda one: one.receive(records, told["info"]), self.receivers))
        return [{"rank": rank, "gpu": self.gpu} for rank in range(len(self.held))]

    def _receiver(self, rank: int, told: dict[str, Any]) -> TransferReceiver:
        def load(records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
            came = [t + self.damage.get(r.name, 0.0) for r, t in zip(records, tensors, strict=True)]
            check_bucket(records, came, where=f"engine rank {rank}")
            self.held[rank] |= {r.name: t.clone() for r, t in zip(records, came, strict=True)}

        config = SimpleNamespace(parallel_config=SimpleNamespace(rank=rank), model_config=None)
        return TransferReceiver(
            told["backend"], told["info"], vllm_config=config, device=HOST, load=load
        )


def bucket(seed: int, scale: int = 1) -> list[tuple[str, Tensor]]:
    torch.manual_seed(seed)
    whole = torch.randn(6 * scale, 4)
    return [("q", whole[:2]), ("k", whole[2:]), ("t", whole.T), ("h", whole.bfloat16())]


def route_to(backend: Backend, *servers: Server, timeout_s: float = 20.0) -> TransferRoute:
    route = TransferRoute(backend, HOST, timeout_s)
    for server in servers:
        server.gpu = "" if backend == "ipc" else "another GPU"
    route.open(servers)  # pyright: ignore[reportArgumentType]
    return route


def send(route: TransferRoute, named: list[tuple[str, Tensor]]) -> None:
    route.send(describe(named), [tensor for _, tensor in named])


class TestVllmsEngines:
    pytestmark = needs_vllm

    @pytest.fixture(autouse=True)
    def host_for_cuda(self) -> Iterator[None]:
        with cuda_on_the_host():
            yield

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_buckets_reach_every_worker_of_every_server(self, backend: Backend) -> None:
        servers = [Server(2), Server(1)]
        route = route_to(backend, *servers)
        for seed, scale in ((0, 1), (1, 8), (2, 1)):  # a larger bucket, and small ones again
            send(route, bucket(seed, scale))
            for held in (held for server in servers for held in server.held):
                assert sorted(held) == ["h", "k", "q", "t"]
                assert all(torch.equal(held[key], sent) for key, sent in bucket(seed, scale))
        route.close()
        send(route_to(backend, *servers), bucket(3))  # opens again
        assert torch.equal(servers[0].held[1]["q"], bucket(3)[0][1])

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_changed_tensor_is_named_and_the_next_bucket_arrives(self, backend: Backend) -> None:
        server = Server(2)
        route = route_to(backend, server)
        server.damage["k"] = 1e-3
        with pytest.raises(SyncError, match="'k' changed on its way to engine rank 0"):
            send(route, bucket(0))
        server.damage.clear()
        send(route, bucket(1))
        assert all(torch.equal(held["t"], bucket(1)[2][1]) for held in server.held)

    def test_a_worker_that_does_not_take_its_bucket_is_an_error_and_no_hang(self) -> None:
        server = Server(1)
        route = route_to("ipc", server, timeout_s=0.5)
        server.silence = threading.Event()
        with pytest.raises(SyncError, match=r"tensor 'q' within rollout.sync_timeout_s = 0.5 \(ip"):
            send(route, bucket(0))
        server.silence.set()
        route.close()

    def test_a_tensor_that_a_worker_never_saw_is_named(self) -> None:
        server = Server(1)
        route = route_to("ipc", server)
        server.added = describe([("later", torch.zeros(2))])
        with pytest.raises(SyncError, match="'later' did not come through"):
            send(route, bucket(0))

    @pytest.mark.slow
    def test_a_real_vllm_samples_from_what_was_transferred(self, tmp_path: Any) -> None:
        folder = checkpoints(tmp_path, "qwen2_tied")
        wanted = run_scenario("fresh", folder)["tokens"]
        found = run_scenario("transferred", folder)
        assert sorted(found) == sorted(BACKENDS)
        for got in found.values():
            assert got["tokens"] == wanted
            assert "k_proj.weight' changed on its way to engine rank 0" in got["corrupted"]
            assert "push_weights first" in got["refuses"]


def test_handles_survive_as_json_and_nothing_else_is_looked_up() -> None:
    info = {
        "names": ["a"],
        "ipc_handles": {
            "GPU-1": (
                *(Tensor, torch.Size([3]), (1,), 0, torch.storage.TypedStorage, torch.uint8, 0),
                *(b"\x00\xff", 24, 0, False, b"", 0, b"event", True, None),
            )
        },
        "tensor_sizes": [24],
        "where": torch.device("cuda", 1),
    }
    back = decoded(json.loads(json.dumps(coded(info))))
    assert back == info and isinstance(back["ipc_handles"]["GPU-1"], tuple)
    with pytest.raises(KeyError):
        decoded({"type": "Popen"})


def test_the_way_follows_from_whose_gpu_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("satori_fast.rollout.weight_transfer.gpu_name", lambda device: "GPU-0")
    own, other = Server(1, "GPU-0"), Server(2, "GPU-1")

    def chosen(*servers: Any, alone: bool = True) -> Backend:
        return backend_of(HOST, servers, alone=alone)

    assert [chosen(own), chosen(other), chosen(own, other)] == ["ipc", "nccl", "nccl"]
    assert chosen(own, alone=False) == "nccl"
    clients: Any = own, other
    with pytest.raises(ValueError, match=r"own GPU, where NCCL refuses.*rollout\.server_devices"):
        check_reach("nccl", HOST, clients[0])
    with pytest.raises(ValueError, match=r'not on the trainer\'s GPU.*set "broadcast"'):
        check_reach("ipc", HOST, clients[1])
