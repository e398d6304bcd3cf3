# SPDX-License-Identifier: Apache-2.0
"""Operators and kernels of chosen steps of each stage, by torch.profiler.

Outside of those steps nothing is recorded and nothing is paid. Every rank leaves a file for each
stage; `trace_file` makes one trace of all, on one clock with our spans.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from satori_fast.profiling.trace_file import kernel_part


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Choice of the steps of a stage that are recorded, and of how much of them.

    first_step: steps of a stage that pass before, as warm-up; fewer in a stage that is too short.
    num_steps:  steps recorded.
    stacks:     Python stacks of operators too: slower and larger.
    memory:     allocations too, as curves.
    """

    first_step: int = 2
    num_steps: int = 2
    stacks: bool = False
    memory: bool = False


class StepTracer:
    """Records the chosen steps of each stage of one rank into files in `folder`.

    tracer.begin(num_steps)     # a stage begins
    ...
    tracer.step_done()          # after each step
    tracer.close()
    """

    def __init__(
        self,
        folder: Path,
        settings: TraceSettings,
        *,
        rank: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._rank = rank
        self._activities = [ProfilerActivity.CPU]
        if torch.device(device).type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._profiler: profile | None = None
        self._first = self._stop = self._num_done = 0
        self._start_ns = 0

    @property
    def is_recording(self) -> bool:
        return self._profiler is not None

    def begin(self, num_steps: int) -> bool:
        """A stage of `num_steps` begins with its next step; did the recorder start?"""
        chosen = min(self._settings.num_steps, num_steps)
        self._first = min(self._settings.first_step, num_steps - chosen)
        self._stop = self._first + chosen
        self._num_done = 0
        return self._start_or_stop()

    def step_done(self) -> bool:
        """A step is over; did the recorder start or stop? That takes time that is no step's."""
        self._num_done += 1
        return self._start_or_stop()

    def close(self) -> None:
        """Drop what was not finished: an error came between."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _start_or_stop(self) -> bool:
        if self._profiler is None and self._first <= self._num_done < self._stop:
            self._start_ns = time.time_ns()
            self._profiler = profile(
                activities=self._activities,
                profile_memory=self._settings.memory,
                with_stack=self._settings.stacks,
            )
            self._profiler.start()
            return True
        if self._profiler is not None and self._num_done >= self._stop:
            self._profiler.stop()
            self._folder.mkdir(parents=True, exist_ok=True)
            part = kernel_part(self._folder, self._rank, self._start_ns)
            self._profiler.export_chrome_trace(str(part))
            self._profiler = None
            return True
        return False
