# SPDX-License-Identifier: Apache-2.0
"""A block of host memory that two processes of one machine see.

The trainer owns a `SharedBlock`, fills it and tells its handle, which is JSON; a worker maps it by
`map_block` and reads. Nothing here waits for the other side: messages do that (`server_routes`).
A GPU's memory is lent by vLLM (`weight_transfer`).

Files in memory lie in an `OwnedFolder`, whose name says whose it is: what a killed trainer leaves
there, the next one removes.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from satori_fast import termination
from satori_fast.processes import ProcessId, this_process
from satori_fast.rollout.weight_sync import TensorRecord

logger = logging.getLogger(__name__)

_OWNED = re.compile(r"satori-(?P<place>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-")
_MEMORY = Path("/dev/shm")
# Every tensor starts at a multiple: any dtype can be viewed there.
_ALIGNMENT = 64


def memory_folder() -> Path:
    """A folder in this machine's memory where the system has one, else for temporary files."""
    return _MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())


class OwnedFolder:
    """A folder of this process alone in `parent`; nobody else may open it.

    It goes with `close`, at a sudden end too (`termination`); after a kill the next one made in
    `parent` removes it.
    """

    def __init__(self, parent: Path) -> None:
        remove_orphans(parent)
        own = this_process()
        prefix = f"satori-{own.place}-{own.pid}-{own.start}-"
        self._folder = tempfile.TemporaryDirectory(prefix=prefix, dir=parent)
        self.path = Path(self._folder.name)
        termination.at_sudden_end(self._folder.cleanup)

    def close(self) -> None:
        termination.forget(self._folder.cleanup)
        self._folder.cleanup()


def remove_orphans(parent: Path) -> None:
    """Remove the owned folders in `parent` whose process has ended."""
    for folder in parent.glob("satori-*"):
        match = _OWNED.match(folder.name)
        if match is None:
            continue
        owner = ProcessId(match["place"], int(match["pid"]), int(match["start"]))
        if owner.is_gone():
            logger.info("removed %s, which a trainer that was killed left behind", folder)
            shutil.rmtree(folder, ignore_errors=True)


class SharedBlock:
    """Memory of `num_bytes` of the host that other processes of this machine can map.

    data: uint8 [num_bytes]. handle: what `map_block` needs, as JSON values.
    """

    def __init__(self, num_bytes: int) -> None:
        self._folder = OwnedFolder(memory_folder())
        self.handle: dict[str, Any] = {
            "path": str(self._folder.path / "weights"),
            "num_bytes": num_bytes,
        }
        self.data = map_block(self.handle)

    def write(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        """Copy `tensors` to where `views` finds them."""
        for place, tensor in zip(views(self.data, records), tensors, strict=True):
            place.copy_(tensor.detach())

    def close(self) -> None:
        """Let go; memory that a worker still maps lives until it lets go too."""
        self.data = torch.empty(0, dtype=torch.uint8)
        self._folder.close()


def map_block(handle: dict[str, Any]) -> Tensor:
    """uint8 [num_bytes]: the memory of a `SharedBlock` of another process of this machine."""
    size = handle["num_bytes"]
    return torch.from_file(handle["path"], shared=True, size=size, dtype=torch.uint8)


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
    """Offsets at which the tensors start, and the end of the last."""
    sizes = (-(-_num_bytes(record) // _ALIGNMENT) * _ALIGNMENT for record in records)
    return list(accumulate(sizes, initial=0))


def _num_bytes(record: TensorRecord) -> int:
    return prod(record.shape) * _dtype(record).itemsize


def _dtype(record: TensorRecord) -> torch.dtype:
    return getattr(torch, record.dtype)
