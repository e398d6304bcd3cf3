# SPDX-License-Identifier: Apache-2.0
"""What the device can do at best, and what device it is: the floors that shares refer to."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.gpu.case import Case, HeadShape, Place, Sizes
from benchmarks.gpu.timing import Call, available_bytes, race

# Rows of logits at a time in the floor of a head; more do not run faster and may not fit.
FLOOR_ROWS = 8192


def cases(sizes: Sizes) -> list[Case]:
    n = sizes.square
    found = [
        Case("environment", "environment", environment),
        Case(
            "ceilings",
            f"gemm_{n}",
            lambda place: _square(place, n),
            {"M": n, "N": n, "K": n},
            flops=2.0 * n**3,
            num_bytes=6.0 * n**2,
            memory=6.0 * n**2,
        ),
        Case(
            "ceilings",
            "copy",
            lambda place: _copy(place, sizes.copy_bytes),
            {"bytes": sizes.copy_bytes},
            num_bytes=2.0 * sizes.copy_bytes,
            memory=2.0 * sizes.copy_bytes,
        ),
    ]
    head = sizes.heads[0]
    found.append(
        Case(
            "ceilings",
            f"head_gemms_{head.name}",
            lambda place: _head_gemms(place, head),
            head.shape,
            flops=head.gemm_flops,
            memory=2 * head.input_bytes + 8.0 * head.num_logits,
        )
    )
    return found


def environment(place: Place) -> dict[str, Any]:
    """Versions, machine and device, as they were found; nothing of the device is changed."""
    found = measure.environment()
    if not place.is_cuda:
        return found
    properties = torch.cuda.get_device_properties(place.device)
    free, total = torch.cuda.mem_get_info()
    found["device"] = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "memory_bytes": total,
        "free_bytes": free,
        "may_take_bytes": int(available_bytes(place)),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **_driver(),
    }
    return found


def head_floor(head: HeadShape, weight: Tensor, hidden: Tensor, *, num_gemms: int) -> Call:
    """The bare matrix products of the head in bfloat16, on random data: x W^T, and for three also
    d W and d^T x. More than three repeat the first, as a backward that makes the logits again."""
    rows = min(head.num_tokens, FLOOR_ROWS)
    x, w = hidden.detach()[:rows], weight.detach()
    logits = torch.empty(rows, head.vocab_size, dtype=w.dtype, device=w.device)
    d = torch.randn_like(logits).mul_(1e-3) if num_gemms > 1 else logits
    grad_hidden, grad_weight = torch.empty_like(x), torch.empty_like(w)

    def call() -> None:
        for _ in range(head.num_tokens // rows):
            for _ in range(max(1, num_gemms - 2)):
                torch.mm(x, w.T, out=logits)
            if num_gemms > 1:
                torch.mm(d, w, out=grad_hidden)
                torch.mm(d.T, x, out=grad_weight)

    return call


def _square(place: Place, n: int) -> dict[str, Any]:
    a, b = torch.randn(2, n, n, device=place.device).bfloat16()
    out = torch.empty_like(a)
    return _rates(race({"bfloat16": lambda: torch.mm(a, b, out=out)}, place), 2.0 * n**3)


def _copy(place: Place, num_bytes: int) -> dict[str, Any]:
    source = torch.randint(255, (num_bytes,), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    figures = race({"copy": lambda: target.copy_(source)}, place)
    if "ms" in figures["copy"]:
        figures["copy"]["gb_per_s"] = measure.significant(2e-6 * num_bytes / figures["copy"]["ms"])
    return figures


def _head_gemms(place: Place, head: HeadShape) -> dict[str, Any]:
    """Each product of the head alone: with results in bfloat16 and, on a GPU, in float32."""
    x = torch.randn(head.num_tokens, head.hidden_size, device=place.device).bfloat16()
    w = torch.randn(head.vocab_size, head.hidden_size, device=place.device).bfloat16()
    d = torch.randn(head.num_tokens, head.vocab_size, device=place.device, dtype=torch.bfloat16)
    wide: dict[str, Any] = {"out_dtype": torch.float32}
    calls: dict[str, Call] = {
        "x W^T": lambda: torch.mm(x, w.T),
        "d W": lambda: torch.mm(d, w),
        "d^T x": lambda: torch.mm(d.T, x),
    }
    if place.is_cuda:
        total = torch.zeros(head.vocab_size, head.hidden_size, device=place.device)
        calls |= {
            "x W^T, float32 out": lambda: torch.mm(x, w.T, **wide),
            "d W, float32 out": lambda: torch.mm(d, w, **wide),
            "d^T x, float32 out": lambda: torch.mm(d.T, x, **wide),
            "sum + d^T x, float32 out": lambda: torch.addmm(total, d.T, x, **wide),
        }
    return _rates(race(calls, place), head.gemm_flops)


def _rates(figures: dict[str, dict[str, Any]], flops: float) -> dict[str, Any]:
    for figure in figures.values():
        if "ms" in figure:
            figure["tflops"] = measure.significant(1e-9 * flops / figure["ms"])
    return figures


def _driver() -> dict[str, Any]:
    """Driver, clocks and power where the management library is installed."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception as error:  # its own error types exist only if it is there
        return {"driver": None, "why": f"{type(error).__name__}: {error}"}
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    readings = {
        "driver": lambda: nvml.nvmlSystemGetDriverVersion(),
        "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "sm_max_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, 0),
        "processes": lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
    }
    found: dict[str, Any] = {}
    for name, read in readings.items():
        try:
            found[name] = read()
        except nvml.NVMLError as error:
            found[name] = f"not readable: {error}"
    return found
