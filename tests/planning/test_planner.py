# SPDX-License-Identifier: Apache-2.0
"""Plans: what fits, in which order, and what would fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from satori_fast.planning.devices import Device
from satori_fast.planning.job import EnginePlan, Job, Lengths, Role, Stage
from satori_fast.planning.layouts import Layout
from satori_fast.planning.planner import Plan, make_plan
from satori_fast.planning.sizes import KNOWN
from satori_fast.profiling.data_sheets import data_sheet_named

POLICY = Role("policy", "policy", trained=True)
CRITIC = Role("critic", "scalar", trained=True)
GRPO = Stage(
    "reinforce", (POLICY,), Lengths(1024, 2048, 256, 1024), 1024, 128, 2, sampling="in steps"
)
PPO = replace(GRPO, roles=(POLICY, CRITIC))
VLLM = EnginePlan("vllm", 256, share=0.3, sleeps=True, bucket_bytes=2**29)


def job(stage: Stage = GRPO, model: str = "qwen2.5-7b", engine: EnginePlan = VLLM) -> Job:
    return Job(model, model, KNOWN[model], "bfloat16", 16384, engine, (stage,))


def plan(planned: Job, layout: Layout, num_gpus: int, gpu: str = "h100") -> Plan:
    return make_plan(planned, layout, Device.of_sheet(data_sheet_named(gpu)), num_gpus)


def test_layouts_that_fit_come_fastest_first() -> None:
    """141 GB do not hold 7B under grpo alone (137 GB, and vLLM's 42); half of it they do."""
    found = plan(job(), Layout(tensor=4, recompute="full"), 8, "h200")
    assert found.asked.fits and found.advice == ()
    assert [each.layout.tensor for each in found.fitting] == [2, 4]
    assert [each.layout.data for each in found.fitting] == [4, 2]
    speeds = [each.time.tokens_per_s for each in found.fitting]
    assert speeds == sorted(speeds, reverse=True)
    # Where activations fit they are kept, which is faster.
    assert found.fitting[0].layout.recompute == "none"
    assert all(each.fullest.peak <= 141e9 for each in found.fitting)


def test_what_does_not_fit_is_told_what_would() -> None:
    """PPO of 7B on 8 GPUs of 80 GB: 69.6 GB of models, and vLLM; without the critic 37.8 GB."""
    found = plan(job(PPO), Layout(tensor=4, recompute="full"), 8)
    assert found.asked.lacking is not None
    assert found.asked.lacking.endswith("GB are needed in reinforce, 80.0 are there")
    assert found.fitting == ()
    changes = [each.changes for each in found.advice]
    assert ('reinforce.recipe = "grpo"',) in changes
    # Shared by two ranks, the optimizer leaves 22 GB more to each.
    sharing = replace(job(PPO))
    changes = [each.changes for each in plan(sharing, Layout(tensor=4), 8).advice]
    assert ("parallel.shard_optimizer = true",) in changes
    shared = plan(sharing, Layout(tensor=4, shard_optimizer=True), 8)
    assert shared.asked.fits


def test_a_layout_that_fits_is_the_first_advice() -> None:
    found = plan(job(), Layout(), 8)
    assert not found.asked.fits and found.fitting[0].layout.tensor == 4
    assert found.advice[0].changes == ("another layout",)
    assert found.advice[0].layout == found.fitting[0].layout


def test_servers_and_larger_gpus_are_advice() -> None:
    """72B on 256 GPUs of 80 GB: 58 GB of models on each, and no room for its weights once more."""
    shared = Layout(tensor=8, shard_optimizer=True, sequence=True)
    found = plan(job(GRPO, "qwen2.5-72b"), shared, 256)
    advice = {each.changes[0]: each.layout for each in found.advice}
    servers = advice['rollout.engine = "server", 16 servers of 4 GPUs each']
    assert servers.num_ranks == 192 and servers.pipeline > 1
    assert advice["--gpu h200"].num_ranks == 256


def test_changes_add_up_until_it_fits() -> None:
    """14B under PPO, awake engine: no single setting is enough on 8 GPUs of 80 GB."""
    awake = replace(VLLM, sleeps=False, share=0.5)
    planned = replace(job(PPO, "qwen2.5-14b", awake))
    advice, larger = plan(planned, Layout(tensor=8), 8).advice
    assert larger.changes == ("--gpu b200",)
    assert advice.changes[:2] == ("another layout", "rollout.sleep = true")
    assert len(advice.changes) > 2 and advice.layout.num_ranks == 8


def test_more_gpus_are_the_last_resort() -> None:
    """72B beside servers: a copy of 1,309 GB does not fit into 8 GPUs of any kind."""
    servers = EnginePlan("server", 256, share=0.9, num_gpus=8, tensor=8)
    (advice,) = plan(job(GRPO, "qwen2.5-72b", servers), Layout(tensor=8), 16).advice
    assert advice.changes[-1].startswith("--gpus ")
    assert advice.layout.num_ranks + 8 == int(advice.changes[-1].split()[-1])


def test_an_engine_needs_room_for_its_weights() -> None:
    """72B split over 8 GPUs is 18.2 GB of weights, more than a tenth of 141 GB."""
    engine = replace(VLLM, share=0.1)
    shared = Layout(tensor=8, shard_optimizer=True, recompute="full")
    found = plan(job(GRPO, "qwen2.5-72b", engine), shared, 256, "h200")
    assert found.asked.lacking == (
        "rollout.gpu_memory_share = 0.1 is 14.1 GB, and the engine's weights and one sequence take "
        "18.3"
    )


def test_a_layout_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="tensor = 8 does not divide"):
        plan(job(), Layout(tensor=8), 8)
    with pytest.raises(ValueError, match="--gpus 6 is no multiple"):
        plan(job(), Layout(tensor=4), 6)
