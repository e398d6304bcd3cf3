# SPDX-License-Identifier: Apache-2.0
"""Load of the machine: GPU load, memory, power and energy (NVML), host memory.

Without an NVIDIA driver, or without nvidia-ml-py, only host memory is sampled; nothing fails.

Not for: how long things take (`spans`), or torch's own view of its allocator.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """One reading of a GPU; None where the driver does not tell.

    utilisation: share of the last sampling period with a kernel running, 0 to 1.
    memory_bytes: device memory in use by all processes.
    power_w: watts of the board.
    """

    utilisation: float | None
    memory_bytes: int | None
    power_w: float | None


class NvmlSampler:
    """Samples one GPU from a thread, and the memory of this process.

    device:     CUDA device to watch; a "cpu" device leaves `available` False.
    interval_s: seconds between samples.
    nvml:       the module that reads GPUs and its handle of one; None: pynvml, where it is.

        with NvmlSampler("cuda") as sampler:
            ...
            metrics |= sampler.take()     # once per step
    """

    def __init__(
        self,
        device: torch.device | str = "cuda",
        *,
        interval_s: float = 0.5,
        nvml: tuple[Any, Any] | None = None,
    ) -> None:
        self._interval_s = interval_s
        self._nvml, self._handle = nvml or _open_nvml(torch.device(device))
        self._process = psutil.Process()
        self._samples: list[DeviceSample] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_energy_j = self._energy_j()
        self._last_time_s = time.perf_counter()

    @property
    def available(self) -> bool:
        """Whether there is a GPU that NVML can read."""
        return self._handle is not None

    def __enter__(self) -> NvmlSampler:
        if self.available and self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="nvml-sampler", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take(self) -> dict[str, float]:
        """Metrics since the last call.

        device/utilisation (mean, 0 to 1), device/memory_bytes (maximum), device/power_w (mean),
        device/energy_j (sum; power times wall time where the driver has no energy counter),
        host/rss_bytes (now), host/peak_rss_bytes (since the process started, Linux). Host memory is
        that of this process, its children excluded. A reading that does not exist is left out.
        """
        metrics = host_memory(self._process)
        if not self.available:
            return metrics
        with self._lock:
            samples, self._samples = self._samples, []
        samples = samples or [self._read()]
        utilisations = [s.utilisation for s in samples if s.utilisation is not None]
        memories = [s.memory_bytes for s in samples if s.memory_bytes is not None]
        powers = [s.power_w for s in samples if s.power_w is not None]
        now_s, energy_j = time.perf_counter(), self._energy_j()
        if utilisations:
            metrics["device/utilisation"] = sum(utilisations) / len(utilisations)
        if memories:
            metrics["device/memory_bytes"] = float(max(memories))
        if powers:
            metrics["device/power_w"] = sum(powers) / len(powers)
            metrics["device/energy_j"] = metrics["device/power_w"] * (now_s - self._last_time_s)
        if energy_j is not None and self._last_energy_j is not None:
            metrics["device/energy_j"] = energy_j - self._last_energy_j
        self._last_time_s, self._last_energy_j = now_s, energy_j
        return metrics

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            sample = self._read()
            with self._lock:
                self._samples.append(sample)

    def _read(self) -> DeviceSample:
        rates = self._query("nvmlDeviceGetUtilizationRates")
        memory = self._query("nvmlDeviceGetMemoryInfo")
        milliwatts = self._query("nvmlDeviceGetPowerUsage")
        return DeviceSample(
            utilisation=None if rates is None else rates.gpu / 100.0,
            memory_bytes=None if memory is None else int(memory.used),
            power_w=None if milliwatts is None else milliwatts / 1e3,
        )

    def _energy_j(self) -> float | None:
        millijoules = self._query("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def _query(self, function: str) -> Any:
        """The answer of one NVML call, None where this GPU does not support it."""
        if self._handle is None:
            return None
        try:
            return getattr(self._nvml, function)(self._handle)
        except self._nvml.NVMLError:
            return None


def host_memory(process: psutil.Process | None = None) -> dict[str, float]:
    """host/rss_bytes and (on Linux) host/peak_rss_bytes of `process`, this one unless told."""
    process = process or psutil.Process()
    metrics = {"host/rss_bytes": float(process.memory_info().rss)}
    # Not ru_maxrss: that of a child starts at the size of the parent that spawned it.
    peak = _field_of(Path(f"/proc/{process.pid}/status"), "VmHWM")
    if peak is not None:
        metrics["host/peak_rss_bytes"] = max(
            metrics["host/rss_bytes"], 1024.0 * float(peak.removesuffix("kB"))
        )
    return metrics


def describe_device(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Describe what the run ran on, for summary.json: kind, name, count, memory, cores, versions.

    "name" is the GPU for a CUDA device, else the processor; "cores" are those this process may use.
    """
    kind = torch.device(device).type
    cpu = _cpu_name()
    description: dict[str, Any] = {
        "kind": kind,
        "name": cpu,
        "count": 1,
        "memory_bytes": int(psutil.virtual_memory().total),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(torch.device(device))
        description |= {
            "name": properties.name,
            "count": torch.cuda.device_count(),
            "memory_bytes": int(properties.total_memory),
            "cuda": torch.version.cuda,
            "compute_capability": f"{properties.major}.{properties.minor}",
        }
    return description


def _open_nvml(device: torch.device) -> tuple[Any, Any]:
    """(pynvml module, device handle), or (None, None) without a readable GPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None, None
    try:
        import pynvml
    except ImportError:
        return None, None
    try:
        pynvml.nvmlInit()
        return pynvml, _nvml_handle(pynvml, device)
    except pynvml.NVMLError:
        return None, None


def _nvml_handle(pynvml: Any, device: torch.device) -> Any:
    # NVML numbers all GPUs of the machine, CUDA only the visible ones: only the UUID is the same.
    index = torch.cuda.current_device() if device.index is None else device.index
    uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError:
        # A slice of a GPU (MIG) is listed by its own UUID.
        return pynvml.nvmlDeviceGetHandleByUUID(uuid.replace("GPU-", "MIG-", 1))


def _cpu_name() -> str:
    name = _field_of(Path("/proc/cpuinfo"), "model name")
    return name or platform.processor() or platform.machine()


def _field_of(path: Path, field: str) -> str | None:
    """The value of the first "field: value" line of a Linux status file, None without one."""
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return None
