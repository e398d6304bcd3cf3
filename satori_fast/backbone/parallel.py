# SPDX-License-Identifier: Apache-2.0
"""Groups, ranks, device and seeds of this process. One process alone needs no launcher.

Under `torchrun` the world comes from the environment; without it this process is the whole world.
Nothing here splits data or models: `data.packing` and Megatron do, by the ranks given here.
"""

from __future__ import annotations

import atexit
import math
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch import Tensor

from satori_fast.backbone import cpu_shim, host_memory
from satori_fast.backbone.meeting import Limits, Meeting, caller

Number = TypeVar("Number", Tensor, float)
Item = TypeVar("Item")

_state: ParallelState | None = None
_owns_process_group = False
_num_meetings = 0
_acting = threading.local()


@dataclass(frozen=True, slots=True)
class ParallelOptions:
    """Ways in which ranks share the work, beside the sizes.

    chunks:          parts of the model in each pipeline stage, which take turns (an interleaved
                     pipeline waits that many times less).
    sequence:        between matrix products, tensor-parallel ranks each hold a part of the tokens.
    shard_optimizer: each data-parallel rank holds, steps and sends out a part of the optimizer.
    overlap:         gradients are summed during the backward pass, and stepped parameters gathered
                     during the next forward pass.
    offload:         the host holds optimizer state and frozen models while nobody needs them.
    bucket_size:     parameters that are sent together where that overlaps; None: Megatron's choice.
    """

    chunks: int = 1
    sequence: bool = True
    shard_optimizer: bool = True
    overlap: bool = True
    offload: bool = False
    bucket_size: int | None = None


