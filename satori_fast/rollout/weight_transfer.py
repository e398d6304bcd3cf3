# SPDX-License-Identifier: Apache-2.0
"""vLLM's weight-transfer engines as a way of buckets between GPUs.

"nccl" broadcasts to the workers of any machine, "ipc" lends the trainer's memory to workers on the
same GPU, where NCCL refuses two processes. Groups, handles and packing are vLLM's; what is sent,
checked and believed is ours (`weight_sync`): the workers' end unpacks into an inbox, which hands
every tensor with its record to our receiver. Messages are those of every other way.

vLLM's interface is spoken here and nowhere else: `tests/rollout/test_weight_transfer.py` is the
contract that a new release has to pass. Between hosts: `server_routes`.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from satori_fast.rollout.server_client import ServerClient
from satori_fast.rollout.server_process import free_port
from satori_fast.rollout.weight_group import address_towards
from satori_fast.rollout.weight_sync import NamedTensor, SyncError, TensorRecord, rows_of

T = TypeVar("T")
Backend = Literal["nccl", "ipc"]
Load = Callable[[Sequence[TensorRecord], Sequence[Tensor]], None]

# Types that stand in a CUDA handle; nothing else is looked up by name.
_TYPES = {"Tensor": Tensor, "Parameter": torch.nn.Parameter} | {
    kind.__name__: kind for kind in (torch.UntypedStorage, torch.storage.TypedStorage)
}


class TransferRoute:
    """Buckets from this process's GPU to the workers of each server, by vLLM's engines.

    timeout_s: of a meeting and of a bucket; neither has an end of its own in vLLM.
    """

    def __init__(self, backend: Backend, device: torch.device, timeout_s: float) -> None:
        self._backend: Backend = backend
        self._device = device
        self._timeout_s = timeout_s
        self._senders: list[Sender] = []

    def open(self, clients: Sequence[ServerClient]) -> None:
        """Meet the workers. SyncError when they do not come in time; ValueError for a worker that
        this way does not reach."""
        if self._senders:
            return
        for client in clients:
            check_reach(self._backend, self._device, client)
        for client in clients:  # one by one: what was opened is closed when a later one fails
            sender = Sender(client, self._backend, self._device, self._timeout_s)
            self._senders.append(sender)

    def send(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        for sender in self._senders:
            sender.send(records, tensors)

    def close(self) -> None:
        senders, self._senders = self._senders, []
        for sender in senders:
            sender.close()


def gpu_name(device: torch.device) -> str:
    """The identity of a GPU, the same in every process; "" for a host."""
    if device.type != "cuda":
        return ""
    return str(torch.cuda.get_device_properties(device).uuid)


def backend_of(device: torch.device, clients: Iterable[ServerClient], *, alone: bool) -> Backend:
    """The engine that reaches the workers of `clients`: IPC where all are on this process's GPU and
    the trainer is this process `alone`, else NCCL."""
    own = gpu_name(device)
    workers = [answer["gpu"] for client in clients for answer in client.message("describe")]
    return "ipc" if alone and all(gpu == own for gpu in workers) else "nccl"


def check_reach(backend: Backend, device: torch.device, client: ServerClient) -> None:
    """ValueError for a server whose workers `backend` does not reach."""
    own = gpu_name(device)
    for answer in client.message("describe"):
        shared = answer["gpu"] == own
        if backend == "ipc" and not shared:
            raise ValueError(
                f"engine rank {answer['rank']} of {client.url} is not on the trainer's GPU, and "
                'rollout.sync_route = "memory" reaches no other: set "broadcast" or "auto"'
            )
        if backend == "nccl" and shared:
            raise ValueError(
                f"engine rank {answer['rank']} of {client.url} is on the trainer's own GPU, where "
                "NCCL refuses two processes: give the server GPUs of its own "
                '(rollout.server_devices), or set rollout.engine = "vllm"'
            )


class Sender:
    """vLLM's trainer end towards one server. After an error it is of no use: `close` it."""

    def __init__(
        self, client: ServerClient, backend: Backend, device: torch.device, timeout_s: float
    ) -> None:
        self._client = client
        self._backend: Backend = backend
        self._device = device
        self._timeout_s = timeout_s
        self._bucket = Bucket()
        self._num_bytes = 0
        self._engine: Any = None
        if backend == "nccl":
            self._meet(0)

    def _meet(self, num_bytes: int) -> None:
        """Have both ends ready for buckets of `num_bytes`."""
        factory, make_info = _vllm_trainer(self._backend)
        if self._backend == "nccl":
            num_workers = len(self._client.message("describe"))
            address = address_towards(self._client.host)
            info = make_info(
                rank=0,
                master_address=address,
                master_port=free_port(address),
                world_size=1 + num_workers,
                packed=True,
            )
        else:
            info = make_info(rank=0, packed=True, packed_buffer_size_bytes=num_bytes)
        wire = Wire(self._client, self._backend, self._bucket)
        self._engine = self._within(
            lambda: factory.trainer_init(info, client=wire, source=self._bucket),
            "did not meet the trainer",
        )
        self._num_bytes = num_bytes

    def send(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        """One bucket; returns when every worker has loaded it."""
        held = [tensor.detach() for tensor in tensors]
        self._bucket.fill(records, held)
        needed = sum(tensor.nbytes for tensor in held)
        if self._backend == "ipc" and needed > self._num_bytes:
            self._meet(needed)  # the block that is lent is as large as the bucket
        _finish(self._device)  # another thread sends, on a stream of its own
        self._within(self._engine.send_weights, f"did not take {_first(records)}")
        self._bucket.fill((), ())

    def _within(self, act: Callable[[], T], failed: str) -> T:
        """Result of `act`, in a thread that is left alone when it takes too long."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                if self._device.type == "cuda":
                    torch.cuda.set_device(self._device)
                done.set_result(act())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name="weight transfer", daemon=True).start()
        try:
            return done.result(timeout=self._timeout_s)
        except TimeoutError:
            raise SyncError(
                f"weight sync: the server at {self._client.url} {failed} within "
                f"rollout.sync_timeout_s = {self._timeout_s:g} ({self._backend}); start it again"
            ) from None

    def close(self) -> None:
        """Let go. A group that still waits for a worker is left to its thread."""
        engine, self._engine = self._engine, None
        if engine is not None:
            threading.Thread(target=engine.shutdown, name="transfer's end", daemon=True).start()


class Bucket:
    """The bucket of the moment, as vLLM's `WeightSource`."""

    def __init__(self) -> None:
        self.records: dict[str, TensorRecord] = {}
        self._tensors: Sequence[Tensor] = ()

    def fill(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        self.records = {record.name: record for record in records}
        self._tensors = tensors

    def metadata(self) -> list[Any]:
        """Names, types and shapes in the order of iteration."""
        from vllm.distributed.weight_transfer.base import ParamMeta  # pyright: ignore[reportMissingImports]

        return [ParamMeta(n, tensor.dtype, tuple(tensor.shape)) for n, tensor in self]

    def __iter__(self) -> Iterator[NamedTensor]:
        return iter(zip(self.records, self._tensors, strict=True))


class Wire:
    """The four calls that vLLM's trainer end makes, as messages to our workers.

    A sync begins and ends with ours (`WeightSink`), around all of its buckets.
    """

    def __init__(self, client: ServerClient, backend: Backend, bucket: Bucket) -> None:
        self._client = client
        self._backend = backend
        self._bucket = bucket

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._client.message("transfer", backend=self._backend, info=init_info)

    def start_weight_update(self) -> None:
        """See the class."""

    def update_weights(self, update_info: Any) -> None:
        records = [self._bucket.records[name] for name in update_info["names"]]
        sent = coded({name: value for name, value in update_info.items() if value is not None})
        self._client.message("receive", via="transfer", records=rows_of(records), info=sent)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See the class."""


class TransferReceiver:
    """vLLM's worker end, whose tensors come to `load` with their records.

    info: what the trainer's end says at the meeting.
    """

    def __init__(
        self,
        backend: str,
        info: dict[str, Any],
        *,
        vllm_config: Any,
        device: torch.device,
        load: Load,
    ) -> None:
        from vllm.config.weight_transfer import WeightTransferConfig  # pyright: ignore[reportMissingImports]
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory  # pyright: ignore[reportMissingImports]

        self._inbox = Inbox(load)
        self._engine: Any = WeightTransferEngineFactory.create_engine(
            WeightTransferConfig(backend=backend), vllm_config, device, self._inbox
        )
        self._engine.init_transfer_engine(self._engine.parse_init_info(info))

    def receive(self, records: Sequence[TensorRecord], info: dict[str, Any]) -> None:
        """One bucket. Raises what `load` raised, when all of the bucket has come through."""
        self._inbox.expect(records)
        self._engine.start_weight_update()
        try:
            self._engine.update_weights(decoded(info))
        finally:
            self._engine.finish_weight_update()
        self._inbox.check()

    def close(self) -> None:
        self._engine.shutdown()


class Inbox(torch.nn.Module):
    """The model, as vLLM's worker end believes."""

    def __init__(self, load: Load) -> None:
        super().__init__()
        self._load = load
        self._expected: dict[str, TensorRecord] = {}
        self._error: Exception | None = None

    def expect(self, records: Sequence[TensorRecord]) -> None:
        self._expected = {record.name: record for record in records}
        self._error = None

    def load_weights(self, weights: Iterable[NamedTensor]) -> set[str]:
        """Hand on what came. An error waits for `check`: raised here, it would leave the other
        members of a group alone with the rest of the bucket."""
        named = list(weights)
        if self._error is None:
            try:
                self._load([self._expected.pop(name) for name, _ in named], [t for _, t in named])
            except Exception as error:
                self._error = error
        return {name for name, _ in named}

    def check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._expected:
            raise SyncError(f"weight sync: {next(iter(self._expected))!r} did not come through")


def coded(value: Any) -> Any:
    """A value of vLLM's messages as JSON. CUDA handles hold bytes, tuples, types: they are spelt
    out, because what vLLM does itself, to pickle them, lets a message run code."""
    if isinstance(value, dict):
        return {name: coded(held) for name, held in value.items()}
    if isinstance(value, list):
        return [coded(held) for held in value]
    if isinstance(value, tuple):
        return {"tuple": [coded(held) for held in value]}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    return {"type": value.__name__} if isinstance(value, type) else value


def decoded(value: Any) -> Any:
    """Inverse of `coded`."""
    if isinstance(value, list):
        return [decoded(held) for held in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, held),) = value.items()
        kinds: dict[str, Callable[[Any], Any]] = {
            "tuple": lambda items: tuple(decoded(item) for item in items),
            "bytes": base64.b64decode,
            "dtype": lambda name: getattr(torch, name),
            "device": torch.device,
            "type": _TYPES.__getitem__,
        }
        if kind in kinds:
            return kinds[kind](held)
    return {name: decoded(held) for name, held in value.items()}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _first(records: Sequence[TensorRecord]) -> str:
    return f"tensor {records[0].name!r}" if records else "a bucket"


def _vllm_trainer(backend: Backend) -> tuple[Any, Any]:
    """vLLM's factory of trainer ends, and the class of what one is made from."""
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory  # pyright: ignore[reportMissingImports]
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo  # pyright: ignore[reportMissingImports]
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "weights between GPUs are sent by vLLM's own engines, and the trainer's environment "
            f'has no vLLM that knows them ({error}): pip install "satori-fast[vllm]"'
        ) from error
    return WeightTransferTrainerFactory, {"nccl": NCCLTrainerInitInfo, "ipc": IPCTrainerInitInfo}[
        backend
    ]
