# SPDX-License-Identifier: Apache-2.0
"""Times of rivals taken in turn on one device, and what they hold in memory.

On a GPU by CUDA events, with the L2 cache swept and the queue filled before each sample; on a host
by the clock, which is only there to try the suite out. A rival that fails loses its own figures and
nobody else's.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.gpu.case import Place
from benchmarks.measure import significant

Call = Callable[[], object]
# Larger than the L2 cache of any GPU so far.
SWEEP_BYTES = 256 * 2**20
# Keeps the device busy while the host puts a call into the queue, so that a short kernel's time is
# not the host's: about a millisecond.
DELAY_CYCLES = 1_500_000
MIN_ROUNDS, MAX_ROUNDS = 3, 40


class Absent(Exception):
    """A rival or an operation that this installation does not have."""


class TooLarge(Exception):
    """A rival that needs more memory than the device has free."""


class Broken(Exception):
    """The device context is lost: nothing more can run in this process."""


def race(calls: Mapping[str, Call], place: Place) -> dict[str, dict[str, Any]]:
    """Figures of each rival: median and fastest milliseconds of `rounds` samples taken in turn and
    the milliseconds the host needs to issue a call, or why there are none."""
    figures: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    for name, call in calls.items():
        try:
            call()
            place.finish()
            started = time.perf_counter()
            call()
            place.finish()
            seconds[name] = time.perf_counter() - started
        except Exception as error:  # a rival may fail in any way
            figures[name] = failure(error, place)
    rounds = int(place.allowance_s / max(sum(seconds.values()), 1e-6))
    rounds = min(max(rounds, MIN_ROUNDS), MAX_ROUNDS)
    sweep = None
    if place.is_cuda:
        sweep = torch.empty(SWEEP_BYTES, dtype=torch.uint8, device=place.device)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in seconds}
    for _ in range(rounds):
        for name in list(samples):
            try:
                samples[name].append(_sample(calls[name], place, sweep))
            except Exception as error:  # memory may run out in a later call too
                figures[name] = failure(error, place)
                del samples[name]
    for name, taken in samples.items():
        figures[name] = {
            "ms": significant(statistics.median(ms for ms, _ in taken)),
            "min_ms": significant(min(ms for ms, _ in taken)),
            "host_ms": significant(statistics.median(ms for _, ms in taken), 3),
            "rounds": rounds,
        }
    return {name: figures[name] for name in calls}


def peak_bytes(call: Call, place: Place, result_bytes: float = 0.0) -> int | None:
    """Most memory that a call holds beyond what was there before it and beyond `result_bytes`, its
    gradients; None on a host."""
    if not place.is_cuda:
        call()
        return None
    gc.collect()
    place.finish()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    place.finish()
    return max(int(torch.cuda.max_memory_allocated() - before - result_bytes), 0)


def failure(error: BaseException, place: Place) -> dict[str, Any]:
    """What a record says of an error; the memory that it held is freed. Broken if the error took
    the device context with it."""
    status = "failed"
    if isinstance(error, Absent):
        status = "absent"
    elif isinstance(error, TooLarge):
        status = "skipped"
    elif isinstance(error, torch.OutOfMemoryError):
        status = "out_of_memory"
    first_line = str(error).strip().partition("\n")[0][:500]
    reason = (
        first_line if status in ("absent", "skipped") else f"{type(error).__name__}: {first_line}"
    )
    # Frames of the traceback hold tensors.
    error.__traceback__ = None
    gc.collect()
    if place.is_cuda:
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as lost:
            raise Broken(reason) from lost
    return {"status": status, "reason": reason}


def available_bytes(place: Place) -> float:
    """What an allocation may still take; infinite on a host."""
    if not place.is_cuda:
        return float("inf")
    torch.cuda.empty_cache()
    return 0.9 * torch.cuda.mem_get_info()[0]


def within_memory(call: Call, num_bytes: float, place: Place) -> Call:
    """`call`, or a call that raises TooLarge because it would need `num_bytes`."""
    free = available_bytes(place)
    if num_bytes <= free:
        return call
    return unavailable(
        TooLarge(f"needs {num_bytes / 2**30:.0f} GiB, {free / 2**30:.0f} GiB may be taken")
    )


def unavailable(error: Exception) -> Call:
    def call() -> None:
        raise error

    return call


def _sample(call: Call, place: Place, sweep: torch.Tensor | None) -> tuple[float, float]:
    """(milliseconds of the call, milliseconds that the host took to issue it)."""
    if sweep is None:
        started = time.perf_counter()
        call()
        elapsed = 1e3 * (time.perf_counter() - started)
        return elapsed, elapsed
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    sweep.zero_()
    torch.cuda._sleep(DELAY_CYCLES)
    begin.record()
    started = time.perf_counter()
    call()
    host = 1e3 * (time.perf_counter() - started)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end), host
