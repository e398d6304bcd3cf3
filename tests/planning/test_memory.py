# SPDX-License-Identifier: Apache-2.0
"""Bytes of a rank: by hand, by the constants of the kernels, and against what runs really take."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig

from satori_fast.algorithms.losses import PolicyLoss
from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.step import build_learner, update
from satori_fast.config import Config, load_config
from satori_fast.planning import memory
from satori_fast.planning.devices import Device
from satori_fast.planning.job import EnginePlan, Job, Lengths, Role, Stage
from satori_fast.planning.layouts import Layout, Recompute
from satori_fast.planning.memory import (
    HOST_PARTS,
    backward_bytes,
    cache_bytes,
    head_bytes,
    kept_bytes,
    layer_numbers,
    parameter_bytes,
    stage_memory,
)
from satori_fast.planning.of_config import plan_config
from satori_fast.planning.sizes import KNOWN, ModelSizes
from satori_fast.profiling.data_sheets import data_sheet_named
from satori_fast.profiling.flops import ModelShape
from satori_fast.stages import run_stages
from satori_fast.types import Advantages
from tests.tiny_models import random_batch

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"
SEVEN = KNOWN["qwen2.5-7b"]
H100 = Device.of_sheet(data_sheet_named("h100"))
POLICY = Role("policy", "policy", trained=True)
CRITIC = Role("critic", "scalar", trained=True)
REWARD = Role("reward", "scalar", trained=False)
PPO = Stage(
    "reinforce", (POLICY, CRITIC, REWARD), Lengths(2048, 2048, 512, 1024), 256, 256, 2, "in steps"
)
VLLM = EnginePlan("vllm", 512, share=0.3, sleeps=True, bucket_bytes=512 * 2**20)


def job(stage: Stage = PPO, engine: EnginePlan = VLLM) -> Job:
    return Job("seven", "7B", SEVEN, "bfloat16", 16384, engine, (stage,))


# --- by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "data", "shards", "expected"),
    [
        ("bfloat16", 1, False, 18),
        ("float32", 1, False, 16),
        ("bfloat16", 4, False, 18),
        ("bfloat16", 4, True, 6 + 12 / 4),
        ("float32", 4, True, 8 + 8 / 4),
    ],
)
def test_a_trained_parameter(dtype: str, data: int, shards: bool, expected: float) -> None:
    layout = Layout(data=data, shard_optimizer=shards)
    assert parameter_bytes(dtype, layout).total == expected


def test_a_layer_keeps_inputs_of_its_products() -> None:
    """H 3584, K 512, F 18944, a quarter of what is split."""
    numbers = layer_numbers(SEVEN, Layout(tensor=4))
    inside = 3 * 3584 + 3 * 512 + 3 * 18_944
    assert numbers.kept == 4 * 3584 + inside / 4 and numbers.again == 0
    shared = layer_numbers(SEVEN, Layout(tensor=4, sequence=True))
    assert shared.kept == 3584 + inside / 4
    on_host = layer_numbers(SEVEN, Layout(tensor=4), on_host=True)
    assert on_host.kept == numbers.kept + 3584 / 4
    # The activation's product and what attention made of the queries are made again.
    selective = layer_numbers(SEVEN, Layout(tensor=4, recompute="selective"))
    assert selective.kept == 4 * 3584 + inside * 2 / 3 / 4 and selective.again == 2 * 18_944 / 4
    full = layer_numbers(SEVEN, Layout(tensor=4, recompute="full"))
    assert full.kept == 3584 and full.kept + full.again == numbers.kept
    # Keys and values of both ranks.
    context = layer_numbers(SEVEN, Layout(context=2))
    assert context.kept == layer_numbers(SEVEN, Layout()).kept + 2 * 2 * 512


def test_recomputation_and_stages_of_a_pipeline() -> None:
    how: Any = {"size": 2, "on_host": False}
    kept = kept_bytes(SEVEN, Layout(recompute="full"), 1000, **how)
    assert kept == 2 * 1000 * 28 * 3584
    # Half of the layers, of the microbatches of two stages; on the last stage of one.
    split = Layout(pipeline=2, recompute="full")
    assert kept_bytes(SEVEN, split, 1000, **how) == kept
    assert kept_bytes(SEVEN, split, 1000, stage=1, **how) == kept / 2
    # Two chunks: five of a quarter on the first stage, three on the last.
    turns = replace(split, chunks=2)
    assert kept_bytes(SEVEN, turns, 1000, **how) == kept * 5 / 4
    assert kept_bytes(SEVEN, turns, 1000, stage=1, **how) == kept * 3 / 4
    assert kept_bytes(SEVEN, Layout(context=2, recompute="full"), 1000, **how) == kept / 2


def test_a_backward_pass_adds_gradients_and_what_is_made_again() -> None:
    how: Any = {"size": 2, "on_host": False}
    plain = backward_bytes(SEVEN, Layout(), 1000, **how)
    assert plain == 2 * 1000 * (3584 + 2 * 18_944)
    again = backward_bytes(SEVEN, Layout(recompute="full"), 1000, **how)
    assert again - plain == 2 * 1000 * layer_numbers(SEVEN, Layout(recompute="full")).again
    # 2 F / t is 9472 numbers, more than the gathered hidden states and their gradient.
    shared = backward_bytes(SEVEN, Layout(tensor=4, sequence=True), 1000, **how)
    assert shared == 2 * 1000 * (3584 / 4 + 2 * 18_944 / 4)
    seventy = backward_bytes(KNOWN["qwen2.5-72b"], Layout(tensor=8, sequence=True), 1000, **how)
    assert seventy == 2 * 1000 * (8192 / 8 + 2 * 8192)


def test_the_head_has_no_logits_of_all_tokens() -> None:
    """The gradient of the weight in float32 and a chunk, as the kernel's own page adds them up."""
    found = head_bytes(SEVEN, Layout(), 32_768, size=2, on_host=False)
    states = 3 * 2 * 32_768 * 3584
    assert found - states == 4 * 152_064 * 3584 + 1344 * 2**20
    shared = head_bytes(SEVEN, Layout(tensor=4, sequence=True), 1000, size=2, on_host=False)
    # Of so few tokens the logits are smaller than the gradient in bfloat16.
    assert shared == 2 * 1000 * 3584 * 2.5 + (4 + 2) * 152_064 / 4 * 3584
    # 2.37 GiB there, less what a chunk's rows of hidden states take.
    assert (found - states) / 2**30 == pytest.approx(2.37 + 1.02 - 0.05, abs=0.02)