@dataclass(frozen=True)
class ParallelState:
    """Sizes and ranks of this process in each dimension of parallelism, and its device.

    world_size = tensor_size * pipeline_size * context_size * data_size. Ranks of a context have the
    same data rank: they share its batches' tokens.
    meeting: how its ranks wait for each other; None for a single one.
    """

    rank: int
    world_size: int
    tensor_size: int
    tensor_rank: int
    pipeline_size: int
    pipeline_rank: int
    data_size: int
    data_rank: int
    device: torch.device
    context_size: int = 1
    context_rank: int = 0
    options: ParallelOptions = ParallelOptions()
    context_is_data: bool = False
    meeting: Meeting | None = field(default=None, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def copies(self) -> ParallelState:
        """The same with every whole model as a data-parallel copy, those of a context too: for what
        needs no batch, as sampling and grading."""
        if self.context_size == 1:
            return self
        size = mpu.get_data_parallel_world_size(with_context_parallel=True)
        rank = mpu.get_data_parallel_rank(with_context_parallel=True)
        return replace(self, data_size=size, data_rank=rank, context_is_data=True)

    @property
    def token_multiple(self) -> int:
        """The number of tokens of a microbatch is a multiple of it: ranks share them evenly."""
        # Each rank of a context has a chunk from the front and one from the back.
        chunks = 2 * self.context_size if self.context_size > 1 else 1
        return self.tensor_size * chunks

    def all_reduce_sum(self, value: Number) -> Number:
        """Sum over the data-parallel ranks; a float is summed in fp64. The input is not changed."""
        return self._all_reduce(value, dist.ReduceOp.SUM)

    def all_reduce_max(self, value: Number) -> Number:
        """Maximum over the data-parallel ranks. The input is not changed."""
        return self._all_reduce(value, dist.ReduceOp.MAX)

    def any_rank(self, flag: bool) -> bool:
        """True where `flag` is on any process; the same answer on all."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags)

    def all_gather(self, value: Item) -> list[Item]:
        """`value` of every data-parallel rank, in rank order. Any picklable object.

        Waits for the slowest rank as long as for the main process.
        """
        if self.meeting is not None:
            self.meeting.meet(caller())
        gathered: list[Any] = [None] * self.data_size
        dist.all_gather_object(gathered, value, group=self._data_group())
        return gathered

    def gather_figures(self, figures: Sequence[float]) -> list[list[float]]:
        """`figures`, equally many on every process, of all of them in rank order; fp64."""
        if self.world_size == 1:
            return [list(figures)]
        own = torch.tensor(figures, dtype=torch.float64, device=self.device)
        rows = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(rows, own)
        return torch.stack(rows).tolist()

    def on_main(self, action: Callable[[], Any]) -> None:
        """Run `action` in the main process; all ranks leave together.

        An error there is raised on every rank: nobody waits for a process that is gone.
        """

        def act() -> None:
            action()

        self.from_main(act)

    def from_main(self, action: Callable[[], Item], *, limit_s: float | None = None) -> Item:
        """Result of `action` from the main process, the only one that runs it; picklable.

        An error there is raised on every rank, with `failed_rank` = 0. The others wait `limit_s`
        (None: `Limits.main_s`) while the main process shows signs of life; then RankLost.
        `action` must not meet the other ranks, which are not there.
        """
        meeting = self.meeting
        if meeting is None:
            return _alone(action)
        name = caller()
        number = meeting.at(name)
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = _alone(action)
            except Exception as error:
                outcome[1] = _picklable(error)
            except BaseException as error:  # the others are still waiting
                meeting.report(
                    f"it was ended in {name} ({type(error).__name__})", is_of_peers=False
                )
                raise
            meeting.open(number)
        else:
            limit_s = meeting.limits.main_s if limit_s is None else limit_s
            meeting.await_opening(number, name, limit_s=limit_s)
        dist.broadcast_object_list(outcome, src=0)
        value, error = outcome
        if error is not None:
            raise error
        return value

    def _data_group(self) -> Any:
        return mpu.get_data_parallel_group(with_context_parallel=self.context_is_data)

    def _all_reduce(self, value: Number, operation: dist.ReduceOp.RedOpType) -> Number:
        if isinstance(value, Tensor):
            # NCCL reduces what lies on the device; counts are made on the host.
            reduced = value.detach().to(self.device, copy=True)
            if self.data_size > 1:
                dist.all_reduce(reduced, op=operation, group=self._data_group())
            return reduced.to(value.device)
        scalar = torch.tensor(value, dtype=torch.float64, device=self.device)
        return float(self._all_reduce(scalar, operation))


def initialize_parallel(
    tensor: int = 1,
    pipeline: int = 1,
    seed: int = 0,
    *,
    context: int = 1,
    options: ParallelOptions | None = None,
    limits: Limits | None = None,
) -> ParallelState:
    """Join the processes, make Megatron's groups, seed this process. Call it before any model.

    tensor, pipeline, context: sizes of model parallelism; the rest of the world is data parallel.
    seed: same on every rank; tensor-parallel ranks get distinct streams from it where needed.
    limits: longest waits of ranks for each other.

    A second call with the same sizes only seeds again. ValueError: a size below 1, a world that the
    sizes do not divide, or sizes or options that differ from those of an earlier call.
    """
    global _state
    sizes = {"tensor": tensor, "pipeline": pipeline, "context": context}
    options = options or ParallelOptions()
    if options.chunks > 1 and pipeline == 1:
        raise ValueError(
            f"parallel.chunks = {options.chunks} needs a pipeline: raise parallel.pipeline, or set "
            "chunks = 1"
        )
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"parallel.{name} = {size}: must be at least 1")
    if _state is None:
        _state = _join(sizes, options, limits or Limits())
    current = (_state.tensor_size, _state.pipeline_size, _state.context_size)
    if (current, _state.options) != ((tensor, pipeline, context), options):
        raise ValueError(
            f"parallel sizes are already tensor, pipeline, context = {current}, {_state.options}; "
            f"call shutdown_parallel() before asking for {(tensor, pipeline, context)}, {options}"
        )
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)
    return _state


def parallel_state() -> ParallelState:
    """The state made by `initialize_parallel`; ValueError when it was not called."""
    if _state is None:
        raise ValueError("parallel state is missing: call initialize_parallel() before any model")
    return _state


def shutdown_parallel() -> None:
    """Undo `initialize_parallel`; safe to call twice. Models made before it must not be used."""
    global _state, _owns_process_group
    if _state is None:
        return
    _leave_meeting()
    mpu.destroy_model_parallel()
    if _owns_process_group:
        dist.destroy_process_group()
    _state, _owns_process_group = None, False


def _join(sizes: dict[str, int], options: ParallelOptions, limits: Limits) -> ParallelState:
    world_size = dist.get_world_size() if dist.is_initialized() else _environment("WORLD_SIZE", 1)
    model_size = math.prod(sizes.values())
    if world_size % model_size:
        raise ValueError(
            f"world size {world_size} is not a multiple of parallel.tensor * pipeline * context = "
            f"{' * '.join(map(str, sizes.values()))} = {model_size}: "
            "start that many processes with torchrun, or lower a size"
        )
    if sizes["tensor"] > 1:
        # Before CUDA begins: its queues then keep the order of sums and products that overlap.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    host_memory.keep_few_compiled()
    device = _device()
    _start_process_group(device, world_size, limits)
    mpu.initialize_model_parallel(
        tensor_model_parallel_size=sizes["tensor"],
        pipeline_model_parallel_size=sizes["pipeline"],
        context_parallel_size=sizes["context"],
        virtual_pipeline_model_parallel_size=options.chunks if options.chunks > 1 else None,
        distributed_timeout_minutes=limits.collective_s / 60,  # pyright: ignore[reportArgumentType]
    )
    return ParallelState(
        rank=dist.get_rank(),
        world_size=world_size,
        tensor_size=sizes["tensor"],
        tensor_rank=mpu.get_tensor_model_parallel_rank(),
        pipeline_size=sizes["pipeline"],
        pipeline_rank=mpu.get_pipeline_model_parallel_rank(),
        data_size=mpu.get_data_parallel_world_size(),
        data_rank=mpu.get_data_parallel_rank(),
        device=device,
        context_size=sizes["context"],
        context_rank=mpu.get_context_parallel_rank(),
        options=options,
        meeting=_meet(limits),
    )


def tell_peers(line: str, *, is_of_peers: bool) -> str | None:
    """Tell the other ranks what ends this one; the line to print instead of `line`, if any.

    is_of_peers: `line` says only that another rank is gone.
    """
    if _state is None or _state.meeting is None:
        return None
    return _state.meeting.report(line, is_of_peers=is_of_peers)


def speaks_for_machine() -> bool:
    """Whether this rank is the one of its machine that says why the run ends."""
    return _state is None or _state.meeting is None or _state.meeting.speaks()


def _meet(limits: Limits) -> Meeting | None:
    global _num_meetings
    if dist.get_world_size() == 1:
        return None
    _num_meetings += 1  # the store outlives a state, and so do its keys
    store = dist.PrefixStore(  # pyright: ignore[reportPrivateImportUsage]
        f"satori/{_num_meetings}/", dist.distributed_c10d._get_default_store()
    )
    meeting = Meeting(store, dist.get_rank(), dist.get_world_size(), limits)
    # A thread that is inside torch when the interpreter ends takes the process down with it.
    atexit.register(meeting.close)
    return meeting


def _leave_meeting() -> None:
    if _state is not None and _state.meeting is not None:
        atexit.unregister(_state.meeting.close)
        _state.meeting.close()


def _alone(action: Callable[[], Item]) -> Item:
    """Result of `action`. Inside it the other ranks cannot be met: said with one rank too, where
    nothing would hang."""
    assert not getattr(_acting, "is_acting", False), "from_main inside an action of from_main"
    _acting.is_acting = True
    try:
        return action()
    finally:
        _acting.is_acting = False


def _picklable(error: Exception) -> Exception:
    """`error`, or one that says the same where its class cannot be sent."""
    error.failed_rank = 0  # pyright: ignore[reportAttributeAccessIssue]
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        return _picklable(plain)
    return error


def _device() -> torch.device:
    if not torch.cuda.is_available():
        cpu_shim.install()
        return torch.device("cpu")
    device = torch.device("cuda", _environment("LOCAL_RANK", 0))
    torch.cuda.set_device(device)
    return device


def _start_process_group(device: torch.device, world_size: int, limits: Limits) -> None:
    global _owns_process_group
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=timedelta(seconds=limits.collective_s))
    elif world_size > 1:
        raise ValueError(
            f"WORLD_SIZE is {world_size} but RANK or MASTER_ADDR is not set: start with torchrun"
        )
    else:
        # A store in memory: no port, so any number of single-process runs share a machine.
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    _owns_process_group = True


def _environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdigit():
        raise ValueError(f"environment variable {name} = {value!r}: must be a whole number")
    return int(value)
