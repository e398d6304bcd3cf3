# SPDX-License-Identifier: Apache-2.0
"""The ways of a bucket of weights from the trainer to the workers of servers.

A block of host memory that both sides map, files in a folder that both see, or a broadcast into the
workers' memory. Between GPUs memory and broadcast are vLLM's (`weight_transfer`). Checks and
versions are not here: all ways carry the same records.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file
from torch import Tensor

from satori_fast.rollout.engine import EngineDied
from satori_fast.rollout.server_client import ServerClient
from satori_fast.rollout.shared_memory import (
    OwnedFolder,
    SharedBlock,
    memory_folder,
    num_bytes_of,
)
from satori_fast.rollout.weight_group import GroupConfig, WeightGroup, address_towards, open_store
from satori_fast.rollout.weight_sync import SyncError, TensorRecord, rows_of


class Route(Protocol):
    """Transport of buckets to one set of servers."""

    def open(self, clients: Sequence[ServerClient]) -> None:
        """Prepare the first bucket of a sync. Does nothing when it is open."""
        ...

    def send(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        """One bucket; returns when every worker has loaded it."""
        ...

    def close(self) -> None:
        """Let go of everything; `open` makes it anew."""
        ...


class MemoryRoute:
    """One block that the workers map once and that every bucket of a sync passes through."""

    def __init__(self) -> None:
        self._block: SharedBlock | None = None
        self._clients: Sequence[ServerClient] = ()

    def open(self, clients: Sequence[ServerClient]) -> None:
        self._clients = clients

    def send(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        block = self._block_of(num_bytes_of(records))
        block.write(records, tensors)
        for client in self._clients:
            client.message("receive", via="memory", records=rows_of(records))

    def _block_of(self, num_bytes: int) -> SharedBlock:
        """The block, made anew and mapped when it is too small."""
        if self._block is None or self._block.data.numel() < num_bytes:
            self.close()
            self._block = SharedBlock(num_bytes)
            for client in self._clients:
                client.message("map", handle=self._block.handle)
        return self._block

    def close(self) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.close()


class FileRoute:
    """A safetensors file for each bucket, deleted when it is loaded.

    folder: one that the servers see under the same path; None: the memory of this machine.
    """

    def __init__(self, folder: Path | None) -> None:
        self._parent = folder or memory_folder()
        self._folder: OwnedFolder | None = None
        self._clients: Sequence[ServerClient] = ()

    def open(self, clients: Sequence[ServerClient]) -> None:
        self._clients = clients
        if self._folder is None:
            self._parent.mkdir(parents=True, exist_ok=True)
            self._folder = OwnedFolder(self._parent)

    def send(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        assert self._folder is not None
        path = self._folder.path / "bucket.safetensors"
        # Copies: a file may not hold two tensors that share memory, as slices of one weight do.
        held = {
            record.name: tensor.detach().to("cpu", copy=True).contiguous()
            for record, tensor in zip(records, tensors, strict=True)
        }
        try:
            save_file(held, path)
            for client in self._clients:
                client.message("receive", via="file", records=rows_of(records), path=str(path))
        finally:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.close()


class BroadcastRoute:
    """A process group of hosts with the workers of each server, this process its rank 0."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._groups: list[tuple[ServerClient, WeightGroup]] = []
        self._num_opened = 0
        self._calls = ThreadPoolExecutor(4, thread_name_prefix="weight messages")

    def open(self, clients: Sequence[ServerClient]) -> None:
        if not self._groups:
            self._groups = [(client, self._meet(client)) for client in clients]

    def _meet(self, client: ServerClient) -> WeightGroup:
        answers = client.message("describe")
        address = address_towards(client.host)
        store = open_store(address, self._timeout_s)
        self._num_opened += 1
        config = GroupConfig(
            address=address,
            port=store.port,
            name=str(self._num_opened),
            size=1 + len(answers),
            rank=0,
            timeout_s=self._timeout_s,
        )
        shared = {name: value for name, value in asdict(config).items() if name != "rank"}
        joining = self._calls.submit(client.message, "join", config=shared)
        try:
            group = WeightGroup(config, store=store)
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
                client.message, "receive", via="broadcast", records=rows_of(records)
            )
            try:
                group.broadcast(held, names, give_up=lambda call=call: has_failed(call))
            except SyncError as error:
                raise self._cause(call, error) from error
            call.result()

    def _cause(self, call: Future[Any], ours: SyncError) -> Exception:
        """Error of the workers in a broadcast that failed, if they report one; else `ours`."""
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