def test_constants_are_those_of_the_kernels() -> None:
    from satori_fast.kernels import cpu_head
    from satori_fast.kernels.triton import products

    assert memory.HEAD_CHUNK_BYTES == products.CHUNK_BYTES
    assert memory.SCORE_CHUNK_BYTES == products.FORWARD_CHUNK_BYTES
    assert memory.HOST_CHUNK_BYTES == cpu_head.CHUNK_BYTES
    assert cpu_head.NUM_PARTIAL_SUMS + 2 == 18


def test_keys_and_values() -> None:
    assert cache_bytes(SEVEN, 1, size=2) == 2 * 28 * 4 * 128 * 2
    assert cache_bytes(SEVEN, 100, size=2, tensor=4) == 25 * cache_bytes(SEVEN, 1, size=2)


def test_phases_of_a_stage() -> None:
    """7B under PPO on tensor 4: models of 69.6 GB; vLLM's 24 GB beside them, but not in updates."""
    layout = Layout(tensor=4, data=2, recompute="full")
    found = stage_memory(job(), PPO, layout, H100)
    rollout, update = found.phases["rollout"], found.phases["update"]
    names = ("policy weights", "critic weights", "reward weights", "gradients", "optimizer")
    assert sum(rollout[name] for name in names) / 1e9 == pytest.approx(69.6, abs=0.05)
    assert rollout["engine"] == 24e9 and "engine" not in update
    assert set(found.phases) == {"rollout", "annotate", "update", "step", "sync"}
    policy = SEVEN.rank_parameters(layout)
    assert found.phases["step"]["optimizer's work"] == 4 * policy
    shared = stage_memory(job(), PPO, replace(layout, shard_optimizer=True), H100)
    assert shared.phases["update"]["optimizer"] == update["optimizer"] / 2
    awake = stage_memory(job(engine=replace(VLLM, sleeps=False)), PPO, layout, H100)
    assert awake.phases["update"]["engine"] == 24e9


