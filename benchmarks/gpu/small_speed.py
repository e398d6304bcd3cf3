# SPDX-License-Identifier: Apache-2.0
"""Speed of the operations that move bytes and hardly compute: the policy loss, the scan, and those
of a transformer layer, against eager torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import baselines
from benchmarks.gpu import layers
from benchmarks.gpu.case import Case, Place, Sizes
from benchmarks.gpu.correctness import random_policy
from benchmarks.gpu.timing import Absent, Call, race
from benchmarks.measure import significant
from satori_fast import kernels
from satori_fast.kernels import reference

# float32: seven inputs are read and two gradients written.
POLICY_BYTES = 36.0
SCAN_BYTES = 8.0
DECAY = 0.95


def cases(sizes: Sizes) -> list[Case]:
    found = [
        Case(
            "small",
            f"policy_loss_{num_tokens}",
            functools.partial(_policy_loss, num_tokens),
            {"T": num_tokens},
            num_bytes=POLICY_BYTES * num_tokens,
        )
        for num_tokens in sizes.policy_tokens
    ]
    found += [
        Case(
            "small",
            f"segment_scan_{count}x{length}",
            functools.partial(_segment_scan, count, length),
            {"N": count, "T": count * length},
            num_bytes=SCAN_BYTES * count * length,
        )
        for count, length in sizes.scans
    ]
    names = ("tokens", "hidden", "feed_forward", "heads", "head_size")
    found += [
        Case(
            "small",
            f"{name}_forward_backward",
            functools.partial(_layer, sizes, name),
            dict(zip(names, sizes.layer, strict=True)),
            num_bytes=2.0 * layer.num_elements(sizes.layer),
        )
        for name, layer in layers.LAYERS.items()
    ]
    return found


def _policy_loss(num_tokens: int, place: Place) -> dict[str, Any]:
    tensors = random_policy(num_tokens, place)
    terms = baselines.TERMS._replace(clip_dual=3.0)

    def step(function: Callable[..., tuple[Tensor, Tensor]]) -> Call:
        def call() -> object:
            loss, stats = function(
                *tensors[:5], terms, rollout_logprobs=tensors[5], ref_logprobs=tensors[6]
            )
            return stats, torch.autograd.grad(loss, tensors[:2])

        return call

    calls = {"ours": step(kernels.policy_loss), "eager": step(baselines.eager_policy_loss)}
    return _rates(race(calls, place), POLICY_BYTES * num_tokens)


def _segment_scan(count: int, length: int, place: Place) -> dict[str, Any]:
    x = torch.randn(count * length, device=place.device)
    bounds = torch.arange(0, count * length + 1, length, device=place.device)
    calls = {
        "ours": lambda: kernels.segment_scan(x, DECAY, bounds),
        "torch, all sequences in step": lambda: reference.segment_scan(
            x, DECAY, bounds, reverse=True
        ),
    }
    return _rates(race(calls, place), SCAN_BYTES * count * length)


def _layer(sizes: Sizes, name: str, place: Place) -> dict[str, Any]:
    if not hasattr(kernels, name):
        raise Absent(f"satori_fast.kernels has no {name}")
    layer = layers.LAYERS[name]
    inputs = layer.inputs(sizes.layer, torch.bfloat16, place.device)
    leaves = [x for x in inputs if x.requires_grad]
    gradient = layers.incoming(layer.eager(*inputs).detach())

    def step(function: Callable[..., Tensor]) -> Call:
        return lambda: torch.autograd.grad(function(*inputs), leaves, gradient)

    calls = {"ours": step(layer.ours), "eager": step(layer.eager)}
    return _rates(race(calls, place), 2.0 * layer.num_elements(sizes.layer))


def _rates(figures: dict[str, dict[str, Any]], num_bytes: float) -> dict[str, Any]:
    """Adds GB/s on the bytes that must be moved, and the ratio of each rival over ours."""
    ours = figures["ours"].get("ms")
    for name, figure in figures.items():
        if "ms" in figure:
            figure["gb_per_s"] = significant(1e-6 * num_bytes / max(figure["ms"], 1e-6))
            if ours and name != "ours":
                figure["over_ours"] = significant(figure["ms"] / ours, 3)
    return {"rivals": figures}
