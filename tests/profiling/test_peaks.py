# SPDX-License-Identifier: Apache-2.0
"""Peaks by name, by measurement and by decree."""

from __future__ import annotations

import pytest
import torch

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


def test_a_cpu_is_measured_once() -> None:
    measured_peaks.cache_clear()
    measured_peaks(torch.device("cpu"))  # libraries load
    measured_peaks.cache_clear()
    peaks = device_peaks("cpu")
    assert peaks.flops_per_s is not None and 1e9 < peaks.flops_per_s < 1e14
    assert peaks.bytes_per_s is not None and 1e8 < peaks.bytes_per_s < 1e13
    assert device_peaks("cpu") == peaks


def test_what_is_given_overrides_and_unknown_stays_unknown() -> None:
    peaks = device_peaks("cpu", tflops=2.0, bandwidth_gbs=3.0, measure=False)
    assert peaks == DevicePeaks(2e12, 3e9)
    assert device_peaks("cpu", tflops=2.0, measure=False) == DevicePeaks(2e12, None)
