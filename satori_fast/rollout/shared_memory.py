# SPDX-License-Identifier: Apache-2.0
"""A block of memory that two processes of one machine see: on a GPU by CUDA IPC, else on the host.

The trainer owns a `SharedBlock`, fills it and tells its handle, which is JSON; a worker maps it by
`map_block` and reads. Nothing here waits for the other side: messages do that (`server_routes`).
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from satori_fast.rollout.weight_sync import SyncError, TensorRecord

_MEMORY = Path("/dev/shm")
# Every tensor starts at a multiple: any dtype can be viewed there.
_ALIGNMENT = 64
# What CUDA needs to open a block again, by its place in the arguments of `rebuild_cuda_tensor`.
_CUDA_FIELDS = {
    7: "handle",
    8: "storage_bytes",
    9: "storage_offset",
    11: "counter_handle",
    12: "counter_offset",
    13: "event_handle",
    14: "must_wait",
}


def memory_folder() -> Path:
    """A folder in this machine's memory where the system has one, else for temporary files."""
    return _MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())


class SharedBlock:
    """Memory of `num_bytes` on `device` that other processes of this machine can map.

    data: uint8 [num_bytes]. handle: what `map_block` needs, as JSON values.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.data: Tensor
        self.handle: dict[str, Any]
        if device.type == "cuda":
            self.data = torch.empty(num_bytes, dtype=torch.uint8, device=device)
            self.handle = _export(self.data)
        else:
            # In a folder of our own: nobody else may open it.
            self._folder = tempfile.TemporaryDirectory(prefix="satori-", dir=memory_folder())
            self.handle = {"path": f"{self._folder.name}/weights", "num_bytes": num_bytes}
            self.data = _open_file(self.handle)

    def write(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        """Copy `tensors` to where `views` finds them; they are there when this returns."""
        for place, tensor in zip(views(self.data, records), tensors, strict=True):
            place.copy_(tensor.detach())
        wait_for(self.data.device)

    def close(self) -> None:
        """Let go; memory that a worker still maps lives until it lets go too."""
        self.data = torch.empty(0, dtype=torch.uint8)
        if self._folder is not None:
            self._folder.cleanup()
        elif torch.cuda.is_initialized():
            torch.cuda.ipc_collect()


def map_block(handle: dict[str, Any]) -> Tensor:
    """uint8 [num_bytes]: the memory of a `SharedBlock` of another process of this machine.

    SyncError when this process does not see the GPU that it lies on.
    """
    return _open_file(handle) if "path" in handle else _import(handle)


def wait_for(device: torch.device) -> None:
    """Return when all that was started on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def num_bytes_of(records: Sequence[TensorRecord]) -> int:
    """Bytes that `records` take in a block."""
    return _offsets(records)[-1]


def views(block: Tensor, records: Sequence[TensorRecord]) -> list[Tensor]:
    """The tensors of `records` as they lie in `block`, without a copy."""
    return [
        block[start : start + _num_bytes(record)].view(_dtype(record)).view(record.shape)
        for start, record in zip(_offsets(records), records, strict=False)
    ]


def _offsets(records: Sequence[TensorRecord]) -> list[int]:
    """Where each tensor starts, and the end of the last."""
    sizes = (-(-_num_bytes(record) // _ALIGNMENT) * _ALIGNMENT for record in records)
    return list(accumulate(sizes, initial=0))


def _num_bytes(record: TensorRecord) -> int:
    return prod(record.shape) * _dtype(record).itemsize


def _dtype(record: TensorRecord) -> torch.dtype:
    return getattr(torch, record.dtype)


def _open_file(handle: dict[str, Any]) -> Tensor:
    size = handle["num_bytes"]
    return torch.from_file(handle["path"], shared=True, size=size, dtype=torch.uint8)


def _export(data: Tensor) -> dict[str, Any]:
    _, arguments = reduce_tensor(data)
    values = {name: arguments[place] for place, name in _CUDA_FIELDS.items()}
    coded = {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in values.items()
    }
    gpu = str(torch.cuda.get_device_properties(data.device).uuid)
    return {"gpu": gpu, "num_bytes": data.numel(), "offset": data.storage_offset(), **coded}


def _import(handle: dict[str, Any]) -> Tensor:
    visible = {
        str(torch.cuda.get_device_properties(index).uuid): index
        for index in range(torch.cuda.device_count())
    }
    index = visible.get(handle["gpu"])
    if index is None:
        raise SyncError(
            f"weight sync: this worker does not see the trainer's GPU {handle['gpu']}: set "
            'rollout.sync_route = "broadcast", or give it that GPU too (rollout.server_devices)'
        )
    coded = {
        name: base64.b64decode(handle[name]) if name.endswith("handle") else handle[name]
        for name in _CUDA_FIELDS.values()
    }
    return rebuild_cuda_tensor(
        Tensor,
        (handle["num_bytes"],),
        (1,),
        handle["offset"],
        torch.storage.TypedStorage,
        torch.uint8,
        index,
        coded["handle"],
        coded["storage_bytes"],
        coded["storage_offset"],
        False,  # requires_grad
        coded["counter_handle"],
        coded["counter_offset"],
        coded["event_handle"],
        coded["must_wait"],
    )
