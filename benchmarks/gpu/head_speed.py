# SPDX-License-Identifier: Apache-2.0
"""Speed and peak memory of the output head at the shapes of Qwen2.5-Math: ours, eager,
torch.compile of eager, Liger-Kernel, and the bare matrix products measured beside them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import baselines
from benchmarks.baselines import Head, HeadBatch
from benchmarks.gpu.case import Case, HeadShape, Place, Sizes
from benchmarks.gpu.ceilings import FLOOR_ROWS, head_floor
from benchmarks.gpu.timing import Absent, Call, failure, peak_bytes, race, within_memory
from benchmarks.measure import significant
from satori_fast.kernels import linear_logprob

# Bytes per logit that eager holds at its peak: forward alone, and with autograd.
EAGER_FORWARD_BYTES, EAGER_BYTES = 14, 20
FLOOR = "bare products"

Step = Callable[[HeadBatch], object]


def cases(sizes: Sizes) -> list[Case]:
    found = []
    for head in sizes.heads:
        floor_logits = min(head.num_tokens, FLOOR_ROWS) * head.vocab_size
        for name, run, gemms in (
            ("linear_policy_loss", _policy_loss, 3),
            ("linear_logprob_forward", _forward, 1),
            ("linear_logprob_forward_backward", _forward_backward, 3),
        ):
            found.append(
                Case(
                    "head",
                    f"{name}_{head.name}",
                    functools.partial(run, head),
                    head.shape,
                    flops=gemms * head.gemm_flops,
                    num_bytes=head.input_bytes * (1 if gemms == 1 else 2),
                    memory=3 * head.input_bytes + 4.0 * floor_logits + 2.5 * 2**30,
                )
            )
    # Compiling takes tens of seconds, so it comes last and only once for each operation.
    head = sizes.heads[0]
    for name, run in (("policy_loss", _compiled_loss), ("logprob_forward", _compiled_forward)):
        found.append(
            Case(
                "compile",
                f"linear_{name}_compiled_{head.name}",
                functools.partial(run, head),
                head.shape,
                flops=(3 if run is _compiled_loss else 1) * head.gemm_flops,
                memory=3 * head.input_bytes + EAGER_BYTES * head.num_logits,
            )
        )
    return found


def _policy_loss(head: HeadShape, place: Place) -> dict[str, Any]:
    liger = "liger-kernel is not installed"
    rivals = {
        "ours": (_loss_step(baselines.our_head_loss), 0),
        "eager": (_loss_step(baselines.eager_head_loss), EAGER_BYTES),
        "Liger GRPO": (_loss_step(baselines.liger_head_loss(), liger), 0),
        "Liger cross entropy": (_loss_step(baselines.liger_cross_entropy(), liger), 0),
    }
    return _measure(head, rivals, place, num_gemms=3)


def _forward(head: HeadShape, place: Place) -> dict[str, Any]:
    rivals = {
        "ours": (_forward_step(baselines.our_logprob), 0),
        "eager": (_forward_step(baselines.eager_logprob), EAGER_FORWARD_BYTES),
    }
    return _measure(head, rivals, place, num_gemms=1)


def _forward_backward(head: HeadShape, place: Place) -> dict[str, Any]:
    def ours(mode: str) -> Head:
        return lambda batch: linear_logprob(batch.hidden, batch.weight, batch.targets, mode=mode)

    rivals = {
        "ours": (_logprob_step(ours("auto")), 0),
        "ours, recompute": (_logprob_step(ours("recompute")), 0),
        # The softmax of every token, kept in bfloat16.
        "ours, stash": (_logprob_step(ours("stash")), 3),
        "eager": (_logprob_step(baselines.eager_logprob), EAGER_BYTES),
    }
    figures = _measure(head, rivals, place, num_gemms=3)
    recompute = figures["rivals"]["ours, recompute"]
    if "tflops" in recompute:
        # Four products are useful where the logits are made twice.
        recompute["tflops"] = significant(recompute["tflops"] * 4 / 3)
        recompute["gemms"] = 4
    return figures


def _compiled_loss(head: HeadShape, place: Place) -> dict[str, Any]:
    rivals = {
        "ours": (_loss_step(baselines.our_head_loss), 0),
        "torch.compile": (_loss_step(torch.compile(baselines.eager_head_loss)), EAGER_BYTES),
    }
    return _measure(head, rivals, place, num_gemms=3)


def _compiled_forward(head: HeadShape, place: Place) -> dict[str, Any]:
    rivals = {
        "ours": (_forward_step(baselines.our_logprob), 0),
        "torch.compile": (
            _forward_step(torch.compile(baselines.eager_logprob)),
            EAGER_FORWARD_BYTES,
        ),
    }
    return _measure(head, rivals, place, num_gemms=1)


def _loss_step(head: Head | None, missing: str = "") -> Step:
    def step(batch: HeadBatch) -> tuple[Tensor, ...]:
        if head is None:
            raise Absent(missing)
        loss, _ = head(batch)
        return torch.autograd.grad(loss, batch.parameters)

    return step


def _forward_step(head: Head) -> Step:
    def step(batch: HeadBatch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return head(batch)

    return step


def _logprob_step(head: Head) -> Step:
    def step(batch: HeadBatch) -> tuple[Tensor, ...]:
        outputs = head(batch)
        grads = (batch.advantages.to(outputs[0].dtype), batch.loss_weights.to(outputs[1].dtype))
        return torch.autograd.grad(outputs, batch.parameters, grads)

    return step


def _measure(
    head: HeadShape, rivals: dict[str, tuple[Step, int]], place: Place, *, num_gemms: int
) -> dict[str, Any]:
    """Races the rivals beside the bare products. A rival comes with the bytes per logit that it
    needs, 0 if it never holds the logits."""
    num_sequences = 4
    batch = baselines.random_head_batch(
        head.num_tokens,
        head.hidden_size,
        head.vocab_size,
        dtype=torch.bfloat16,
        device=place.device,
        num_sequences=num_sequences,
    )
    gradients = head.input_bytes if num_gemms > 1 else 0.0
    calls: dict[str, Call] = {}
    peaks: dict[str, int | None] = {}
    failures: dict[str, dict[str, Any]] = {}
    # Before the floor's buffers are there, so that no rival lacks their memory.
    for name, (step, bytes_per_logit) in rivals.items():
        call = within_memory(
            functools.partial(step, batch), bytes_per_logit * head.num_logits, place
        )
        try:
            call()
            peaks[name] = peak_bytes(call, place, gradients)
            calls[name] = call
        except Exception as error:  # a rival may fail in any way; it then stays out of the race
            failures[name] = failure(error, place)
    products = head_floor(head, batch.weight, batch.hidden, num_gemms=num_gemms)
    timed = race({**calls, FLOOR: products}, place)
    figures = {name: failures.get(name) or timed[name] for name in (*rivals, FLOOR)}
    floor_ms, our_ms = figures[FLOOR].get("ms"), figures["ours"].get("ms")
    for name, figure in figures.items():
        if "ms" not in figure:
            continue
        figure["gemms"] = num_gemms
        figure["tflops"] = significant(1e-9 * num_gemms * head.gemm_flops / figure["ms"])
        figure["peak_bytes"] = peaks.get(name)
        if floor_ms and name != FLOOR:
            figure["floor_share"] = significant(floor_ms / figure["ms"], 3)
        if our_ms and name not in ("ours", FLOOR):
            figure["over_ours"] = significant(figure["ms"] / our_ms, 3)
    return {"rivals": figures, "dtype": "bfloat16"}
