# SPDX-License-Identifier: Apache-2.0
"""Alarm for memory leaks of the host: memory that grows step by step and will not last.

Kept apart from what only looks like a leak: the first steps of a stage (caches fill), noise, and a
jump (a checkpoint, an evaluation). Not for: reading memory (`device`), or that of a GPU.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

logger = logging.getLogger(__name__)

SKIPPED_STEPS = 5
MIN_STEPS = 20
WINDOW = 100
_NUM_BLOCKS = 5
_STEADINESS = 0.25  # least growth between two blocks, as a share of the mean one
_LEAST_PACE = 0.7  # slope of the later half of the window over that of the earlier one
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """Bytes that processes here may use in all, and those still free."""

    total_bytes: float
    available_bytes: float


class MemoryGrowth:
    """Watches the resident memory of a stage's processes on one machine.

    limit_share: growth since the stage's first steps, as a share of the machine's memory, that a
                 steady growth may reach before it is reported even where memory would last.

        watch.start(num_steps=1000)
        metrics |= watch.add(rss_bytes)     # once per step; warns at most once per stage
    """

    def __init__(self, *, limit_share: float = 0.25, window: int = WINDOW) -> None:
        self._limit_share = limit_share
        self._window = window
        self.start(None)

    def start(self, num_steps: int | None) -> None:
        """A stage of `num_steps` begins, None where nobody knows how many."""
        self._num_steps = num_steps
        self._num_seen = 0
        self._rss: deque[float] = deque(maxlen=self._window)
        self._first_bytes = 0.0
        self.alarm: str | None = None

    def add(self, rss_bytes: float, machine: MachineMemory | None = None) -> dict[str, float]:
        """host/growth_bytes_per_step, once enough steps were seen; sets `alarm`, and logs it, when
        a steady growth is too much. machine: read now unless given."""
        self._num_seen += 1
        if self._num_seen <= SKIPPED_STEPS:
            return {}
        if not self._rss:
            self._first_bytes = rss_bytes
        self._rss.append(rss_bytes)
        if len(self._rss) < MIN_STEPS:
            return {}
        rss = np.array(self._rss)
        slope = robust_slope(rss)
        if self.alarm is None and slope > 0 and is_steady(rss):
            self._judge(slope, rss_bytes, machine or machine_memory())
        return {"host/growth_bytes_per_step": slope}

    def _judge(self, slope: float, rss_bytes: float, machine: MachineMemory) -> None:
        steps_to_full = machine.available_bytes / slope
        steps_left = None if self._num_steps is None else self._num_steps - self._num_seen
        fills = steps_left is not None and steps_to_full < steps_left
        grown_bytes = rss_bytes - self._first_bytes
        if not fills and grown_bytes < self._limit_share * machine.total_bytes:
            return
        left = "" if steps_left is None else f"; the stage has {steps_left} steps to go"
        self.alarm = (
            f"host memory grows steadily: {self._first_bytes / _MIB:,.0f} MiB "
            f"{self._num_seen - SKIPPED_STEPS - 1} steps ago, {rss_bytes / _MIB:,.0f} MiB now, "
            f"{slope / _MIB:,.2f} MiB per step; the machine's memory is full in about "
            f"{steps_to_full:,.0f} steps{left}"
        )
        logger.warning("%s", self.alarm)


def robust_slope(values: np.ndarray) -> float:
    """Growth per step of equidistant values: the median of the slopes of all pairs (Theil-Sen)."""
    later, earlier = np.tril_indices(len(values), -1)
    return float(np.median((values[later] - values[earlier]) / (later - earlier)))


def is_steady(values: np.ndarray) -> bool:
    """Whether every fifth of the values lies above the one before, by a fair share of growth, and
    the growth does not slow down.

    A jump fails the first: nothing grows between the fifths before it, or after. A cache that fills
    fails the second.
    """
    medians = np.array([np.median(block) for block in np.array_split(values, _NUM_BLOCKS)])
    growth = np.diff(medians)
    if growth.mean() <= 0 or growth.min() < _STEADINESS * growth.mean():
        return False
    early, late = (robust_slope(half) for half in np.array_split(values, 2))
    return late >= _LEAST_PACE * early


def machine_memory() -> MachineMemory:
    """Memory of this machine, or of the container (cgroup v2) that confines this process."""
    memory = psutil.virtual_memory()
    whole = MachineMemory(float(memory.total), float(memory.available))
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = float((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return whole
    if limit == "max":
        return whole
    # Cached files are given back before a process is killed.
    cached = sum(float(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    available = max(0.0, float(limit) - used + cached)
    return MachineMemory(
        min(whole.total_bytes, float(limit)), min(whole.available_bytes, available)
    )
