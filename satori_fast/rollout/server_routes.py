# SPDX-License-Identifier: Apache-2.0
"""The ways of a bucket of weights from the trainer to the workers of servers.

Files in a folder that both sides see (in memory, when they share a machine), or a broadcast into
the workers' memory. Checks and versions are not here: both ways carry the same records.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from satori_fast.rollout.engine import EngineDied
from satori_fast.rollout.server_client import ServerClient
from satori_fast.rollout.weight_group import GroupSeat, WeightGroup, address_towards, open_store
from satori_fast.rollout.weight_sync import SyncError, TensorRecord

_MEMORY = Path("/dev/shm")


class Route(Protocol):
    """How buckets reach one set of servers."""

    def open(self, clients: Sequence[ServerClient]) -> None:
        """Before the first bucket of a sync. Does nothing when it is open."""
        ...

    def send(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        """One bucket; returns when every worker has loaded it."""
        ...

    def close(self) -> None:
        """Let go of everything; `open` makes it anew."""
        ...


def rows_of(records: Sequence[TensorRecord]) -> list[list[Any]]:
    """Records as they stand in a message."""
    return [[r.name, r.dtype, list(r.shape), r.fingerprint] for r in records]


class FileRoute:
    """A safetensors file for each bucket, deleted when it is loaded.

    folder: one that the servers see under the same path; None: the memory of this machine.
    """

    def __init__(self, folder: Path | None) -> None:
        self._parent = folder or (_MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir()))
        self._folder: Path | None = None
        self._clients: Sequence[ServerClient] = ()

    def open(self, clients: Sequence[ServerClient]) -> None:
        self._clients = clients
        if self._folder is None:
            self._parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="satori-weights-", dir=self._parent))

    def send(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        assert self._folder is not None
        path = self._folder / "bucket.safetensors"
        # Copies: a file may not hold two tensors that share memory, as slices of one weight do.
        held = {
            record.name: tensor.detach().to("cpu", copy=True).contiguous()
            for record, tensor in zip(records, tensors, strict=True)
        }
        try:
            save_file(held, path)
            for client in self._clients:
                client.message("receive", records=rows_of(records), path=str(path))
        finally:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


class BroadcastRoute:
    """A process group with the workers of each server, this process its rank 0.

    device: of the tensors on both sides.
    """

    def __init__(self, device: torch.device, timeout_s: float) -> None:
        self._device = device
        self._timeout_s = timeout_s
        self._groups: list[tuple[ServerClient, WeightGroup]] = []
        self._num_opened = 0
        self._calls = ThreadPoolExecutor(4, thread_name_prefix="weight messages")

    def open(self, clients: Sequence[ServerClient]) -> None:
        if not self._groups:
            self._groups = [(client, self._meet(client)) for client in clients]

    def _meet(self, client: ServerClient) -> WeightGroup:
        answers = client.message("describe")
        if answers[0]["device"] != self._device.type:
            raise ValueError(
                f"weights are on {self._device.type} here and on {answers[0]['device']} at "
                f'{client.url}, which a broadcast cannot bridge: set rollout.sync_route = "file"'
            )
        address = address_towards(client.host)
        store = open_store(address, self._timeout_s)
        self._num_opened += 1
        seat = GroupSeat(
            address=address,
            port=store.port,
            name=str(self._num_opened),
            size=1 + len(answers),
            rank=0,
            timeout_s=self._timeout_s,
        )
        shared = {name: value for name, value in asdict(seat).items() if name != "rank"}
        joining = self._calls.submit(client.message, "join", seat=shared)
        try:
            group = WeightGroup(seat, self._device, store=store)
        except SyncError as error:
            raise self._cause(joining, error) from error
        joining.result()
        return group

    def send(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        names = [record.name for record in records]
        held = [tensor.detach().contiguous() for tensor in tensors]
        for client, group in self._groups:
            # The workers must wait for the broadcast while it is made.
            call = self._calls.submit(
                client.message, "receive", records=rows_of(records), path=None
            )
            try:
                group.broadcast(held, names, give_up=lambda call=call: has_failed(call))
            except SyncError as error:
                raise self._cause(call, error) from error
            call.result()

    def _cause(self, call: Future[Any], ours: SyncError) -> Exception:
        """What the workers say of a broadcast that failed, if they say anything; else `ours`."""
        try:
            theirs = call.exception(timeout=self._timeout_s)
        except TimeoutError:
            theirs = None
        return theirs if isinstance(theirs, EngineDied | SyncError) else ours

    def close(self) -> None:
        for _, group in self._groups:
            group.close()
        self._groups = []


def has_failed(call: Future[Any]) -> bool:
    return call.done() and call.exception() is not None
