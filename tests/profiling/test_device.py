# SPDX-License-Identifier: Apache-2.0
"""Device load and description, on whatever machine the tests run."""

import json
import mmap
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from satori_fast.profiling.device import NvmlSampler, describe_device, host_memory


class FakeNvml:
    """The part of pynvml that the sampler reads, of a GPU that a test controls.

    missing: functions that this GPU does not support.
    """

    class NVMLError(Exception):
        pass

    def __init__(self, *missing: str) -> None:
        self.millijoules = 7_000
        self.milliwatts = 300_000
        self._missing = missing

    def _supported(self, function: str) -> None:
        if function in self._missing:
            raise self.NVMLError(function)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        self._supported("nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=40)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        self._supported("nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(used=2**30)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        self._supported("nvmlDeviceGetPowerUsage")
        return self.milliwatts

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self._supported("nvmlDeviceGetTotalEnergyConsumption")
        return self.millijoules


def test_a_gpu_is_read_through_nvml():
    nvml = FakeNvml()
    with NvmlSampler("cpu", interval_s=60.0, nvml=(nvml, "gpu 0")) as sampler:
        nvml.millijoules += 1_500
        metrics = sampler.take()
        assert sampler.take()["device/energy_j"] == 0.0
    assert metrics["device/utilisation"] == 0.4
    assert metrics["device/memory_bytes"] == 2**30
    assert metrics["device/power_w"] == 300.0
    assert metrics["device/energy_j"] == 1.5


def test_what_a_gpu_does_not_tell_is_left_out():
    silent = FakeNvml(
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetUtilizationRates",
    )
    with NvmlSampler("cpu", interval_s=60.0, nvml=(silent, "gpu 0")) as sampler:
        named = {name for name in sampler.take() if name.startswith("device/")}
    assert named == {"device/memory_bytes"}


def test_without_an_energy_counter_energy_is_power_times_time():
    nvml = FakeNvml("nvmlDeviceGetTotalEnergyConsumption")
    with NvmlSampler("cpu", interval_s=60.0, nvml=(nvml, "gpu 0")) as sampler:
        begin = time.perf_counter()
        sampler.take()
        time.sleep(0.02)
        energy_j = sampler.take()["device/energy_j"]
    assert 300.0 * 0.02 <= energy_j <= 300.0 * (time.perf_counter() - begin)


def test_a_cpu_run_samples_host_memory_only():
    with NvmlSampler("cpu") as sampler:
        assert not sampler.available
        metrics = sampler.take()
    assert metrics.keys() == {"host/rss_bytes", "host/peak_rss_bytes"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_machine_without_nvml_is_not_an_error():
    with NvmlSampler("cuda") as sampler:
        assert not sampler.available
        assert "host/rss_bytes" in sampler.take()


def test_host_memory_sees_an_allocation_and_its_peak_stays():
    before = host_memory()
    # Of the system itself: the C library may have as much left from before.
    block = mmap.mmap(-1, 2**26)
    touched = np.frombuffer(block, dtype=np.uint8)
    touched[:] = 1
    during = host_memory()
    assert during["host/rss_bytes"] - before["host/rss_bytes"] > 0.9 * len(block)
    assert during["host/peak_rss_bytes"] >= during["host/rss_bytes"]
    peak = during["host/peak_rss_bytes"]
    del touched
    block.close()
    # Linux counts resident pages in per-thread batches: a few hundred kB of slack.
    assert host_memory()["host/peak_rss_bytes"] >= peak - 2**20


def test_memory_is_that_of_the_named_process():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        metrics = host_memory(psutil.Process(child.pid))
        own = host_memory()
    finally:
        child.communicate(b"\n")
    assert metrics["host/rss_bytes"] < own["host/rss_bytes"]
    assert metrics["host/rss_bytes"] <= metrics["host/peak_rss_bytes"] < own["host/peak_rss_bytes"]


def test_description_of_a_cpu_is_json_and_true():
    description = describe_device("cpu")
    assert json.loads(json.dumps(description)) == description
    assert description["kind"] == "cpu" and description["name"]
    assert 1 <= description["cores"] <= os.cpu_count()
    assert description["torch"] == torch.__version__
    assert description["memory_bytes"] == psutil.virtual_memory().total


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_sampled():
    with NvmlSampler("cuda", interval_s=0.02) as sampler:
        assert sampler.available
        x = torch.randn(4096, 4096, device="cuda")
        for _ in range(200):
            x = torch.nn.functional.normalize(x @ x)
        torch.cuda.synchronize()
        metrics = sampler.take()
    assert metrics["device/memory_bytes"] >= x.nbytes
    assert 0.0 <= metrics["device/utilisation"] <= 1.0
    assert metrics["device/power_w"] > 0.0 and metrics["device/energy_j"] >= 0.0
    assert describe_device("cuda")["name"] == torch.cuda.get_device_name()
