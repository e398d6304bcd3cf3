# SPDX-License-Identifier: Apache-2.0
"""The measuring tool of all microbenchmarks: times in turn, peak memory, hardware floors, records.

A ratio is only as good as the two sides' equal conditions, so alternatives run in turn (A B C A B
C ...) in one process, and ceilings are measured in the same run. Nothing here asserts on a time.
Not the benchmarks themselves (`bench_*.py`, on the fixture `race` of conftest.py).
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    *("torch", "triton", "transformers", "trl", "liger-kernel", "numpy", "cydifflib"),
    "satori-fast",
)

Function = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per call, one sample for each repeat; a sample is the mean of `calls` calls.

    wall:   on the clock, the device's work included.
    cpu:    of all threads of this process.
    system: the part of `cpu` that the kernel of the system took, in most cases to hand out pages
            of memory that the call before gave back.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    system: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu)

    @property
    def spread(self) -> float:
        """Distance between the quartiles over the median: 0.05 is quiet, 0.3 is noise."""
        if len(self.wall) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.wall, n=4, method="inclusive")
        return (high - low) / self.median

    def figures(self) -> dict[str, float | int]:
        """What a record holds."""
        return {
            "wall_ms": significant(1e3 * self.median),
            "wall_min_ms": significant(1e3 * min(self.wall)),
            "wall_spread": significant(self.spread, 2),
            "cpu_ms": significant(1e3 * self.cpu_median),
            "system_ms": significant(1e3 * statistics.median(self.system)),
            "repeats": len(self.wall),
            "calls": self.calls,
        }


def interleave(
    alternatives: Mapping[str, Function],
    *,
    repeats: int = 7,
    warmup: int = 1,
    min_seconds: float = 2e-3,
) -> dict[str, Timing]:
    """Runs the alternatives in turn, `repeats` times each, after `warmup` calls of each.

    min_seconds: a sample lasts at least this long; a faster function is called several times.
    """
    for function in alternatives.values():
        for _ in range(warmup):
            function()
    calls = {name: _calls_for(f, min_seconds) for name, f in alternatives.items()}
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in alternatives}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, function in alternatives.items():
                samples[name].append(_sample(function, calls[name]))
    finally:
        gc.enable()
    return {
        name: Timing(*zip(*taken, strict=True), calls=calls[name])
        for name, taken in samples.items()
    }


def peak_bytes(function: Function) -> int:
    """Most memory that one call holds beyond what was there before it, its result included.

    With a CUDA device that this process uses, the allocator's peak; otherwise the high-water mark
    of the resident set (Linux). A first call, not counted, fills caches and loads code.
    """
    function()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Freed memory that the C library keeps would hide what the call takes.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status_bytes("VmRSS")
    function()
    return max(_status_bytes("VmHWM") - before, 0)


def gemm_flops(
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    shapes: Sequence[tuple[int, int, int]] = (),
) -> float:
    """Floating point operations per second of the best `torch.mm` (m, k, n) among `shapes`."""
    if not shapes:
        sizes = (4096, 8192) if device.startswith("cuda") else (512, 1024)
        shapes = [(size, size, size) for size in sizes]
    best = 0.0
    for m, k, n in shapes:
        a = torch.randn(m, k, device=device).to(dtype)
        b = torch.randn(k, n, device=device).to(dtype)
        timing = interleave({"mm": lambda a=a, b=b: torch.mm(a, b)}, repeats=5)["mm"]
        best = max(best, 2.0 * m * k * n / min(timing.wall))
    return best


def copy_bandwidth(device: str = "cpu", num_bytes: int = 2**28) -> float:
    """Bytes per second, read and written both counted, of a copy too large for the caches."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = interleave({"copy": lambda: target.copy_(source)}, repeats=5)["copy"]
    return 2.0 * num_bytes / min(timing.wall)


def compiled(
    function: Callable[..., Any], *example: Any, **named: Any
) -> Callable[..., Any] | None:
    """torch.compile of `function`, tried once on an example of its arguments; None, and a line that
    says so, where that fails (on the CPU it needs a C++ compiler)."""
    try:
        fast = torch.compile(function, dynamic=False)
        fast(*example, **named)
    except Exception as error:  # the compiler's own failures are of any type
        first_line = str(error).strip().partition("\n")[0]
        print(f"left out: torch.compile failed ({type(error).__name__}: {first_line})")
        return None
    return fast


def environment() -> dict[str, Any]:
    """Versions and machine: figures of different environments are never kept in one record."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", "satori_fast", "csrc", "benchmarks/*.py")
    versions = {name: version for name in PACKAGES if (version := _version(name)) is not None}
    kernels = _extension()
    instruction_set = getattr(kernels, "instruction_set", None)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit and commit + ("+changes" if changed else ""),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": _cpu_name(),
            "gpu": gpu,
            "kernels": "none" if kernels is None else "compiled",
            "instruction_set": instruction_set() if callable(instruction_set) else None,
        },
    }


def record(name: str, table: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Writes `table` into folder/NAME.json under "figures", key by key, and returns the path.

    Keys that the file already holds are replaced. A file from another environment is started
    afresh, so that all figures of a file can be compared.
    """
    path = folder / f"{name}.json"
    conditions = environment()
    figures: dict[str, Any] = {}
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if all(old.get(key) == value for key, value in conditions.items()):
            figures = old["figures"]
    content = {"name": name, **conditions, "figures": figures | dict(table)}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def significant(value: float, digits: int = 4) -> float:
    """`value` rounded to so many significant digits, for readable records."""
    return float(f"{value:.{digits}g}")


def _sample(function: Function, calls: int) -> tuple[float, float, float]:
    """Mean wall, CPU and system seconds of so many calls."""
    _finish_device_work()
    begin = _clocks()
    for _ in range(calls):
        function()
    _finish_device_work()
    wall, cpu, system = (b - a for a, b in zip(begin, _clocks(), strict=True))
    return wall / calls, cpu / calls, system / calls


def _clocks() -> tuple[float, float, float]:
    system = resource.getrusage(resource.RUSAGE_SELF).ru_stime
    return time.perf_counter(), time.process_time(), system


def _calls_for(function: Function, min_seconds: float) -> int:
    calls = 1
    while (taken := _sample(function, calls)[0] * calls) < min_seconds:
        # A first guess may be off by the cost of a cold start: it grows by tenfold at most.
        calls = min(10 * calls, math.ceil(1.2 * calls * min_seconds / max(taken, 1e-9)))
    return calls


def _finish_device_work() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}: peak memory on the host needs Linux")


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _extension() -> Any:
    try:
        return import_module("satori_fast._C")
    except ImportError:
        return None


def _git(*arguments: str) -> str | None:
    """Output of git on this checkout; None where there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except OSError as error:
        print(f"the record has no commit: {error}", file=sys.stderr)
        return None
    return done.stdout.strip() if done.returncode == 0 else None
