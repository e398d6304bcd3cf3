# SPDX-License-Identifier: Apache-2.0
"""Seconds and bytes of a step, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from satori_fast.planning.devices import Device
from satori_fast.planning.job import EnginePlan, Job, Lengths, Role, Stage
from satori_fast.planning.layouts import Layout
from satori_fast.planning.sizes import KNOWN
from satori_fast.planning.timing import step_time
from satori_fast.profiling.data_sheets import data_sheet_named

SEVEN = KNOWN["qwen2.5-7b"]
H100 = Device.of_sheet(data_sheet_named("h100"))
POLICY = Role("policy", "policy", trained=True)
GRPO = Stage(
    "reinforce", (POLICY,), Lengths(1024, 2048, 256, 1024), 1024, 128, 2, sampling="in steps"
)
TOKENS = 1024 * 1280
VLLM = EnginePlan("vllm", 256, share=0.3, sleeps=True)
JOB = Job("seven", "7B", SEVEN, "bfloat16", 16384, VLLM, (GRPO,))


def test_an_update_is_six_flops_a_parameter_and_token() -> None:
    """And attention's own on top; a recomputed one eight."""
    alone = step_time(JOB, GRPO, Layout(), H100)
    rate = 0.35 * 989.4e12
    # The embedding is a look-up; the head works on responses alone.
    body = SEVEN.num_parameters() - 2 * SEVEN.embedding_size
    flops = 6 * (body * TOKENS + SEVEN.embedding_size * 1024 * 1024)
    assert alone.parts["update"].seconds == pytest.approx(flops / rate, rel=0.05)
    again = step_time(JOB, GRPO, Layout(recompute="full"), H100)
    ratio = again.parts["update"].seconds / alone.parts["update"].seconds
    assert ratio == pytest.approx(4 / 3)
    assert alone.tokens_per_s == pytest.approx(TOKENS / alone.seconds)
    assert alone.parts["update"].num_bytes == 0


def test_decoding_reads_the_weights_once_a_pass() -> None:
    """1,024 responses, 256 at a time, of 1,024 tokens each, and the longest to its end."""
    short = replace(GRPO, lengths=Lengths(1, 2048, 1, 1024))
    rollout = step_time(JOB, short, Layout(), H100).parts["rollout"].seconds
    passes = 4 * 1024 + 1024
    weights = SEVEN.shape.num_weights_read * 2
    cached = 256 * 513 * 28 * 2 * 512 * 2
    assert rollout == pytest.approx(passes * (weights + cached) / (0.6 * 3350e9), rel=0.01)


def test_small_models_wait_for_their_kernels() -> None:
    tiny = replace(JOB, sizes=KNOWN["smollm2-135m"])
    few = replace(GRPO, num_sequences=1, num_prompts=1, num_minibatches=1)
    parts = step_time(tiny, few, Layout(), H100).parts
    assert parts["rollout"].seconds == pytest.approx(2048 * 30 * 15e-6, rel=0.01)
    assert parts["update"].seconds == pytest.approx(3 * 30 * 150e-6)


def test_tensor_parallel_ranks_sum_twice_in_a_layer() -> None:
    """Of a pass over T tokens each sends 2 (t - 1) / t T H numbers in each of two sums."""
    layout = Layout(tensor=4)
    parts = step_time(JOB, GRPO, layout, H100).parts
    one_pass = 28 * 2 * (2 * 3 / 4) * TOKENS * 3584 * 2
    assert parts["annotate"].num_bytes == one_pass
    assert parts["update"].num_bytes == 2 * one_pass
    assert parts["update"].sending == pytest.approx(2 * one_pass / (0.7 * 450e9))
    # Two replicas share the tokens.
    halved = step_time(JOB, GRPO, replace(layout, data=2), H100).parts["annotate"]
    assert halved.num_bytes == one_pass / 2


def test_gradients_travel_once_a_minibatch() -> None:
    """In float32 to all and back; shared, they go one way, and weights in bfloat16 come back."""
    number = SEVEN.num_parameters()
    plain = step_time(JOB, GRPO, Layout(data=8), H100).parts["update"]
    assert plain.num_bytes == pytest.approx(2 * 8 * number * 7 / 8)
    assert plain.sending == pytest.approx(plain.num_bytes / (0.7 * 450e9))
    shared = step_time(JOB, GRPO, Layout(data=8, shard_optimizer=True), H100).parts["update"]
    assert shared.num_bytes == pytest.approx(2 * 6 * number * 7 / 8)
    # The ninth rank is in another machine.
    wide = step_time(JOB, GRPO, Layout(data=16), H100).parts["update"]
    assert wide.sending == pytest.approx(wide.num_bytes / (0.7 * 50e9))


def test_a_pipeline_fills_and_empties() -> None:
    """p stages and m microbatches take (m + p - 1) / m of the time."""
    servers = replace(JOB, engine=EnginePlan("server", 256, share=0.9, num_gpus=8))
    times = {
        stages: step_time(servers, GRPO, Layout(pipeline=stages), H100).parts["update"]
        for stages in (1, 4)
    }
    microbatches = TOKENS / 2 / 16384
    working = times[4].seconds - times[4].sending
    assert working * 4 / times[1].seconds == pytest.approx(1 + 3 / microbatches)


def test_a_sync_costs_what_the_weights_weigh() -> None:
    num_bytes = 2 * SEVEN.num_parameters()
    assert step_time(JOB, GRPO, Layout(), H100).parts["sync"].num_bytes == num_bytes
    embedded = replace(JOB, engine=EnginePlan("embedded", 256))
    assert step_time(embedded, GRPO, Layout(), H100).parts["sync"].seconds == 0
    servers = replace(JOB, engine=EnginePlan("server", 256, share=0.9, num_gpus=8))
    sync = step_time(servers, GRPO, Layout(), H100).parts["sync"]
    assert sync.seconds == pytest.approx(num_bytes / (0.7 * 50e9))


def test_what_is_offloaded_comes_and_goes_once_a_step() -> None:
    """12 bytes of state a parameter, and twice that, over 0.7 of PCIe's 64 GB/s."""
    plain, away = (
        step_time(JOB, GRPO, Layout(offload=offload), H100).parts["update"].seconds
        for offload in (False, True)
    )
    assert away - plain == pytest.approx(24 * SEVEN.num_parameters() / (0.7 * 64e9), rel=1e-3)
    tuning = replace(GRPO, name="supervised", sampling="never")
    assert step_time(JOB, tuning, Layout(offload=True), H100).seconds == (
        step_time(JOB, tuning, Layout(), H100).seconds
    )


def test_imitation_has_updates_alone() -> None:
    tuning = replace(GRPO, name="supervised", sampling="never")
    assert list(step_time(JOB, tuning, Layout(), H100).parts) == ["update"]
    near = replace(tuning, roles=(POLICY, Role("reference", "policy", trained=False)))
    seconds = [step_time(JOB, each, Layout(), H100).seconds for each in (tuning, near)]
    assert seconds[1] / seconds[0] == pytest.approx(4 / 3, rel=0.03)
