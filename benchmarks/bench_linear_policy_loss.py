# SPDX-License-Identifier: Apache-2.0
"""The policy loss of the output head with its metrics, forward and backward: ours, eager autograd,
torch.compile of eager, Liger's chunked GRPO loss (no entropy), chunks in plain torch."""

from __future__ import annotations

import pytest
import torch

from benchmarks import baselines
from benchmarks.head_race import (
    CASES,
    SHAPES,
    Head,
    Step,
    batch_of,
    case_id,
    in_float32,
    is_affordable,
    race_heads,
)
from benchmarks.measure import compiled

TARGETS = {"eager": 3.0}


def forward_backward(head: Head) -> Step:
    """Loss, and the gradients of hidden and weight."""

    def step(batch):
        loss, _ = head(batch)
        return loss.detach(), *torch.autograd.grad(loss, batch.parameters)

    return step


def without_entropy(batch):
    """Our loss as Liger computes it: what its results are checked against."""
    return baselines.our_head_loss(batch, entropy_coefficient=0.0)


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=case_id)
def test_linear_policy_loss(race, name, dtype) -> None:
    shape = SHAPES[name]
    batch, wide = batch_of(shape, dtype), dtype != torch.float32
    eager = forward_backward(baselines.eager_head_loss)
    if not is_affordable(eager, shape, dtype):
        eager = None
    # Compiling takes longer than racing: once for each type.
    fast = compiled(baselines.eager_head_loss, batch) if name == "main" and eager else None
    liger = baselines.liger_head_loss() if eager else None
    steps = {
        "ours": forward_backward(baselines.our_head_loss),
        "eager": eager,
        "eager in float32": forward_backward(in_float32(baselines.eager_head_loss))
        if wide
        else None,
        "torch.compile": fast and forward_backward(fast),
        "Liger": liger and forward_backward(liger),
        # At full size in bfloat16 it says what it says in float32, and takes as long.
        "chunked torch": None
        if wide and name == "main"
        else forward_backward(baselines.chunked_head_loss),
    }
    truth = baselines.upcast(batch, torch.float32)
    metrics = baselines.our_head_loss(batch)[1], baselines.eager_head_loss(truth)[1]
    torch.testing.assert_close(*metrics, rtol=1e-3, atol=1e-4)
    race_heads(
        race,
        "linear_policy_loss",
        f"{name}_{case_id(dtype)}",
        steps,
        batch,
        shape,
        gemms=3,
        targets=TARGETS if (name, dtype) == ("main", torch.float32) else {},
        truths={
            "": forward_backward(baselines.eager_head_loss)(truth),
            "Liger": forward_backward(without_entropy)(truth),
        },
    )
