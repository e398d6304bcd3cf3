# SPDX-License-Identifier: Apache-2.0
"""vLLM's weight-transfer engines without a GPU: what is CUDA's and NCCL's own is replaced, all of
vLLM's packing, messages and order of calls stays. Both ends must be in one process."""

from __future__ import annotations

import queue
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

PATIENCE_S = 20.0
GPU = "GPU-of-both"


class Group:
    """A NCCL group: rank 0 puts, the others take. Ranks meet by the port of their messages."""

    _mail: ClassVar[defaultdict[tuple[int, int], queue.Queue[Tensor]]] = defaultdict(queue.Queue)

    def __init__(self, port: int, rank: int, size: int) -> None:
        self._port, self._rank, self._size = port, rank, size

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        assert src == 0
        if self._rank == 0:
            for rank in range(1, self._size):
                self._mail[self._port, rank].put(tensor.clone())
        else:
            came = self._mail[self._port, self._rank].get(timeout=PATIENCE_S)
            assert came.shape == tensor.shape and came.dtype == tensor.dtype
            tensor.copy_(came)

    def destroy(self) -> None: ...


class HostTorch:
    """The module torch as a file of vLLM sees it, whose "cuda" memory is the host's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def empty(*sizes: int, **options: Any) -> Tensor:
        return torch.empty(*sizes, **(options | {"device": "cpu"}))


@contextmanager
def cuda_on_the_host() -> Iterator[None]:
    """While it lasts, NCCL groups are queues and CUDA handles are names of host tensors."""
    # Two of them for their time: the engines import them when a bucket is under way.
    import vllm.model_executor.model_loader.reload  # noqa: F401
    from vllm.distributed.weight_transfer import ipc_engine, nccl_engine, packed_tensor
    from vllm.model_executor.model_loader import mtp_validation  # noqa: F401

    lent: dict[bytes, Tensor] = {}

    def reduce_tensor(tensor: Tensor) -> tuple[Any, tuple[Any, ...]]:
        handle = f"handle {len(lent)}".encode()
        lent[handle] = tensor
        kind = torch.storage.TypedStorage
        description = (Tensor, tensor.shape, tensor.stride(), 0, kind, tensor.dtype, 0)
        return None, (*description, handle, tensor.nbytes, 0, False, b"counter", 0, b"event", True)

    def worker_group(info: Any, parallel_config: Any) -> Group:
        return Group(info.master_port, info.rank_offset + parallel_config.rank, info.world_size)

    stream = SimpleNamespace(synchronize=lambda: None)
    replaced = {
        (nccl_engine, "open_trainer_endpoint"): lambda i: Group(i.master_port, 0, i.world_size),
        (nccl_engine, "worker_init_process_group"): worker_group,
        (packed_tensor, "_get_streams"): lambda device, number: (stream,) * number,
        (packed_tensor, "reduce_tensor"): reduce_tensor,
        (packed_tensor, "torch"): HostTorch(),
        (ipc_engine, "reduce_tensor"): reduce_tensor,
        (torch.cuda, "stream"): nullcontext,
        (torch.cuda, "current_stream"): lambda: stream,
        (torch.cuda, "ipc_collect"): lambda: None,
        (torch.cuda, "get_device_properties"): lambda device: SimpleNamespace(uuid=GPU),
        (torch.accelerator, "current_device_index"): lambda: 0,
        (torch.accelerator, "synchronize"): lambda: None,
        (torch.multiprocessing.reductions, "rebuild_cuda_tensor"): lambda *args: lent[args[7]],
    }
    with pytest.MonkeyPatch.context() as patch:
        for (place, name), value in replaced.items():
            patch.setattr(place, name, value)
        yield
