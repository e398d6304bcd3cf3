# SPDX-License-Identifier: Apache-2.0
"""Log-probs and entropy of targets from hidden states, forward alone and with the backward: ours,
eager, torch.compile of eager, Liger-Kernel (log-probs only), chunks in plain torch."""

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

TARGETS = {torch.float32: {"eager": 3.0}, torch.bfloat16: {"eager": 5.0}}


def forward(head: Head) -> Step:
    def step(batch):
        with torch.no_grad():
            return head(batch)

    return step


def forward_backward(head: Head) -> Step:
    """Gradients of hidden and weight, under incoming gradients that differ from token to token."""

    def step(batch):
        outputs = head(batch)
        incoming = [batch.advantages, batch.ref_logprobs][: len(outputs)]
        grads = [grad.to(output) for grad, output in zip(incoming, outputs, strict=True)]
        return torch.autograd.grad(outputs, batch.parameters, grads)

    return step


def logprob_alone(head: Head | None) -> Head | None:
    """Liger computes no entropy."""
    return head and (lambda batch: head(batch)[:1])


WAYS = [(forward, *case) for case in CASES] + [(forward_backward, "laptop", torch.float32)]


@pytest.mark.parametrize(("way", "name", "dtype"), WAYS, ids=case_id)
def test_linear_logprob(race, way, name, dtype) -> None:
    shape = SHAPES[name]
    batch, wide = batch_of(shape, dtype), dtype != torch.float32
    eager = way(baselines.eager_logprob)
    if not is_affordable(eager, shape, dtype):
        eager = None
    # Compiling takes longer than racing: once for each way and type.
    fast = compiled(baselines.eager_logprob, batch) if name == "main" and eager else None
    liger = logprob_alone(baselines.liger_logprob()) if eager else None
    steps = {
        "ours": way(baselines.our_logprob),
        "eager": eager,
        "eager in float32": way(in_float32(baselines.eager_logprob)) if wide else None,
        "torch.compile": fast and way(fast),
        "Liger": liger and way(liger),
        # At full size in bfloat16 it says what it says in float32, and takes as long.
        "chunked torch": None if wide and name == "main" else way(baselines.chunked_logprob),
    }
    truth = baselines.upcast(batch, torch.float32)
    race_heads(
        race,
        "linear_logprob",
        f"{way.__name__}_{name}_{case_id(dtype)}",
        steps,
        batch,
        shape,
        gemms=1 if way is forward else 4,
        targets=TARGETS[dtype] if (way, name) == (forward, "main") else {},
        truths={
            "": way(baselines.eager_logprob)(truth),
            "Liger": way(lambda b: baselines.eager_logprob(b)[:1])(truth),
        },
    )
