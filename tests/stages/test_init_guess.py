# SPDX-License-Identifier: Apache-2.0
"""Settings for models, data and machines of other sizes, worked out by hand where they can be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from satori_fast.data.field_mappings import FIELD_MAPPINGS
from satori_fast.profiling.flops import ModelShape
from satori_fast.profiling.peaks import DevicePeaks
from satori_fast.stages.init_guess import UTILISATION, Guess, expectation, guess
from satori_fast.stages.init_look import DataLook, Machine, ModelLook
from satori_fast.types import Problem

# SmolLM2-135M: 30 layers of 576, 9 heads of 64, 3 of keys, MLP of 1536, vocabulary 49,152, tied.
SMOL = ModelLook(
    path="smol",
    shape=ModelShape(30, 576, 9, 3, 64, 1536, 49152),
    num_parameters=134_480_000,
    context=8192,
    family="LlamaForCausalLM",
    template="chat",
    system="Box it.",
    knows_actions=False,
    stop_tokens=("<|im_end|>",),
    unnamed_ends=(),
)
DATA = DataLook(
    path="gsm8k.jsonl",
    mapping="gsm8k",
    fields=FIELD_MAPPINGS["gsm8k"],
    num_problems=7473,
    skipped="",
    prompt_tokens=np.array([80, 90, 100]),
    solution_tokens=np.array([90, 100, 110]),
    boxed_share=1.0,
    first=Problem("1", "1 + 1", "2"),
)
LAPTOP = Machine(
    "laptop",
    "cpu",
    16 * 2**30,
    {"float32": DevicePeaks(200e9, 2e10), "bfloat16": DevicePeaks(600e9, 2e10)},
)
H100 = Machine(
    "H100",
    "cuda",
    80 * 2**30,
    {"float32": DevicePeaks(60e12, 3e12), "bfloat16": DevicePeaks(989e12, 3e12)},
)


def values(made: Guess) -> dict[str, Any]:
    return {setting.key: setting.value for setting in made.settings}


def test_a_real_model_on_a_laptop() -> None:
    made = guess(SMOL, DATA, LAPTOP)
    found = values(made)
    assert found["model.dtype"] == "bfloat16" and found["data.max_prompt_tokens"] == 128
    assert found["rollout.max_new_tokens"] == 192  # 1.5 x 110 and up to a multiple of 64
    assert found["reinforce.optimizer.learning_rate"] == 2e-5
    assert found["supervised.optimizer.learning_rate"] == 1e-4
    assert found["data.heldout_fraction"] == 0.02 and found["evaluation.num_problems"] == 100
    # Weights, gradients, copies and moments are 18 bytes a parameter: 2.25 GiB, and more.
    assert 18 * SMOL.num_parameters < made.memory_bytes < 6 * 2**30
    assert made.warnings == ()


def test_the_time_of_a_step_is_that_of_its_products() -> None:
    """By 2 FLOPs for each weight and token, and 4 for each of three passes of an update: of 8 x 8
    responses of 100 tokens to prompts of 90."""
    machine = replace(LAPTOP, peaks={k: DevicePeaks(1e13, 1e15) for k in LAPTOP.peaks})
    made = guess(SMOL, DATA, machine)
    tokens, responses = 64 * 190, 64 * 100
    layers, head = 106.2e6, 576 * 49152
    forward = 2 * (layers * tokens + head * responses)
    scored = 2 * (layers + head) * tokens
    expected = (4 * forward + scored) / (UTILISATION["cpu"] * 1e13)
    assert made.step_s == pytest.approx(expected, rel=0.05)  # attention's scores come on top
    slower = replace(machine, peaks={k: DevicePeaks(1e11, 1e15) for k in LAPTOP.peaks})
    halved = guess(SMOL, DATA, slower)  # 100 times slower, so half of the problems in a step
    assert values(halved)["reinforce.problems_per_step"] == 4
    assert halved.step_s == pytest.approx(50 * made.step_s, rel=0.05)


def test_a_gpu_has_larger_steps_and_its_own_type() -> None:
    found = values(guess(SMOL, DATA, H100))
    assert found["model.dtype"] == "bfloat16" and found["reinforce.problems_per_step"] == 32
    assert found["supervised.num_demonstrations"] == 1000
    assert found["packing.max_tokens_per_microbatch"] == 16384


def test_large_models_learn_slowly_and_may_not_fit() -> None:
    shape = ModelShape(28, 3584, 28, 4, 128, 18944, 152064)
    seven = replace(SMOL, shape=shape, num_parameters=7_616_000_000, context=32768)
    made = guess(seven, DATA, H100)
    found = values(made)
    assert found["reinforce.optimizer.learning_rate"] == 1e-6
    assert found["model.recompute"] is True
    (warning,) = made.warnings
    # 18 bytes a parameter are 127.7 GiB; keys and values of 256 samples of 320 tokens 4.4.
    assert warning.startswith("memory: about 132.2 GiB are needed, and 80.0 GiB are there: docs/")
    small = replace(SMOL, num_parameters=800_000)
    found = values(guess(small, DATA, LAPTOP))
    assert found["model.dtype"] == "float32"
    assert found["reinforce.optimizer.learning_rate"] == 2e-4
    assert found["supervised.optimizer.learning_rate"] == 1e-3


def test_what_the_data_lacks() -> None:
    bare = replace(DATA, solution_tokens=np.array([], int), boxed_share=0.0, num_problems=40)
    made = guess(replace(SMOL, template="plain", system=None), bare, LAPTOP)
    found = values(made)
    assert found["stages"] == ["reinforce"] and found["rollout.max_new_tokens"] == 512
    assert not any(key.startswith("supervised") for key in found)
    assert found["data.heldout_fraction"] == 0.3 and found["evaluation.num_problems"] == 12
    assert [warning.partition(":")[0] for warning in made.warnings] == ["data", "answers"]
    unboxed = values(guess(SMOL, replace(DATA, boxed_share=0.5), LAPTOP))
    assert unboxed["stages"] == ["reinforce"]


def test_what_the_model_brings() -> None:
    found = values(guess(replace(SMOL, knows_actions=True), DATA, LAPTOP))
    assert found["data.format"] == "coat" and found["solutions.num_samples"] == 4
    found = values(guess(replace(SMOL, unnamed_ends=("<|end|>",)), DATA, LAPTOP))
    assert found["rollout.stop_tokens"] == ["<|end|>"]
    short = values(guess(replace(SMOL, context=256), DATA, LAPTOP))
    assert short["rollout.max_seqlen"] == 256 and short["rollout.max_new_tokens"] == 128


def test_what_is_expected_is_said_as_far_as_it_is_known() -> None:
    memory, time = expectation(guess(SMOL, DATA, LAPTOP), LAPTOP)
    assert memory.startswith("memory: about ") and memory.endswith("of 16.0 GiB that are free")
    assert "a step, so" in time and "format tuning" in time and time.count("laptop") == 1
    blind = replace(LAPTOP, peaks={name: DevicePeaks() for name in LAPTOP.peaks}, is_busy=True)
    made = guess(SMOL, DATA, blind)
    assert made.step_s is None and len(expectation(made, blind)) == 2
