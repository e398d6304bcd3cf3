# SPDX-License-Identifier: Apache-2.0
"""Leaks are told from plateaus, noise and jumps, on made-up series."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from satori_fast.profiling.memory_growth import (
    MachineMemory,
    MemoryGrowth,
    machine_memory,
    robust_slope,
)

MIB = 2**20
NOISE = np.random.default_rng(0).normal(0.0, 1.0, 400)
STEPS = np.arange(400)


def watched(rss_mib, *, num_steps=None, free_mib=1000.0, limit_share=0.25):
    """(alarm, its step, the last slope in MiB) of a process on a machine of 4000 MiB that has
    `free_mib` more at the first step."""
    watch = MemoryGrowth(limit_share=limit_share)
    watch.start(num_steps)
    at, metrics = None, {}
    for step, mib in enumerate(rss_mib):
        free = free_mib - (mib - rss_mib[0])
        metrics = watch.add(mib * MIB, MachineMemory(4000.0 * MIB, free * MIB))
        if watch.alarm is not None and at is None:
            at = step
    slope = metrics.get("host/growth_bytes_per_step")
    return watch.alarm, at, None if slope is None else slope / MIB


def test_a_leak_that_will_not_fit_is_reported_early():
    alarm, at, slope = watched(500 + 2.0 * STEPS + NOISE, num_steps=1000)
    # 2 MiB a step, 1000 MiB free: full after 500 of 1000 steps.
    assert alarm is not None and at < 40
    assert slope == pytest.approx(2.0, rel=0.02)
    assert "grows steadily: 5" in alarm and "MiB per step" in alarm and "steps to go" in alarm


def test_the_alarm_counts_down_to_a_full_machine():
    rss = 500 + 2.0 * STEPS[:26]
    alarm, at, _ = watched(rss, num_steps=1000)
    # At step 24, the 25th: 548 MiB now, 510 at the sixth step; 952 MiB free, 2 a step: 476 steps.
    assert at == 24 and alarm == (
        "host memory grows steadily: 510 MiB 19 steps ago, 548 MiB now, 2.00 MiB per step; "
        "the machine's memory is full in about 476 steps; the stage has 975 steps to go"
    )


def test_a_leak_that_fits_is_measured_and_not_reported():
    alarm, _, slope = watched(500 + 0.2 * STEPS + NOISE, num_steps=400)
    assert alarm is None and slope == pytest.approx(0.2, rel=0.2)


def test_a_steady_growth_beyond_the_share_is_reported_whatever_the_end():
    # A tenth of 4000 MiB is 400 MiB, reached after 200 steps of 2 MiB.
    alarm, at, _ = watched(500 + 2.0 * STEPS, limit_share=0.1, free_mib=3500.0)
    assert alarm is not None and 200 <= at <= 210
    assert "steps to go" not in alarm


@pytest.mark.parametrize(
    "rss",
    [
        500 + 5 * NOISE,
        500 + 700 * (1 - np.exp(-STEPS / 20)),  # caches fill, then a plateau
        500 + 600 * (STEPS >= 50),  # a checkpoint
        500 + 300.0 * (STEPS >= 30) + 300.0 * (STEPS >= 90) + NOISE,
        900 - 1.0 * STEPS,
    ],
    ids=["noise", "plateau", "jump", "two jumps", "shrinking"],
)
def test_what_is_no_leak_is_not_reported(rss):
    alarm, _, _ = watched(rss[:300], num_steps=300, free_mib=2000.0)
    assert alarm is None


def test_the_first_steps_of_a_stage_do_not_count():
    watch = MemoryGrowth()
    watch.start(None)
    machine = MachineMemory(4000.0 * MIB, 1000.0 * MIB)
    slopes = [watch.add(x, machine) for x in [100.0, 900.0, 1.0, 5e9, 7.0] + [50.0] * 20]
    assert slopes[:24] == [{}] * 24
    assert slopes[24] == {"host/growth_bytes_per_step": 0.0}


def test_a_stage_warns_once_and_the_next_one_starts_anew(caplog):
    watch = MemoryGrowth()
    machine = MachineMemory(4000.0 * MIB, 100.0 * MIB)
    with caplog.at_level(logging.WARNING):
        for stage in range(2):
            watch.start(1000)
            assert watch.alarm is None
            for step in range(60):
                watch.add((500 + 2 * step) * MIB, machine)
            assert len(caplog.records) == stage + 1


def test_one_wild_value_does_not_tilt_the_slope():
    values = 3.0 * np.arange(50.0)
    values[25] = 1e9
    assert robust_slope(values) == pytest.approx(3.0)


def test_this_machine_has_memory():
    memory = machine_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes
