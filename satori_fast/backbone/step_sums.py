# SPDX-License-Identifier: Apache-2.0
"""Sums and maxes of a step over microbatches, ranks and minibatches, and their metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor

from satori_fast.backbone.parallel import ParallelState
from satori_fast.types import LossOutput


@dataclass(frozen=True)
class MinibatchSums:
    """One optimizer step.

    sums:  per loss token of the minibatch, over all ranks; "loss" among them. maxes: of any token.
    stepped: whether its numbers were finite, so that it was done.
    """

    sums: dict[str, float]
    maxes: dict[str, float]
    grad_norm: float
    stepped: bool


def reduced(
    outputs: list[LossOutput], num_tokens: int, state: ParallelState
) -> tuple[dict[str, float], dict[str, float]]:
    """Sums per loss token and maxes, over microbatches, data-parallel ranks and pipeline stages."""
    reduced: list[dict[str, float]] = [{}, {}]
    if outputs:
        columns = [{"loss": output.loss, **output.sums} for output in outputs]
        sums = state.all_reduce_sum(_table(columns).sum(0)) / num_tokens
        reduced[0] = dict(zip(columns[0], sums.tolist(), strict=True))
        if outputs[0].maxes:
            peaks = state.all_reduce_max(_table([output.maxes for output in outputs]).amax(0))
            reduced[1] = dict(zip(outputs[0].maxes, peaks.tolist(), strict=True))
    if state.pipeline_size > 1:
        group: Any = mpu.get_pipeline_model_parallel_group()
        dist.broadcast_object_list(
            reduced, src=mpu.get_pipeline_model_parallel_last_rank(), group=group
        )
    return reduced[0], reduced[1]


def _table(rows: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """[microbatches, names] in fp64, so that sums do not depend on the number of microbatches."""
    return torch.stack([torch.stack([x.double() for x in row.values()]) for row in rows])


def summary(results: Sequence[MinibatchSums]) -> dict[str, float]:
    """Means over minibatches of sums and of finite gradient norms, the largest maxes, and how many
    steps were skipped."""
    metrics = {name: _mean([r.sums[name] for r in results]) for name in results[0].sums}
    for name in results[0].maxes:
        metrics[name] = max(result.maxes[name] for result in results)
    norms = [result.grad_norm for result in results if math.isfinite(result.grad_norm)]
    metrics["grad_norm"] = _mean(norms) if norms else math.nan
    metrics["num_skipped"] = float(sum(not result.stepped for result in results))
    return metrics


def _mean(numbers: Sequence[float]) -> float:
    # fsum raises where infinities of both signs meet.
    total = math.fsum(numbers) if all(map(math.isfinite, numbers)) else sum(numbers)
    return total / len(numbers)
