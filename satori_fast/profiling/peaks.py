# SPDX-License-Identifier: Apache-2.0
"""Peaks of a device: the denominators of MFU and of the share of memory bandwidth.

Those of data sheets (`data_sheets`) for known GPUs, a short measurement for everything else. Not
for: what was done (`flops`), or for judging a kernel (`benchmarks/measure.py` measures its floors
beside it).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from satori_fast.profiling.data_sheets import data_sheet_of

_BUDGET_S = 0.08  # for each measurement
_MATRIX_SIZE = 512
_COPY_BYTES = 2**25  # beyond the caches, and short


@dataclass(frozen=True, slots=True)
class DevicePeaks:
    """Peaks of one device, None where unknown.

    flops_per_s: of dense products of one type, that of the run.
    bytes_per_s: of the device's memory, reads and writes together.
    """

    flops_per_s: float | None = None
    bytes_per_s: float | None = None


def device_peaks(
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    tflops: float | None = None,
    bandwidth_gbs: float | None = None,
    measure: bool = True,
) -> DevicePeaks:
    """Peaks of `device` for products of `dtype`: as given, else of its data sheet, else measured.

    The sheets are of bfloat16. Other products are measured on every device: how fast those of
    float32 are depends on whether the process allows TF32.
    tflops, bandwidth_gbs: override what is known, in TFLOP/s and GB/s. measure: take at most 0.3 s,
    once per process and type, where nothing is known; otherwise what is unknown stays None.
    """
    device = torch.device(device)
    known = DevicePeaks()
    if tflops is None or bandwidth_gbs is None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        sheet = peaks_of(name)
        if sheet is not None and dtype == torch.bfloat16:
            known = sheet
        elif measure:
            known = measured_peaks(device, dtype)
        if sheet is not None:
            known = DevicePeaks(known.flops_per_s, sheet.bytes_per_s)
    return DevicePeaks(
        known.flops_per_s if tflops is None else tflops * 1e12,
        known.bytes_per_s if bandwidth_gbs is None else bandwidth_gbs * 1e9,
    )


def peaks_of(name: str) -> DevicePeaks | None:
    """Peaks of the GPU that CUDA calls `name`, in bfloat16; None for one that is not in the table.

    Example: ``peaks_of("NVIDIA H100 80GB HBM3")`` is 989.4e12 FLOP/s and 3.35e12 bytes/s.
    """
    sheet = data_sheet_of(name)
    return sheet and DevicePeaks(sheet.tflops * 1e12, sheet.bandwidth_gbs * 1e9)


@cache
def measured_peaks(device: torch.device, dtype: torch.dtype) -> DevicePeaks:
    """The best of a few products and copies.

    On a CPU one thread is timed, by its processor time, and counted as often as torch has threads:
    what else runs does not slow it, and a share of a peak that was measured beside it would be
    above 1. Memory is shared: of one thread alone and of all at once the faster counts.
    """
    on_cpu = device.type == "cpu"
    size = _MATRIX_SIZE if on_cpu else 16 * _MATRIX_SIZE
    num_bytes = _COPY_BYTES if on_cpu else 16 * _COPY_BYTES
    with torch.no_grad():
        a = torch.ones(size, size, dtype=dtype, device=device)
        product = torch.empty_like(a)
        source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)

        def multiply() -> None:
            torch.mm(a, a, out=product)

        def copy() -> None:
            target.copy_(source)

        copy_s = _best_seconds(copy, device)
        if not on_cpu:
            return DevicePeaks(
                2.0 * size**3 / _best_seconds(multiply, device), 2.0 * num_bytes / copy_s
            )
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            product_s = _best_seconds(multiply, device, clock=time.process_time) / num_threads
            copy_s = min(copy_s, _best_seconds(copy, device, clock=time.process_time))
        finally:
            torch.set_num_threads(num_threads)
    return DevicePeaks(2.0 * size**3 / product_s, 2.0 * num_bytes / copy_s)


def _best_seconds(
    work: Callable[[], object],
    device: torch.device,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Shortest time of a call, its work on the device included; the first call is not counted."""

    def seconds() -> float:
        begin = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - begin

    deadline = time.perf_counter() + _BUDGET_S
    first, best = seconds(), seconds()
    while time.perf_counter() + first < deadline:
        best = min(best, seconds())
    return best
