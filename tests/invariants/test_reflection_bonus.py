# SPDX-License-Identifier: Apache-2.0
"""The reflection bonus is a weight of restarts: a group baseline without the standard deviation
multiplies their loss weights by 1 + beta, and one with it takes the bonus out altogether.

All siblings share the prefix. With verdict c in {0, 1}, a restart from a right solution earns
(1 + beta) (c - 1), one from a wrong solution that and beta: a positive affine map of the rule
reward c - 1, the same for the whole group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from satori_fast.algorithms.advantages import estimate_advantages
from satori_fast.algorithms.credit import CreditRule, GroupMean
from satori_fast.algorithms.losses import PolicyLoss
from satori_fast.algorithms.recipe import RECIPES
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.types import (
    Prefix,
    Problem,
    RewardBreakdown,
    Segment,
    SegmentKind,
    Trajectory,
)

VOCAB, HIDDEN, SAMPLES = 17, 6, 8
# Groups: whole problems, restarts from right (D+) and from wrong solutions (D-).
STARTS = (None, True, False, None, True, False)
BETAS = (0.5, 2.0)


@dataclass(frozen=True)
class Sampled:
    """A trajectory without its reward, and whether it ended right."""

    trajectory: Trajectory
    correct: bool


def sample(seed: int = 0) -> list[Sampled]:
    rng = np.random.default_rng(seed)
    found: list[Sampled] = []
    for group, start in enumerate(STARTS):
        prefix = None if start is None else Prefix("7<|reflect|>", "restart", correct=start)
        for member in range(SAMPLES):
            length = int(rng.integers(2, 9))
            trajectory = Trajectory(
                problem=Problem(f"p{group}", "q", "a", prefix),
                group_id=group,
                tokens=rng.integers(0, VOCAB, 3 + length, dtype=np.int32),
                prompt_len=3,
                logprobs=np.zeros(length, np.float32),
                policy_version=0,
                finish="stop",
                segments=(Segment(SegmentKind.WHOLE, 0, length, ""),),
            )
            found.append(Sampled(trajectory, member == 0 or rng.random() < 0.4))
    return found


def rewarded(sampled: Sampled, beta: float) -> Trajectory:
    """Satori's rule reward and bonus, by plain arithmetic."""
    rule, bonus, prefix = (0.0 if sampled.correct else -1.0), 0.0, sampled.trajectory.problem.prefix
    if prefix is not None and prefix.correct is False and sampled.correct:
        bonus = beta
    if prefix is not None and prefix.correct is True and not sampled.correct:
        bonus = -beta
    return sampled.trajectory.with_reward(breakdown(rule, bonus, sampled.correct))


def breakdown(rule: float, bonus: float, correct: bool) -> RewardBreakdown:
    return RewardBreakdown({"rule": rule, "reflection": bonus}, correct=correct)


def gradient(rule: CreditRule, beta: float, *, restart_weight: float = 1.0) -> Tensor:
    """Of the loss of a tiny policy that has moved a little since it sampled; flat, float64."""
    trajectories = [rewarded(s, beta) for s in sample()]
    spec = PackingSpec(1000, num_minibatches=1, fixed_length=8)
    (batch,) = pack(trajectories, rule.assign(trajectories), spec, "sequence")
    restarts = torch.tensor([t.problem.prefix is not None for t in trajectories])
    of_restart = restarts[batch.source.long()][batch.sequence_of_token()]
    weights = torch.where(of_restart, restart_weight * batch.loss_weights, batch.loss_weights)
    generator = torch.Generator().manual_seed(1)
    shapes = [(VOCAB, HIDDEN), (VOCAB, HIDDEN)]
    embedding, head = (
        torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes
    )
    hidden = torch.tanh(embedding[batch.tokens])
    logprobs = (hidden @ head.T).log_softmax(-1).gather(1, batch.targets[:, None])[:, 0].detach()
    drift = 0.2 * torch.randn(batch.num_tokens, generator=generator, dtype=torch.float64)
    batch = replace(batch, loss_weights=weights).annotated(old_logprobs=logprobs + drift)
    (advantages,) = estimate_advantages([batch], RECIPES["grpo"].advantage, lambda x: x)
    output = PolicyLoss(RECIPES["grpo"].loss.terms).policy(
        hidden, head, batch, advantages, vocab_size=VOCAB
    )
    return torch.cat([g.flatten() for g in torch.autograd.grad(output.loss, (embedding, head))])


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("beta", BETAS)
def test_a_group_baseline_with_the_standard_deviation_ignores_it(beta: float) -> None:
    rule = GroupMean(divide_by_std=True)
    assert distance(gradient(rule, beta), gradient(rule, 0.0)) < 1e-5


@pytest.mark.parametrize("beta", BETAS)
def test_without_the_standard_deviation_it_weighs_restarts(beta: float) -> None:
    rule = GroupMean(divide_by_std=False)
    expected = gradient(rule, 0.0, restart_weight=1 + beta)
    assert distance(gradient(rule, beta), expected) < 1e-6
    assert distance(gradient(rule, beta), gradient(rule, 0.0)) > 0.1
