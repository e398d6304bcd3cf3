# SPDX-License-Identifier: Apache-2.0
"""An update on groups of eight siblings, their prompts computed once against once for each.

A model of 13 M parameters on one thread, the log-probs of the update included, as a step with one
minibatch has it. Responses are random, so that siblings have their prompt alone in common: those of
a trained policy often begin alike too. Prompts are a third, a half and two thirds of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from satori_fast.algorithms.advantages import estimate_advantages
from satori_fast.algorithms.recipe import effective_recipe
from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.scoring import LateScoring
from satori_fast.backbone.step import Learner, build_learner, update
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.types import (
    PackedBatch,
    Problem,
    RewardBreakdown,
    Segment,
    SegmentKind,
    Trajectory,
)

VOCAB_SIZE, NUM_GROUPS, NUM_SAMPLES, LENGTH = 4096, 4, 8, 192
RECIPE = effective_recipe("grpo", temperature=1.0)


def trajectories(prompt_len: int) -> list[Trajectory]:
    rng = np.random.default_rng(0)
    made: list[Trajectory] = []
    for group in range(NUM_GROUPS):
        prompt = rng.integers(0, VOCAB_SIZE, prompt_len)
        for sample in range(NUM_SAMPLES):
            number = LENGTH - prompt_len
            response = rng.integers(0, VOCAB_SIZE, number)
            made.append(
                Trajectory(
                    problem=Problem(f"p{group}", "q", "a"),
                    group_id=group,
                    tokens=np.concatenate([prompt, response]).astype(np.int32),
                    prompt_len=prompt_len,
                    logprobs=np.full(number, -8.0, dtype=np.float32),
                    policy_version=0,
                    finish="stop",
                    segments=(Segment(SegmentKind.SOLVE, 0, number, ""),),
                    reward=RewardBreakdown({"rule": float(sample % 2)}),
                )
            )
    return made


def one_update(learner: Learner, batches: list[PackedBatch]) -> Callable[[], object]:
    signal = estimate_advantages(batches, RECIPE.advantage, lambda total: total)
    late = LateScoring(1.0, lambda _: None)
    return lambda: update(learner, None, batches, signal, RECIPE.loss, late=late)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("prompt_len", [64, 96, 128])
def test_siblings(race: Any, prompt_len: int) -> None:
    initialize_parallel(seed=0)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=VOCAB_SIZE,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    learner = build_learner(config, optimizer=OptimizerSettings(1e-6), dtype=torch.float32)
    made = trajectories(prompt_len)
    credits = RECIPE.credit().assign(made)
    packed = {
        shares: pack(made, credits, PackingSpec(2048, 1, share_prefixes=shares), "token")
        for shares in (True, False)
    }
    rows = sum(batch.num_rows for batch in packed[True])
    race(
        f"prompts-{prompt_len}-of-{LENGTH}",
        {
            "shared": one_update(learner, packed[True]),
            "apart": one_update(learner, packed[False]),
        },
        targets={"apart": 0.8 * LENGTH * len(made) / rows},  # what is left beside the layers
        repeats=3,
        judged_by="cpu",
        extra={"row_share": rows / (LENGTH * len(made))},
    )
