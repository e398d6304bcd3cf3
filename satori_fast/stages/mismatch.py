# SPDX-License-Identifier: Apache-2.0
"""The alarm on engine against trainer: a run whose engine samples from other weights, or computes
them otherwise, stops before it trains on the samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from satori_fast.algorithms.importance import count_non_finite, first_gap, logprob_gap
from satori_fast.backbone.parallel import ParallelState
from satori_fast.types import Experience, PackedBatch, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MismatchError(RuntimeError):
    """Engine and trainer disagree on the probabilities of what was sampled."""


def check_logprobs(
    batches: Sequence[PackedBatch],
    experience: Experience,
    *,
    limit: float | None,
    parallel: ParallelState,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """MismatchError, on every rank alike, when a log-prob of the step's loss tokens is not finite,
    or when their mean difference is above `limit` nats; it shows the first sequence that differs.

    The difference leaves out tokens that other weights than `experience.policy_version` sampled.
    limit: `rollout.max_logprob_diff`; None: any finite difference will do.
    """
    packed, version = experience.trajectories, experience.policy_version
    by_trainer, by_engine = parallel.all_reduce_sum(count_non_finite(batches)).tolist()
    fresh = without_stale(batches, packed, version)
    total, num_tokens = parallel.all_reduce_sum(logprob_gap(fresh)).tolist()
    compared, least = batches, math.inf
    if by_trainer:
        message = (
            f"the policy gives {by_trainer:.0f} tokens of the step a log-prob that is not finite: "
            "a weight is NaN or infinite, from the model that was loaded or after a learning rate "
            "that is too high, or bfloat16 overflowed"
        )
    elif by_engine:
        message = (
            f"the engine returned {by_engine:.0f} log-probs that are not finite, where the policy "
            "has finite ones: it samples from broken weights, or overflows"
        )
    elif limit is not None and num_tokens and total / num_tokens > limit:
        compared, least = fresh, limit
        message = (
            f"engine and trainer differ by {total / num_tokens:.3g} nats per token, above "
            f"rollout.max_logprob_diff = {limit:g}: the engine samples from other weights, another "
            "temperature or another precision"
        )
    else:
        return
    gap = first_gap(compared, least)
    if gap is not None:
        trajectory = packed[gap.source]
        text = tokenizer.decode(trajectory.tokens[: gap.position + 1])
        message += (
            f". First on rank {parallel.rank}: problem {trajectory.problem.problem_id!r}, token "
            f"{gap.position} (id {gap.token}), trainer {gap.trainer:.4f}, engine "
            f"{gap.engine:.4f}, in: {text!r}"
        )
    raise MismatchError(message)


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
