# SPDX-License-Identifier: Apache-2.0
"""What a reinforcement step leaves in the metrics: names and means. Times and rates are
`profiling.spans`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from satori_fast.algorithms.losses import explained_variance
from satori_fast.data.formats import ResponseFormat
from satori_fast.data.mixture import ORIGINS, origin_of
from satori_fast.evaluation.evaluate import mean_metrics
from satori_fast.grading import Reason
from satori_fast.stages.mismatch import token_versions
from satori_fast.types import Advantages, PackedBatch, RolloutResult, Trajectory


def rollout_metrics(
    rollout: RolloutResult,
    scored: Sequence[Trajectory],
    kept: Sequence[Trajectory],
    *,
    format: ResponseFormat,
) -> dict[str, float]:
    """Means over the step's trajectories; accuracy also by where the problem started.

    format: of the responses; means of what it counts are "rollout/NAME".

    "rollout/stale_tokens": share of response tokens that older weights sampled.
    """
    if not scored:  # partial rollouts: no group was finished in this step
        return {}
    stale = [token_versions(t) != rollout.policy_version for t in scored]
    rewards = [t.reward for t in scored if t.reward is not None]
    metrics = {
        "reward/total": float(np.mean([r.total for r in rewards])),
        "reward/rule": float(np.mean([r.rule for r in rewards])),
        "reward/reflection": float(np.mean([r.reflection for r in rewards])),
        "reward/preference": float(np.mean([r.preference for r in rewards])),
        "rollout/accuracy": float(np.mean([r.correct for r in rewards])),
        **{f"rollout/{name}": mean for name, mean in mean_metrics(scored, format).items()},
        "rollout/mean_response_tokens": float(np.mean([t.num_response_tokens for t in scored])),
        "rollout/stale_tokens": float(np.mean(np.concatenate(stale))),
        "rollout/truncated": float(np.mean([t.finish == "length" for t in scored])),
        "rollout/kept": len(kept) / len(scored),
    }
    for origin in ORIGINS:
        right = [t.reward.correct for t in scored if t.reward and origin_of(t.problem) == origin]
        if right:
            metrics[f"rollout/accuracy_{origin}"] = float(np.mean(right))
    return metrics


def advantage_metrics(
    batches: Sequence[PackedBatch],
    advantages: Sequence[Advantages],
    kept: Sequence[Trajectory],
    all_reduce_sum: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """What the update learns from: mean advantage of the tokens of right and of wrong answers, by
    where the problem started, "advantage/right_ORIGIN" and "advantage/wrong_ORIGIN".

    Tokens count by their share of the loss. Right answers near 0 are not learnt from: the baseline
    expected them, or another term of the reward drowns the rule. `advantages` are the update's, of
    this rank's share of `kept`.
    """
    if not batches:  # on every rank alike
        return {}
    classes = [f"{verdict}_{origin}" for origin in ORIGINS for verdict in ("right", "wrong")]
    per_sequence: list[Tensor] = []
    for batch, estimate in zip(batches, advantages, strict=True):
        weights = batch.loss_weights.double()
        signal = batch.sequence_sums(weights * estimate.advantages)
        per_sequence.append(torch.stack([signal, batch.sequence_sums(weights)], dim=1))
    sums = torch.zeros(len(classes), 2, dtype=torch.float64)
    sources = [source for batch in batches for source in batch.source.tolist()]
    # One copy from the device for the whole step.
    for source, of_sequence in zip(sources, torch.cat(per_sequence).cpu(), strict=True):
        if source >= 0:
            answer = kept[source]
            right = answer.reward is not None and answer.reward.correct
            sums[2 * ORIGINS.index(origin_of(answer.problem)) + (not right)] += of_sequence
    means = zip(classes, all_reduce_sum(sums).tolist(), strict=True)
    return {f"advantage/{name}": signal / weight for name, (signal, weight) in means if weight > 0}


def update_metrics(stats: dict[str, float]) -> dict[str, float]:
    """What `update` returned, with some numbers under the names that people look for.

    "rollout/logprob_abs_diff" (and its max): |engine - trainer| under the same weights, nats;
    "rollout/logprob_kl" and "rollout/importance_clip_fraction" are of the same pair; the critic's
    four sums over returns become the share of their variance that it explains.
    "update/clamp_fraction" is the share of loss tokens with a log-ratio beyond
    `kernels.MAX_LOG_RATIO`.
    """
    metrics = dict(stats)
    for suffix in ("", "_max"):
        if f"update/rollout_abs_diff{suffix}" in metrics:
            difference = metrics.pop(f"update/rollout_abs_diff{suffix}")
            metrics[f"rollout/logprob_abs_diff{suffix}"] = difference
    renamed = {
        "update/rollout_kl": "rollout/logprob_kl",
        "update/rollout_clip_fraction": "rollout/importance_clip_fraction",
        # Divided by the loss tokens, as all sums are.
        "update/num_clamped_ratios": "update/clamp_fraction",
    }
    metrics = {renamed.get(name, name): value for name, value in metrics.items()}
    if "critic/return" in metrics:
        names = ("return", "return_square", "residual", "residual_square")
        sums = {name: metrics.pop(f"critic/{name}") for name in names}
        metrics["critic/explained_variance"] = explained_variance(sums)
    return metrics


def importance_metrics(reweighted: Tensor) -> dict[str, float]:
    """Share of responses whose sequence-level weight was truncated or masked, if there is one."""
    changed, total = reweighted.tolist()
    return {"rollout/sequence_clip_fraction": changed / total} if total else {}


def grading_metrics(reasons: Counter[Reason]) -> dict[str, float]:
    """How many answers of the step were graded, and how: a grader that kills answers must be seen,
    and a response without a box is another fault than a wrong answer."""
    return {
        "grading/graded": float(reasons.total()),
        "grading/no_answer": float(reasons["no_answer"]),
        "grading/timeouts": float(reasons["timeout"]),
        "grading/crashes": float(reasons["crash"]),
    }
