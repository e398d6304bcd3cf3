# SPDX-License-Identifier: Apache-2.0
"""Devices from data sheets, and efficiencies that are what the repository's measurements say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from satori_fast.planning.devices import Device
from satori_fast.profiling.data_sheets import data_sheet_named
from satori_fast.profiling.flops import TRAINING_PASSES, ModelShape, forward_flops

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
HOST = Device.of_host(memory_bytes=16e9, flops_per_s=1e11, bytes_per_s=2e10)


def test_a_gpu_is_its_data_sheet() -> None:
    h100 = Device.of_sheet(data_sheet_named("H100"))
    assert (h100.name, h100.kind, h100.memory_bytes) == ("h100", "cuda", 80e9)
    assert h100.rate("update") == 0.35 * 989.4e12 and h100.rate("decode") == 0.6 * 3350e9
    assert h100.rate("link") == 0.7 * 450e9 and h100.rate("network") == 0.7 * 50e9
    assert h100.slower(0.5).rate("update") == h100.rate("update") / 2


def test_nothing_is_called_measured_that_was_not() -> None:
    h100 = Device.of_sheet(data_sheet_named("h100"))
    assert {each.origin for each in h100.efficiencies.values()} == {"assumed"}
    measured = {n for n, each in HOST.efficiencies.items() if each.origin == "measured"}
    assert measured == {"forward", "update"}
    assert all("step.json" in HOST.efficiencies[name].source for name in measured)


def test_measured_efficiencies_are_those_of_the_recorded_run() -> None:
    """FLOPs of W1's tokens over its seconds, as a share of the ceiling of one of two threads."""
    figures = json.loads((RESULTS / "step.json").read_text())["figures"]["stages-W1"]
    heads = json.loads((RESULTS / "linear_policy_loss.json").read_text())["figures"]
    head = heads["main_float32"]
    ceiling = head["floor"]["ceiling_gflops"] * 1e9 / head["threads"]
    workload, speed = figures["workload"], figures["sides"]["satori"]["tokens_per_s"]
    sizes = workload["shape"]
    shape = ModelShape(
        num_layers=sizes["num_hidden_layers"],
        hidden_size=sizes["hidden_size"],
        num_heads=sizes["num_attention_heads"],
        num_kv_heads=sizes["num_key_value_heads"],
        head_dim=sizes["hidden_size"] // sizes["num_attention_heads"],
        intermediate_size=sizes["intermediate_size"],
        num_logits=workload["vocab_size"],
    )
    length = workload["prompt_tokens"] + workload["mean_tokens"]
    each = forward_flops(shape, [length]) / length  # of a token
    shares = {
        "forward": each * speed["logprob"] / ceiling,
        "update": TRAINING_PASSES * each * speed["update"] / ceiling,
    }
    for name, share in shares.items():
        assert HOST.efficiencies[name].share == pytest.approx(share, abs=0.03)
