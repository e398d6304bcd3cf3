# SPDX-License-Identifier: Apache-2.0
"""The stage of a job whose steps are timed, and sums of its lengths."""

from __future__ import annotations

from dataclasses import replace

from satori_fast.planning.job import EnginePlan, Job, Lengths, Role, Stage
from satori_fast.planning.sizes import KNOWN

LENGTHS = Lengths(100, 300, 25, 150)
TUNING = Stage(
    "supervised", (Role("policy", "policy", True),), LENGTHS, 128, 128, 1, sampling="never"
)


def test_lengths_add_up() -> None:
    assert LENGTHS.longest == 400 and LENGTHS.expected == 175


def test_the_first_stage_that_samples_in_its_steps_is_timed() -> None:
    later = replace(TUNING, name="reinforce", sampling="in steps")
    sizes, engine = KNOWN["qwen2.5-7b"], EnginePlan("embedded", 64)
    job = Job("a", "7B", sizes, "bfloat16", 8192, engine, (TUNING, later, replace(later, name="b")))
    assert job.main is later and job.element_bytes == 2
    alone = replace(job, stages=(TUNING,), dtype="float32")
    assert alone.main is TUNING and alone.element_bytes == 4
