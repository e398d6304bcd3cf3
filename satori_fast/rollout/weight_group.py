# SPDX-License-Identifier: Apache-2.0
"""A process group of the trainer and the workers of one engine, to broadcast weights through.

For host memory, by gloo; between GPUs vLLM's own groups do it (`weight_transfer`). It stands apart
from torch's default group, which neither side may touch: the trainer is rank 0, the workers are the
ranks above it. Every wait has an end, and the error says which tensor did not come.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from satori_fast.rollout.weight_sync import SyncError

_POLL_S = 0.0005
c10d: Any = torch.distributed  # its stubs do not know the classes below


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """Rendezvous of the group, and the rank of one process in it.

    address, port: of the trainer's store. name: distinct for every group that meets there.
    """

    address: str
    port: int
    name: str
    size: int
    rank: int
    timeout_s: float


class WeightGroup:
    """One broadcast at a time from rank 0. After an error the group is of no use: `close` it."""

    def __init__(self, config: GroupConfig, *, store: Any = None) -> None:
        """Blocks until all have come; SyncError when somebody does not come in time."""
        self.rank = config.rank
        self._group: Any = None
        self._timeout_s = config.timeout_s
        try:
            store = store or _connect(config)
            shared = c10d.PrefixStore(config.name, store)
            self._group = _gloo(shared, config)
        except (RuntimeError, ValueError) as error:
            raise SyncError(
                f"weight sync: rank {config.rank} of {config.size} could not meet the others "
                f"at {config.address}:{config.port} within {config.timeout_s:g} s: "
                f"{_first_line(error)}"
            ) from error

    def broadcast(
        self,
        tensors: Sequence[Tensor],
        names: Sequence[str],
        *,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """Send `tensors` (rank 0) or fill them (the others), in order; contiguous, on the host.

        give_up is asked while waiting: when it says yes, the group is closed and SyncError raised.
        """
        deadline = time.monotonic() + self._timeout_s
        options = c10d.BroadcastOptions()
        options.rootRank = 0
        for name, tensor in zip(names, tensors, strict=True):
            # As bytes: gloo does not know every type.
            flat = tensor.view(-1).view(torch.uint8)
            try:
                self._wait(self._group.broadcast([flat], options), deadline, give_up)
            except (RuntimeError, TimeoutError) as error:
                self.close()
                verb = "send" if self.rank == 0 else "receive"
                # gloo's own time-out may be seen before ours; it cannot come before the deadline.
                reason = (
                    f"nothing within rollout.sync_timeout_s = {self._timeout_s:g}"
                    if time.monotonic() > deadline
                    else _first_line(error)
                )
                raise SyncError(
                    f"weight sync: rank {self.rank} could not {verb} tensor {name!r}: {reason}"
                ) from error

    def _wait(self, work: Any, deadline: float, give_up: Callable[[], bool]) -> None:
        # Polled, because a wait that has begun cannot be given up.
        while not work.is_completed():
            if give_up():
                raise RuntimeError("the other side gave up")
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(_POLL_S)
        work.wait()

    def close(self) -> None:
        """Let go of the connections, also of a broadcast that still waits."""
        held, self._group = [self._group], None
        if held[0] is not None:
            held[0].abort()
            # gloo has no abort: its destructor waits until a broadcast under way times out.
            threading.Thread(target=held.clear, name="weight group's end", daemon=True).start()


def _connect(config: GroupConfig) -> Any:
    return c10d.TCPStore(
        config.address,
        config.port,
        is_master=False,
        timeout=timedelta(seconds=config.timeout_s),
        wait_for_workers=False,
    )


def open_store(address: str, timeout_s: float) -> Any:
    """A store that listens on `address` alone; its `port` is free by choice of the system."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family)
    port = listener.getsockname()[1]
    return c10d.TCPStore(
        address,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def address_towards(host: str) -> str:
    """The address of this machine that `host` can answer to."""
    family, _, _, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)  # sends nothing: the route alone is looked up
        return probe.getsockname()[0]


def _gloo(store: Any, config: GroupConfig) -> Any:
    options = c10d.ProcessGroupGloo._Options()
    options._timeout = timedelta(seconds=config.timeout_s)
    own = address_towards(config.address)
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=own)]
    options._threads = 1
    return c10d.ProcessGroupGloo(store, config.rank, config.size, options)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
