# SPDX-License-Identifier: Apache-2.0
"""The ways of a bucket, with workers that are threads of this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from satori_fast.rollout.engine import EngineDied
from satori_fast.rollout.server_routes import BroadcastRoute, FileRoute, MemoryRoute, Route
from satori_fast.rollout.shared_memory import map_block, views
from satori_fast.rollout.weight_group import GroupConfig, WeightGroup
from satori_fast.rollout.weight_sync import SyncError, describe, records_of


class Worker:
    """Stands where a `ServerClient` stands, and does what a worker of its server would.

    failing: what a "receive" raises instead.
    """

    url, host = "http://127.0.0.1:1", "127.0.0.1"

    def __init__(self, failing: Exception | None = None) -> None:
        self.failing = failing
        self.held: dict[str, Tensor] = {}
        self.paths: list[Path] = []
        self.group: WeightGroup | None = None
        self.block = torch.empty(0, dtype=torch.uint8)
        self.num_mapped = 0

    def message(self, do: str, **fields: Any) -> list[dict[str, Any]]:
        if do == "join":
            self.group = WeightGroup(GroupConfig(**fields["config"], rank=1))
        elif do == "receive" and self.failing is not None:
            raise self.failing
        elif do == "map":
            self.block = map_block(json.loads(json.dumps(fields["handle"])))
            self.num_mapped += 1
        elif do == "receive" and fields["via"] == "memory":
            records = records_of(fields["records"])
            held = [tensor.clone() for tensor in views(self.block, records)]
            self.held |= {r.name: tensor for r, tensor in zip(records, held, strict=True)}
        elif do == "receive" and fields["via"] == "file":
            self.paths.append(Path(fields["path"]))
            self.held |= load_file(fields["path"])
        elif do == "receive":
            assert self.group is not None
            rows = fields["records"]
            tensors = [torch.empty(row[2], dtype=getattr(torch, row[1])) for row in rows]
            self.group.broadcast(tensors, [row[0] for row in rows])
            self.held |= {row[0]: tensor for row, tensor in zip(rows, tensors, strict=True)}
        return [{"device": "cpu"}]


def bucket() -> list[tuple[str, Tensor]]:
    torch.manual_seed(0)
    whole = torch.randn(6, 4)
    # Slices of one weight, one not contiguous.
    return [("q", whole[:2]), ("k", whole[2:]), ("t", whole.T), ("h", whole.bfloat16())]


def send(route: Route, *workers: Worker) -> None:
    route.open(workers)  # pyright: ignore[reportArgumentType]
    named = bucket()
    route.send(describe(named), [tensor for _, tensor in named])


@pytest.mark.parametrize("num_servers", [1, 2])
@pytest.mark.parametrize("name", ["memory", "file", "broadcast"])
def test_a_bucket_reaches_every_server(name: str, num_servers: int, tmp_path: Path) -> None:
    routes: dict[str, Callable[[], Route]] = {
        "memory": lambda: MemoryRoute(),
        "file": lambda: FileRoute(tmp_path),
        "broadcast": lambda: BroadcastRoute(30.0),
    }
    route = routes[name]()
    workers = [Worker() for _ in range(num_servers)]
    send(route, *workers)
    send(route, *workers)
    for worker in workers:
        assert sorted(worker.held) == ["h", "k", "q", "t"]
        assert all(torch.equal(worker.held[key], tensor) for key, tensor in bucket())
    route.close()
    send(route, *workers)  # opens again
    route.close()


def test_files_are_gone_when_they_are_loaded_and_the_folder_at_the_end(tmp_path: Path) -> None:
    route, worker = FileRoute(tmp_path / "shared"), Worker()
    send(route, worker)
    assert worker.paths and not worker.paths[0].exists()
    folder = worker.paths[0].parent
    assert folder.is_relative_to(tmp_path) and folder.stat().st_mode & 0o077 == 0
    worker.failing = SyncError("bad")
    with pytest.raises(SyncError, match="bad"):
        send(route, worker)
    assert list(folder.iterdir()) == []
    route.close()
    assert not folder.exists()


def test_a_block_is_mapped_once_until_a_bucket_outgrows_it() -> None:
    route, worker = MemoryRoute(), Worker()
    route.open([worker])  # pyright: ignore[reportArgumentType]
    for size, num_mapped in ((100, 1), (40, 1), (100, 1), (300, 2), (200, 2)):
        sent = torch.randn(size)
        route.send(describe([("w", sent)]), [sent])
        assert torch.equal(worker.held["w"], sent) and worker.num_mapped == num_mapped
    route.close()


@pytest.mark.parametrize("problem", [SyncError("tensor 'q' is bad"), EngineDied("gone")])
def test_a_broadcast_that_nobody_hears_tells_the_workers_reason(problem: Exception) -> None:
    route, worker = BroadcastRoute(30.0), Worker()
    send(route, worker)
    worker.failing = problem
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send, route, worker)
        with pytest.raises(type(problem), match=str(problem)):
            sending.result(timeout=20)
    route.close()
