# SPDX-License-Identifier: Apache-2.0
"""Lines and JSON of a plan say the same."""

from __future__ import annotations

import json

import pytest

from satori_fast.planning.layouts import Layout
from satori_fast.planning.page import json_of, lines_of
from tests.planning.test_planner import PPO, job, plan


def test_lines_and_json_have_the_same_numbers() -> None:
    found = plan(job(), Layout(tensor=4, recompute="full"), 8, "h200")
    lines = lines_of(found)
    assert (
        lines[0] == "qwen2.5-7b: qwen2.5-7b, 7.616 B parameters in bfloat16, on 8 x h200 (141 GB)"
    )
    assert all(len(line) <= 120 for line in lines)
    values = json.loads(json.dumps(json_of(found)))
    assert values["asked"]["fits"] and values["advice"] == []
    assert values["asked"]["layout"]["tensor"] == 4
    phases = values["asked"]["memory"]["reinforce"]
    (row,) = [line.split() for line in lines if line.startswith("  together")][:1]
    sums = [f"{sum(parts.values()) / 1e9:.1f}" for parts in phases.values()]
    assert row == ["together", *sums]
    (rate,) = [line for line in lines if line.endswith("tokens per second on all ranks")]
    assert rate.startswith(f"{values['asked']['tokens_per_s']:,.0f} ")
    assert "update: 0.35 of the peak, assumed" in "\n".join(lines)
    assert values["efficiencies"]["update"]["origin"] == "assumed"


@pytest.mark.parametrize("gpus", [4, 8])
def test_what_does_not_fit_ends_with_advice(gpus: int) -> None:
    found = plan(job(PPO), Layout(tensor=4), gpus)
    text = "\n".join(lines_of(found))
    assert "it does not fit: " in text and "no layout of these GPUs fits" in text
    assert "it fits with\n" in text and '  reinforce.recipe = "grpo": tensor 4' in text