def test_offloaded_is_what_a_phase_does_not_need() -> None:
    layout = Layout(tensor=4, data=2, recompute="full", offload=True)
    reference = Role("reference", "policy", trained=False)
    stage = replace(PPO, roles=(*PPO.roles, reference))
    found = stage_memory(job(stage), stage, layout, H100)
    trained = {"policy weights", "critic weights"}
    present = {
        phase: {name for name in parts if "weights" in name or name in ("gradients", "optimizer")}
        for phase, parts in found.phases.items()
    }
    assert present == {
        "rollout": trained | {"reward weights"},
        "annotate": trained | {"reference weights"},
        "update": trained | {"gradients", "optimizer"},
        "step": trained | {"gradients", "optimizer"},
        "sync": trained,
    }
    tuning = replace(stage, name="supervised", sampling="never")
    kept = stage_memory(job(tuning), tuning, layout, H100).phases["update"]
    assert {"reference weights", "optimizer"} <= set(kept)


def test_the_fuller_end_of_a_pipeline_counts() -> None:
    """The first stage keeps two microbatches and the embedding, the last one and the head."""
    servers = EnginePlan("server", 512, share=0.9, num_gpus=8)
    layout = Layout(tensor=4, pipeline=2, data=3)
    assert stage_memory(job(engine=servers), PPO, layout, H100).pipeline_stage == 0
    few = {"num_sequences": 3, "num_minibatches": 1, "roles": (POLICY,)}
    short = replace(PPO, lengths=Lengths(8, 8, 2, 4), **few)
    assert stage_memory(job(short, servers), short, layout, H100).pipeline_stage == 1


def test_who_samples_before_training_holds_the_policy_alone() -> None:
    tuned = replace(PPO, name="initialise", sampling="before", roles=(POLICY,))
    found = stage_memory(job(tuned), tuned, Layout(tensor=4), H100)
    assert set(found.phases["rollout"]) == {"policy weights", "engine"}
    assert "sync" not in found.phases and found.phases["evaluate"]["engine"] == 24e9


def test_an_engine_that_never_sleeps_is_there_from_the_first_samples_on() -> None:
    awake = replace(VLLM, sleeps=False)
    first = replace(PPO, name="supervised", sampling="never", roles=(POLICY,))
    second = replace(first, name="distill")
    both = replace(job(first, awake), stages=(first, second))
    updates = [
        stage_memory(both, stage, Layout(tensor=4), H100).phases["update"] for stage in both.stages
    ]
    assert "engine" not in updates[0] and updates[1]["engine"] == 24e9


# --- against real runs ---------------------------------------------------------------------------


def run_config(folder: Path, recipe: str) -> Config:
    """Steps of reinforcement of the quickstart's model, fresh, in ten microbatches: packing spreads
    them evenly, so that each is nearly full."""
    overrides = {
        "output_dir": f"'{folder}'",
        "name": recipe,
        "stages": "['reinforce']",
        "data.max_prompt_tokens": "32",
        "packing.max_tokens_per_microbatch": "512",
        "rollout.max_seqlen": "128",
        "rollout.max_new_tokens": "96",
        "reward.num_workers": "0",
        "reinforce.recipe": recipe,
        "reinforce.critic_init": "policy",
        "reinforce.num_steps": "2",  # Adam makes its moments in the first one
        "reinforce.problems_per_step": "16",
        "reinforce.samples_per_problem": "4",
        "reinforce.num_minibatches": "1",
        "reinforce.min_group_std": "-1.0",
        "reinforce.restarts.enabled": "false",
        "evaluation.num_problems": "4",
    }
    words = [word for key, value in overrides.items() for word in (f"--{key}", value)]
    return load_config(QUICKSTART, words)


