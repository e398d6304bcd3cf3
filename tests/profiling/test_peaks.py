# SPDX-License-Identifier: Apache-2.0
"""Peaks by name, by measurement and by decree."""

from __future__ import annotations

import time

import pytest
import torch

from satori_fast.profiling import peaks as peaks_module
from satori_fast.profiling.peaks import DevicePeaks, device_peaks, measured_peaks, peaks_of


@pytest.mark.parametrize(
    ("name", "tflops", "gigabytes"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4, 3350),
        ("NVIDIA H100 PCIe", 756, 2000),
        ("NVIDIA H100 NVL", 835.5, 3900),
        ("NVIDIA H200", 989.4, 4800),
        ("NVIDIA A100-SXM4-40GB", 312, 1555),
        ("NVIDIA A100-SXM4-80GB", 312, 2039),
        ("NVIDIA A100 80GB PCIe", 312, 1935),
        ("NVIDIA L40S", 362.05, 864),
        ("NVIDIA B200", 2250, 8000),
        ("NVIDIA GeForce RTX 4090", 165.2, 1008),
    ],
)
def test_known_gpus(name: str, tflops: float, gigabytes: float) -> None:
    assert peaks_of(name) == DevicePeaks(tflops * 1e12, gigabytes * 1e9)


@pytest.mark.parametrize("name", ["NVIDIA GH200 480GB", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", ""])
def test_a_name_that_only_looks_alike_is_unknown(name: str) -> None:
    assert peaks_of(name) is None


def test_a_cpu_is_measured_once_for_each_type() -> None:
    measured_peaks.cache_clear()
    measured_peaks(torch.device("cpu"), torch.float32)  # libraries load
    measured_peaks.cache_clear()
    peaks = device_peaks("cpu", torch.float32)
    assert peaks.flops_per_s is not None and 1e9 < peaks.flops_per_s < 1e14
    assert peaks.bytes_per_s is not None and 1e8 < peaks.bytes_per_s < 1e13
    assert device_peaks("cpu", torch.float32) == peaks
    assert device_peaks("cpu", torch.bfloat16).flops_per_s != peaks.flops_per_s


def test_what_else_runs_does_not_lower_the_peak_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are timed in processor time, of one thread: a clock on the wall that runs a thousand
    times too fast, as on a machine with a thousand others, changes nothing."""
    cpu, clock = torch.device("cpu"), time.perf_counter
    measured_peaks(cpu, torch.float32)  # libraries load
    measured_peaks.cache_clear()
    quiet = measured_peaks(cpu, torch.float32).flops_per_s
    measured_peaks.cache_clear()
    monkeypatch.setattr(time, "perf_counter", lambda: 1000 * clock())
    busy = measured_peaks(cpu, torch.float32).flops_per_s
    measured_peaks.cache_clear()
    assert quiet is not None and busy is not None and 0.1 < busy / quiet < 10


def test_a_known_gpu_is_measured_where_its_sheet_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MFU is a share of what the run's own type can do: bfloat16 of the sheet, else measured."""
    asked: list[torch.dtype] = []

    def measured(_: torch.device, dtype: torch.dtype) -> DevicePeaks:
        asked.append(dtype)
        return DevicePeaks(5e13, 1e12)

    monkeypatch.setattr(peaks_module, "measured_peaks", measured)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert device_peaks("cuda", torch.bfloat16) == DevicePeaks(989.4e12, 3.35e12)
    assert device_peaks("cuda", torch.float32) == DevicePeaks(5e13, 3.35e12)
    assert asked == [torch.float32]
    unmeasured = device_peaks("cuda", torch.float32, measure=False)
    assert unmeasured == DevicePeaks(None, 3.35e12)


def test_what_is_given_overrides_and_unknown_stays_unknown() -> None:
    peaks = device_peaks("cpu", torch.float32, tflops=2.0, bandwidth_gbs=3.0, measure=False)
    assert peaks == DevicePeaks(2e12, 3e9)
    peaks = device_peaks("cpu", torch.float32, tflops=2.0, measure=False)
    assert peaks == DevicePeaks(2e12, None)
