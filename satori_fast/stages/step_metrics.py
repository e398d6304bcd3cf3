# SPDX-License-Identifier: Apache-2.0
"""Metrics of a reinforcement step: names and means. Times and rates are
`profiling.spans`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from satori_fast.algorithms.losses import explained_variance
from satori_fast.data.formats import ResponseFormat
from satori_fast.data.mixture import ORIGINS, origin_of
from satori_fast.evaluation.evaluate import mean_metrics
from satori_fast.evaluation.loops import ends_in_loop
from satori_fast.evaluation.verification import count_verifications
from satori_fast.rewards.similarity import TERM, exact_share, kept_by_format_share
from satori_fast.stages.mismatch import token_versions
from satori_fast.types import (
    Advantages,
    Experience,
    PackedBatch,
    Problem,
    RewardBreakdown,
    Trajectory,
)


def experience_metrics(
    experience: Experience,
    *,
    format_of: Callable[[Problem], ResponseFormat],
    min_group_std: float | None = None,
) -> dict[str, float]:
    """Means over all that was sampled, and what was counted on the way; accuracy over the
    trajectories that were graded, also by where the problem started. Each term of the reward is
    "reward/NAME", and each count of the format "rollout/NAME".

    Of a format with verifications "rollout/verifications" counts them, and what they are worth is
    "rollout/verification_accuracy", "rollout/wrong_to_right", "rollout/right_to_wrong" and the
    other rates of `VerificationCounts`, as far as there is something that they are of.
    "rollout/stale_tokens": share of response tokens that older weights sampled.
    "rollout/no_answer": share of the graded responses without a final answer.
    "rollout/repeating": share of responses that end in a loop.
    Of step problems "rollout/exact" is the share of responses that are the expert's step to the
    last element, and "rollout/kept_by_format" the share of the groups that are learnt from which
    `min_group_std` would have dropped, were it not for responses that are not of the format.
    """
    counted = {name: value for name, value in experience.stats.items() if "/" in name}
    scored = experience.sampled
    if not scored:  # partial rollouts: no group was finished in this step
        return counted
    stale = [token_versions(t) != experience.policy_version for t in scored]
    metrics = reward_metrics([t.reward for t in scored if t.reward is not None])
    metrics |= _accuracy("rollout/accuracy", scored)
    answered = [t.reward.answered for t in scored if t.reward is not None]
    if graded := [each for each in answered if each is not None]:
        metrics["rollout/no_answer"] = 1 - float(np.mean(graded))
    metrics |= {
        **{f"rollout/{name}": mean for name, mean in mean_metrics(scored, format_of).items()},
        "rollout/mean_response_tokens": float(np.mean([t.num_response_tokens for t in scored])),
        "rollout/repeating": float(np.mean([ends_in_loop(t.response_tokens) for t in scored])),
        "rollout/stale_tokens": float(np.mean(np.concatenate(stale))),
        "rollout/truncated": float(np.mean([t.finish == "length" for t in scored])),
    }
    if format_of(scored[0].problem).has_verifications:
        metrics |= count_verifications(scored).metrics("rollout")
    counts = step_counts(scored, experience.trajectories, min_group_std)
    metrics |= {f"rollout/{name}": value for name, value in counts.items()}
    for origin in ORIGINS:
        own = [t for t in scored if origin_of(t.problem) == origin]
        metrics |= _accuracy(f"rollout/accuracy_{origin}", own)
    return metrics | counted


def step_counts(
    sampled: Sequence[Trajectory], kept: Sequence[Trajectory], min_group_std: float | None
) -> dict[str, float]:
    """Count exact steps among what was sampled, "exact", and groups among the kept ones that are
    kept for faults alone, "kept_by_format"; nothing where steps are not what was compared."""
    if not all(t.reward is not None and TERM in t.reward.terms for t in sampled):
        return {}
    counts = {"exact": exact_share(sampled)}
    if kept and min_group_std is not None:
        counts["kept_by_format"] = kept_by_format_share(kept, min_group_std)
    return counts


def reward_metrics(rewards: Sequence[RewardBreakdown]) -> dict[str, float]:
    """Mean of the total and of every term that occurs, over all trajectories: a trajectory without
    a term counts as 0, so that the terms add up to the total. "reward/process": mean over the
    segments of those that have process rewards."""
    if not rewards:
        return {}
    metrics = {"reward/total": float(np.mean([r.total for r in rewards]))}
    for name in dict.fromkeys(name for r in rewards for name in r.terms):
        metrics[f"reward/{name}"] = float(np.mean([r.terms.get(name, 0.0) for r in rewards]))
    if segments := [r.segments for r in rewards if r.segments is not None]:
        metrics["reward/process"] = float(np.mean(np.concatenate(segments)))
    return metrics


def _accuracy(name: str, trajectories: Sequence[Trajectory]) -> dict[str, float]:
    verdicts = [t.reward.correct for t in trajectories if t.reward is not None]
    graded = [verdict for verdict in verdicts if verdict is not None]
    return {name: float(np.mean(graded))} if graded else {}


def advantage_metrics(
    batches: Sequence[PackedBatch],
    advantages: Sequence[Advantages],
    kept: Sequence[Trajectory],
    all_reduce_sum: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Mean advantage of the tokens of right and of wrong answers, by
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
            right = None if answer.reward is None else answer.reward.correct
            if right is not None:  # neither right nor wrong where nothing graded it
                sums[2 * ORIGINS.index(origin_of(answer.problem)) + (not right)] += of_sequence
    means = zip(classes, all_reduce_sum(sums).tolist(), strict=True)
    return {f"advantage/{name}": signal / weight for name, (signal, weight) in means if weight > 0}


def update_metrics(stats: Mapping[str, float]) -> dict[str, float]:
    """Sums that `update` returned, some of them under the names that people look for.

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
