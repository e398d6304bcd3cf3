# SPDX-License-Identifier: Apache-2.0
"""A server's end of a weight sync: what its workers do on a message of `server_engine`.

Messages are JSON, because vLLM's HTTP route passes nothing but text on. An error is answered, not
raised: raised in one worker of several, it would leave vLLM's answer queues out of step. Tensors
come through shared memory, as files, by broadcast, or from GPU to GPU by vLLM's own engines
(`weight_transfer`); loading and checking them is `vllm_worker.Receiver`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from satori_fast.rollout.server_owner import Tenancy
from satori_fast.rollout.shared_memory import map_block, views
from satori_fast.rollout.vllm_worker import SyncExtension
from satori_fast.rollout.weight_group import GroupConfig, WeightGroup
from satori_fast.rollout.weight_sync import SyncError, TensorRecord, records_of
from satori_fast.rollout.weight_transfer import TransferReceiver, gpu_name


class ServerExtension(SyncExtension):
    """Methods that the workers of a server gain; `device` and `rank` are the worker's own.

    _satori_weights: name of the weights that are loaded whole; "" when there are none.
    """

    device: torch.device
    _satori_weights: str = ""
    _satori_group: WeightGroup | None = None
    _satori_block: Tensor | None = None
    _satori_transfer: TransferReceiver | None = None

    @cached_property
    def _satori_tenancy(self) -> Tenancy:
        return Tenancy()

    def satori_message(self, text: str) -> dict[str, Any]:
        """Handle one message. The answer has this worker's rank and "error", None if none."""
        message = json.loads(text)
        actions: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
            "describe": self._satori_describe,
            "claim": self._satori_tenancy.claim,
            "greet": lambda _: None,  # answered with an error where another run is the owner
            "release": lambda _: self._satori_tenancy.release(),
            "join": self._satori_join,
            "map": self._satori_map,
            "transfer": self._satori_open_transfer,
            "begin": self._satori_begin,
            "receive": self._satori_load,
            "finish": lambda m: self.satori_finish(records_of(m["records"])),
            "name": self._satori_name,
            "abort": self._satori_abort_sync,
        }
        try:
            self._satori_tenancy.check(message)
            answer = actions[message["do"]](message) or {}
        except Exception as error:
            return {"rank": self.rank, "error": f"{error}" or type(error).__name__}
        return {"rank": self.rank, "error": None, **answer}

    def _satori_describe(self, _: dict[str, Any]) -> dict[str, Any]:
        config = self.vllm_config
        return {
            "weights": self._satori_weights,
            "owner": str(self._satori_tenancy),
            "logprobs_mode": config.model_config.logprobs_mode,
            "max_seqlen": config.model_config.max_model_len,
            "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
            "replicas": config.parallel_config.data_parallel_size,
            "device": self.device.type,
            "gpu": gpu_name(self.device),
        }

    def _satori_join(self, message: dict[str, Any]) -> None:
        self._satori_leave()
        config = GroupConfig(**message["config"], rank=1 + self.rank)
        self._satori_group = WeightGroup(config)

    def _satori_map(self, message: dict[str, Any]) -> None:
        self._satori_block = None  # the old one can go before the new one comes
        self._satori_block = map_block(message["handle"])

    def _satori_open_transfer(self, message: dict[str, Any]) -> None:
        self._satori_leave()
        self._satori_transfer = TransferReceiver(
            message["backend"],
            message["info"],
            vllm_config=self.vllm_config,
            device=self.device,
            load=self.satori_receive,
        )

    def _satori_leave(self) -> None:
        self._satori_block = None
        ways = (self._satori_group, self._satori_transfer)
        self._satori_group = self._satori_transfer = None
        for way in ways:
            if way is not None:
                way.close()

    def _satori_begin(self, _: dict[str, Any]) -> None:
        self._satori_weights = ""
        self.satori_begin()

    def _satori_load(self, message: dict[str, Any]) -> None:
        records = records_of(message["records"])
        if message["via"] == "transfer":
            if self._satori_transfer is None:
                raise SyncError("weight sync: a bucket came before this worker met the trainer")
            self._satori_transfer.receive(records, message["info"])
            return
        ways: dict[str, Callable[[], list[Tensor]]] = {
            "memory": lambda: self._satori_receive_shm(records),
            "file": lambda: read_bucket(message["path"], records),
            "broadcast": lambda: self._satori_receive_broadcast(records),
        }
        self.satori_receive(records, ways[message["via"]]())

    def _satori_receive_shm(self, records: list[TensorRecord]) -> list[Tensor]:
        if self._satori_block is None:
            raise SyncError("weight sync: a bucket came before this worker mapped the block")
        return views(self._satori_block, records)

    def _satori_receive_broadcast(self, records: list[TensorRecord]) -> list[Tensor]:
        if self._satori_group is None:
            raise SyncError("weight sync: a broadcast came before this worker joined the group")
        tensors = [torch.empty(r.shape, dtype=getattr(torch, r.dtype)) for r in records]
        try:
            self._satori_group.broadcast(tensors, [record.name for record in records])
        except SyncError:
            self._satori_group = None
            raise
        return tensors

    def _satori_name(self, message: dict[str, Any]) -> None:
        self._satori_weights = message["weights"]

    def _satori_abort_sync(self, _: dict[str, Any]) -> None:
        self._satori_weights = ""
        self._satori_leave()
        self.satori_abort()


def read_bucket(path: str, records: list[TensorRecord]) -> list[Tensor]:
    """Tensors of a bucket file in the order of `records`. SyncError names one that is missing."""
    held = load_file(path)
    for record in records:
        if record.name not in held:
            raise SyncError(f"weight sync: tensor {record.name!r} is missing in its bucket file")
    return [held[record.name] for record in records]
