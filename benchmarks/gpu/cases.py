# SPDX-License-Identifier: Apache-2.0
"""All cases of the GPU suite in the order they run: the device, correctness, then speed."""

from __future__ import annotations

from benchmarks.gpu import ceilings, correctness, head_speed, small_speed
from benchmarks.gpu.case import SIZES, Case

# By when, as a share of the budget, each section stops starting new cases.
DEADLINES = {
    "environment": 1.0,
    "ceilings": 0.15,
    "correctness": 0.35,
    "tests": 0.5,
    "head": 0.8,
    "small": 0.88,
    "compile": 1.0,
}


def all_cases(scale: str) -> list[Case]:
    """Every case at `scale`, a key of SIZES; names are unique."""
    sizes = SIZES[scale]
    found = [
        *ceilings.cases(sizes),
        *correctness.cases(sizes),
        *head_speed.cases(sizes),
        *small_speed.cases(sizes),
    ]
    order = list(DEADLINES)
    return sorted(found, key=lambda case: order.index(case.section))
