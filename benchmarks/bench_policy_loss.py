# SPDX-License-Identifier: Apache-2.0
"""policy_loss with all its metrics, forward and backward, on 65,536 tokens: ours, eager torch with
autograd, torch.compile of the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measure import compiled, copy_bandwidth, significant
from satori_fast.kernels import policy_loss

NUM_TOKENS = 65_536
TARGETS = {"eager": 10.0}
# Seven inputs read and two gradients written; on the way back two gradients read and two written.
NUM_BYTES = NUM_TOKENS * 4 * (9 + 4)

PPO = {"clip_low": 0.2, "clip_high": 0.28}
EVERYTHING = PPO | {
    "clip_dual": 3.0,
    "kl_coefficient": 0.05,
    "entropy_coefficient": 0.01,
    "importance": "truncate",
    "importance_low": 0.5,
    "importance_high": 2.0,
}


def k3(log_ratio: Tensor) -> Tensor:
    return log_ratio.exp() - 1 - log_ratio


def eager(tensors: dict[str, Tensor], terms: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What a trainer without a fused loss writes: the formula of `policy_loss` and its metrics, in
    the order of POLICY_STATS, with the gradient left to autograd."""
    logprobs, old, advantages = tensors["logprobs"], tensors["old"], tensors["advantages"]
    weights, low, high = tensors["weights"], 1 - terms["clip_low"], 1 + terms["clip_high"]
    log_ratio = logprobs - old
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    with torch.no_grad():
        clipped_low = (advantages < 0) & (ratio < low)
        clipped_high = (advantages > 0) & (ratio > high)
        clipped_dual = (advantages < 0) & (ratio > terms.get("clip_dual", torch.inf))
        engine = old - tensors["rollout"]
        engine_ratio = engine.exp()
        live = weights != 0
    if "clip_dual" in terms:
        floor = terms["clip_dual"] * advantages
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, floor), surrogate)
    reweighted = torch.zeros_like(live)
    if terms.get("importance") == "truncate":
        bounds = terms["importance_low"], terms["importance_high"]
        surrogate = surrogate * engine_ratio.clamp(*bounds)
        reweighted = (engine_ratio < bounds[0]) | (engine_ratio > bounds[1])
    policy = -(weights * surrogate).sum()
    kl = (weights * k3(tensors["ref"] - logprobs)).sum()
    entropy = (weights * tensors["entropies"]).sum()
    coefficients = terms.get("kl_coefficient", 0.0), terms.get("entropy_coefficient", 0.0)
    loss = policy + coefficients[0] * kl - coefficients[1] * entropy
    with torch.no_grad():
        stats = torch.stack(
            [
                policy,
                kl,
                entropy,
                (weights * clipped_low).sum(),
                (weights * clipped_high).sum(),
                (weights * clipped_dual).sum(),
                torch.where(live, ratio, 0.0).max(),
                (weights * k3(log_ratio)).sum(),
                (weights * engine.abs()).sum(),
                torch.where(live, engine.abs(), 0.0).max(),
                (weights * k3(engine)).sum(),
                (weights * (reweighted & live)).sum(),
                live.sum(),
            ]
        )
    return loss, stats


def ours(tensors: dict[str, Tensor], terms: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return policy_loss(
        tensors["logprobs"], tensors["entropies"], tensors["old"], tensors["advantages"],
        tensors["weights"], rollout_logprobs=tensors["rollout"], ref_logprobs=tensors["ref"],
        **terms,
    )  # fmt: skip


def make_tensors() -> dict[str, Tensor]:
    """Log-probabilities near -1.5 that moved a little since the rollout; one token in four is
    masked."""
    generator = torch.Generator().manual_seed(0)

    def near(center: Tensor, spread: float) -> Tensor:
        return center + spread * torch.randn(NUM_TOKENS, generator=generator)

    old = -torch.rand(NUM_TOKENS, generator=generator) * 3
    weights = torch.rand(NUM_TOKENS, generator=generator)
    return {
        "logprobs": near(old, 0.15).requires_grad_(),
        "entropies": torch.rand(NUM_TOKENS, generator=generator).requires_grad_(),
        "old": old,
        "advantages": torch.randn(NUM_TOKENS, generator=generator),
        "weights": weights * (torch.rand(NUM_TOKENS, generator=generator) < 0.75),
        "rollout": near(old, 0.05),
        "ref": near(old, 0.3),
    }


def step(function: Any, tensors: dict[str, Tensor], terms: dict[str, Any]) -> tuple[Tensor, ...]:
    """Loss, metrics and both gradients; the gradient arrives scaled, as by the token count."""
    loss, stats = function(tensors, terms)
    gradients = torch.autograd.grad(
        loss / 1000, (tensors["logprobs"], tensors["entropies"]), allow_unused=True
    )
    return loss, stats, *gradients


@pytest.mark.parametrize("terms", [PPO, EVERYTHING], ids=["ppo", "everything"])
def test_forward_and_backward(race, one_thread, terms, request) -> None:
    tensors = make_tensors()
    loss, stats, *gradients = step(ours, tensors, terms)
    expected = step(eager, tensors, terms)
    torch.testing.assert_close((loss, stats), expected[:2], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(gradients[0], expected[2], rtol=1e-4, atol=1e-6)
    fast = compiled(eager, tensors, terms)
    floor_ms = significant(1e3 * NUM_BYTES / copy_bandwidth())
    race(
        request.node.callspec.id,
        {
            "ours": lambda: step(ours, tensors, terms),
            "eager": lambda: step(eager, tensors, terms),
            "torch.compile": fast and (lambda: step(fast, tensors, terms)),
        },
        targets=TARGETS,
        repeats=11,
        memory=True,
        extra={"tokens": NUM_TOKENS, "copy_floor_ms": floor_ms},
    )