def peak_of_tensors(work: Callable[[], object]) -> int:
    """Bytes of all tensors that `work` had at once, by each allocation of torch's."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_an_update_takes_what_was_planned(recompute: Recompute) -> None:
    """Activations alone: 16 sequences of 128 tokens through three layers, beside what rests."""
    torch.set_num_threads(1)
    initialize_parallel()
    shape = ModelShape(3, 64, 4, 2, 16, 192, 512)
    hf_config = AutoConfig.for_model(
        "qwen2",
        vocab_size=shape.num_logits,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        intermediate_size=shape.intermediate_size,
        tie_word_embeddings=True,
    )
    learner = build_learner(hf_config, optimizer=OptimizerSettings(1e-3), recompute=recompute)
    batch = random_batch([128] * 16).annotated(old_logprobs=torch.full((16 * 128,), -6.0))
    signal = Advantages(torch.ones(batch.num_tokens), None)

    def step() -> None:
        update(learner, None, [batch], [signal], PolicyLoss())

    step()  # Adam makes its moments
    measured = peak_of_tensors(step)
    one = Stage("step", (POLICY,), Lengths(64, 64, 64, 64), 16, 16, 1, sampling="in steps")
    sizes = ModelSizes(shape, tied=True, biased=True)
    planned = Job("a", "a", sizes, "float32", 2048, EnginePlan("embedded", 16), (one,))
    host = Device.of_host(memory_bytes=16e9, flops_per_s=1e11, bytes_per_s=1e10)
    parts = stage_memory(planned, one, Layout(recompute=recompute), host).phases["update"]
    assert parts["activations"] + parts["head"] == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("recipe", ["grpo", "ppo"])
def test_a_run_takes_what_was_planned(recipe: str, tmp_path: Path) -> None:
    """Weights, gradients, optimizer, activations, the head's gradient, batches, cache: every tensor
    that a run has. The program, and the head's chunk of logits, are not torch's."""
    torch.set_num_threads(1)
    config = run_config(tmp_path, recipe)
    planned = plan_config(config, num_gpus=1, gpu="cpu").asked.fullest
    tensors = max(
        sum(number for name, number in parts.items() if name not in HOST_PARTS)
        for parts in planned.phases.values()
    )
    measured = peak_of_tensors(lambda: run_stages(config))
    assert tensors == pytest.approx(measured, rel=0.1)


CASES = ["stages-W1", "stages-W2", "stages-W1-medium", "stages-W2-medium", "vocabulary-x1"]
CASES += ["vocabulary-x4", *(f"tokens-x{factor}" for factor in (1, 2, 4, 8))]


@pytest.mark.parametrize("case", CASES)
def test_recorded_runs_took_what_is_planned_of_a_host(case: str) -> None:
    """The peak of all memory of a process, as benchmarks/results/step.json has it: the program, its
    tensors, and what malloc holds beside them."""
    results = QUICKSTART.parents[1] / "benchmarks" / "results" / "step.json"
    recorded = json.loads(results.read_text())["figures"][case]
    workload = recorded["workload"]
    shape = workload["shape"]
    sizes = ModelShape(
        num_layers=shape["num_hidden_layers"],
        hidden_size=shape["hidden_size"],
        num_heads=shape["num_attention_heads"],
        num_kv_heads=shape["num_key_value_heads"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        intermediate_size=shape["intermediate_size"],
        num_logits=workload["vocab_size"],
    )
    length = workload["prompt_tokens"] + workload["mean_tokens"]
    number = workload["num_prompts"] * workload["num_samples"]
    minibatches = workload["minibatches"]
    lengths = Lengths(workload["prompt_tokens"], workload["mean_tokens"], 32, 64)
    step = Stage("step", (POLICY,), lengths, number, number, minibatches, sampling="in steps")
    engine = EnginePlan("embedded", number)
    whole = number * length // minibatches  # a minibatch is one microbatch there
    model = ModelSizes(sizes, tied=True, biased=True)
    planned = Job(case, case, model, "float32", whole, engine, (step,))
    host = Device.of_host(memory_bytes=16e9, flops_per_s=1e11, bytes_per_s=1e10)
    found = stage_memory(planned, step, Layout(), host).peak
    assert found == pytest.approx(recorded["sides"]["satori"]["peak_mib"] * 2**20, rel=0.1)
