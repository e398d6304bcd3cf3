# SPDX-License-Identifier: Apache-2.0
"""policy_loss with all its metrics, forward and backward, on 65,536 tokens: ours, eager torch with
autograd, torch.compile of the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.baselines import eager_policy_loss
from benchmarks.measure import compiled, copy_bandwidth, significant
from satori_fast.kernels import PolicyTerms, policy_loss

NUM_TOKENS = 65_536
TARGETS = {"eager": 10.0}
# Seven inputs read and two gradients written; on the way back two gradients read and two written.
NUM_BYTES = NUM_TOKENS * 4 * (9 + 4)

PPO = PolicyTerms(clip_high=0.28)
EVERYTHING = PPO._replace(
    clip_dual=3.0,
    kl_coefficient=0.05,
    entropy_coefficient=0.01,
    importance="truncate",
    importance_low=0.5,
    importance_high=2.0,
)


def make_tensors() -> dict[str, Tensor]:
    """Log-probabilities near -1.5 that moved a little since the rollout; one token in four is
    masked. Named as the arguments of `policy_loss`."""
    generator = torch.Generator().manual_seed(0)

    def near(center: Tensor, spread: float) -> Tensor:
        return center + spread * torch.randn(NUM_TOKENS, generator=generator)

    old = -torch.rand(NUM_TOKENS, generator=generator) * 3
    weights = torch.rand(NUM_TOKENS, generator=generator)
    return {
        "logprobs": near(old, 0.15).requires_grad_(),
        "entropies": torch.rand(NUM_TOKENS, generator=generator).requires_grad_(),
        "old_logprobs": old,
        "advantages": torch.randn(NUM_TOKENS, generator=generator),
        "loss_weights": weights * (torch.rand(NUM_TOKENS, generator=generator) < 0.75),
        "rollout_logprobs": near(old, 0.05),
        "ref_logprobs": near(old, 0.3),
    }


def step(function: Any, tensors: dict[str, Tensor], terms: PolicyTerms) -> tuple[Tensor, ...]:
    """Loss, metrics and both gradients; the gradient arrives scaled, as by the token count."""
    loss, stats = function(**tensors, terms=terms)
    gradients = torch.autograd.grad(
        loss / 1000, (tensors["logprobs"], tensors["entropies"]), allow_unused=True
    )
    return loss, stats, *gradients


@pytest.mark.parametrize("terms", [PPO, EVERYTHING], ids=["ppo", "everything"])
def test_forward_and_backward(race, one_thread, terms, request) -> None:
    tensors = make_tensors()
    loss, stats, *gradients = step(policy_loss, tensors, terms)
    expected = step(eager_policy_loss, tensors, terms)
    torch.testing.assert_close((loss, stats), expected[:2], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(gradients[0], expected[2], rtol=1e-4, atol=1e-6)
    fast = compiled(eager_policy_loss, **tensors, terms=terms)
    floor_ms = significant(1e3 * NUM_BYTES / copy_bandwidth())
    race(
        request.node.callspec.id,
        {
            "ours": lambda: step(policy_loss, tensors, terms),
            "eager": lambda: step(eager_policy_loss, tensors, terms),
            "torch.compile": fast and (lambda: step(fast, tensors, terms)),
        },
        targets=TARGETS,
        repeats=11,
        memory=True,
        extra={"tokens": NUM_TOKENS, "copy_floor_ms": floor_ms},
    )
