# SPDX-License-Identifier: Apache-2.0
"""The alarm on engine against trainer: a run whose engine samples from other weights, or computes
them otherwise, stops before it trains on the samples."""

from __future__ import annotations

from collections.abc import Sequence

from satori_fast.algorithms.importance import first_gap, logprob_gap
from satori_fast.stages.run import Run
from satori_fast.types import PackedBatch, Trajectory


class MismatchError(RuntimeError):
    """Engine and trainer disagree on the probabilities of what was sampled."""


def check_logprobs(run: Run, batches: Sequence[PackedBatch], packed: Sequence[Trajectory]) -> None:
    """MismatchError, on every rank alike, when the mean difference of the step's loss tokens is
    above `rollout.max_logprob_diff`; it shows the first sequence that differs."""
    limit = run.config.rollout.max_logprob_diff
    if limit is None:
        return
    total, num_tokens = run.parallel.all_reduce_sum(logprob_gap(batches)).tolist()
    # Written so that NaN raises the alarm too.
    if num_tokens == 0 or total / num_tokens <= limit:
        return
    message = (
        f"engine and trainer differ by {total / num_tokens:.3g} nats per token, above "
        f"rollout.max_logprob_diff = {limit:g}: the engine samples from other weights, another "
        "temperature or another precision"
    )
    gap = first_gap(batches, limit)
    if gap is not None:
        trajectory = packed[gap.source]
        text = run.renderer.tokenizer.decode(trajectory.tokens[: gap.position + 1])
        message += (
            f". First on rank {run.parallel.rank}: problem {trajectory.problem.problem_id!r}, "
            f"token {gap.position} (id {gap.token}), trainer {gap.trainer:.4f}, engine "
            f"{gap.engine:.4f}, in: {text}"
        )
    raise MismatchError(message)
