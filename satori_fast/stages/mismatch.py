# SPDX-License-Identifier: Apache-2.0
"""The alarm on engine against trainer: a run whose engine samples from other weights, or computes
them otherwise, stops before it trains on the samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from satori_fast.algorithms.importance import count_non_finite, first_gap, logprob_gap
from satori_fast.stages.run import Run
from satori_fast.types import PackedBatch, Trajectory


class MismatchError(RuntimeError):
    """Engine and trainer disagree on the probabilities of what was sampled."""


def check_logprobs(
    run: Run, batches: Sequence[PackedBatch], packed: Sequence[Trajectory], *, version: int
) -> None:
    """MismatchError, on every rank alike, when a log-prob of the step's loss tokens is not finite,
    or when their mean difference is above `rollout.max_logprob_diff`; it shows the first sequence
    that differs.

    version: of the trainer's weights; the difference leaves out tokens that older ones sampled.
    """
    by_trainer, by_engine = run.parallel.all_reduce_sum(count_non_finite(batches)).tolist()
    if by_trainer or by_engine:
        cause = (
            f"the policy gives {by_trainer:.0f} tokens of the step a log-prob that is not finite: "
            "a weight is NaN or infinite, from the model that was loaded or after a learning rate "
            "that is too high, or bfloat16 overflowed"
            if by_trainer
            else f"the engine returned {by_engine:.0f} log-probs that are not finite, the policy's "
            "are: the engine samples from broken weights, or overflows"
        )
        raise MismatchError(cause + _first(run, batches, packed, limit=math.inf))
    limit = run.config.rollout.max_logprob_diff
    if limit is None:
        return
    batches = without_stale(batches, packed, version)
    total, num_tokens = run.parallel.all_reduce_sum(logprob_gap(batches)).tolist()
    if num_tokens == 0 or total / num_tokens <= limit:
        return
    raise MismatchError(
        f"engine and trainer differ by {total / num_tokens:.3g} nats per token, above "
        f"rollout.max_logprob_diff = {limit:g}: the engine samples from other weights, another "
        "temperature or another precision" + _first(run, batches, packed, limit=limit)
    )


def _first(
    run: Run, batches: Sequence[PackedBatch], packed: Sequence[Trajectory], *, limit: float
) -> str:
    """The first token of this rank that differs by more than `limit`, if it has one."""
    gap = first_gap(batches, limit)
    if gap is None:
        return ""
    trajectory = packed[gap.source]
    text = run.renderer.tokenizer.decode(trajectory.tokens[: gap.position + 1])
    return (
        f". First on rank {run.parallel.rank}: problem {trajectory.problem.problem_id!r}, token "
        f"{gap.position} (id {gap.token}), trainer {gap.trainer:.4f}, engine {gap.engine:.4f}, "
        f"in: {text!r}"
    )


def without_stale(
    batches: Sequence[PackedBatch], packed: Sequence[Trajectory], version: int
) -> list[PackedBatch]:
    """The batches with tokens of other versions masked; for comparing, not for training."""
    if all(t.policy_version == version and t.versions is None for t in packed):
        return list(batches)
    return [replace(b, loss_mask=b.loss_mask & _is_fresh(b, packed, version)) for b in batches]


def _is_fresh(batch: PackedBatch, packed: Sequence[Trajectory], version: int) -> Tensor:
    fresh = torch.ones(batch.num_tokens, dtype=torch.bool)
    starts = batch.cu_seqlens.tolist()
    for start, source in zip(starts, batch.source.tolist(), strict=False):
        if source < 0:  # padding
            continue
        trajectory = packed[source]
        first = start + trajectory.prompt_len - 1
        stale = token_versions(trajectory) != version
        fresh[first : first + len(stale)] = torch.from_numpy(~stale)
    return fresh.to(batch.loss_mask.device)


def token_versions(trajectory: Trajectory) -> np.ndarray:
    """int64 [R]: the version of the weights that sampled each response token."""
    if trajectory.versions is not None:
        return trajectory.versions
    return np.full(trajectory.num_response_tokens, trajectory.policy_version)
