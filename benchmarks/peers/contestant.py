# SPDX-License-Identifier: Apache-2.0
"""A side of the race in a process of its own: steps when it is told to, reports what they took.

Lines of JSON go over the process's standard input and output; whatever libraries print goes to
standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from satori_fast.backbone.host_memory import give_back
from satori_fast.profiling.device import host_memory


@dataclass(frozen=True)
class StepRecord:
    """What one step was.

    wall_s, cpu_s:  of the whole step. stages: CPU seconds (wall on a GPU) by stage.
    tokens:         prompt and completion tokens. prompts: a hash of the prompt ids.
    scored_tokens:  those whose log-probs a pass of their own made, before the update.
    """

    wall_s: float
    cpu_s: float
    stages: dict[str, float]
    completion_tokens: int
    tokens: int
    optimizer_steps: int
    prompts: str
    scored_tokens: int


class Line:
    """The contestant's end. Make it before anything prints."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._begin = (0.0, 0.0)

    def ready(self, **facts: Any) -> None:
        """Set-up is over; `facts` go into the record."""
        forget_peak()
        self._send({**facts, "threads": torch.get_num_threads(), **memory()})

    def wait(self) -> bool:
        """Until the next step may begin, and start its clock; False: there is none."""
        go = sys.stdin.readline().strip() == "step"
        self._begin = (time.perf_counter(), time.process_time())
        return go

    def elapsed(self) -> tuple[float, float]:
        """Wall and CPU seconds of this step so far; the device's work included."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]

    def report(self, record: StepRecord) -> None:
        self._send(vars(record) | memory())

    def _send(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self._out, flush=True)


def memory() -> dict[str, int]:
    """Bytes held now, and at most since set-up: resident, or of torch's allocator on a GPU."""
    if torch.cuda.is_initialized():
        now, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        return {"now_bytes": now, "peak_bytes": peak}
    host = host_memory()
    return {
        "now_bytes": int(host["host/rss_bytes"]),
        "peak_bytes": int(host["host/peak_rss_bytes"]),
    }


def forget_peak() -> None:
    """Loading has a peak of its own, which is not a step's, and leaves freed pages."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    else:
        give_back()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def settle(core: int | None, num_threads: int = 1) -> None:
    """One thread unless more are asked for, and one core if it is named."""
    torch.set_num_threads(num_threads)
    if core is not None:
        os.sched_setaffinity(0, {core})


def arguments() -> tuple[Path, int | None]:
    """Folder of the workload and the core to stay on."""
    folder, core = sys.argv[1:3]
    return Path(folder), None if core == "any" else int(core)
