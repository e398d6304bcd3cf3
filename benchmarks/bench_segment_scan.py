# SPDX-License-Identifier: Apache-2.0
"""GAE and the scan inside it, 16 sequences of 4096 tokens: ours, a Python loop over time steps
(what most trainers have), vectorised torch, torch.compile of that."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import compiled, copy_bandwidth, significant
from satori_fast.algorithms.advantages import AdvantageRule, estimate_advantages
from satori_fast.kernels import gae, segment_scan
from satori_fast.types import PackedBatch

SEQUENCES, LENGTH, PROMPT = 16, 4096, 256
GAMMA, LAMBDA = 0.99, 0.95
CHUNK = 64
TARGETS = {"python loop": 200.0, "vectorised": 3.0}
SHAPE = {"sequences": SEQUENCES, "tokens": SEQUENCES * LENGTH}


def loop_scan(x: Tensor, decay: float) -> Tensor:
    """y_t = x_t + decay y_{t+1} along the rows of x, one step of all rows at a time."""
    y, carry = torch.empty_like(x), x.new_zeros(len(x))
    for t in reversed(range(x.shape[1])):
        carry = x[:, t] + decay * carry
        y[:, t] = carry
    return y


def vectorised_scan(x: Tensor, decay: float) -> Tensor:
    """The same by two products with triangular matrices of powers: inside chunks, and of what the
    chunks hand on."""
    exponents = torch.arange(CHUNK)[:, None] - torch.arange(CHUNK)
    inside = torch.where(exponents >= 0, decay ** exponents.float(), 0.0)
    chunks = x.view(len(x), -1, CHUNK) @ inside
    exponents = torch.arange(chunks.shape[1])[:, None] - torch.arange(chunks.shape[1])
    between = torch.where(exponents > 0, decay ** (CHUNK * (exponents - 1).float()), 0.0)
    carry = chunks[:, :, 0] @ between
    powers = decay ** torch.arange(CHUNK, 0, -1).float()
    return (chunks + carry[:, :, None] * powers).view_as(x)


def loop_gae(rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages and returns [B, L]: what is masked hands on what comes after it."""
    advantages: list[Tensor] = []
    next_value = carry = torch.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + GAMMA * next_value - values[:, t]
        now = delta + GAMMA * LAMBDA * carry
        next_value = values[:, t] * mask[:, t] + (1 - mask[:, t]) * next_value
        carry = now * mask[:, t] + (1 - mask[:, t]) * carry
        advantages.append(carry)
    stacked = torch.stack(advantages[::-1], dim=1) * mask
    return stacked, stacked + values * mask


def vectorised_gae(rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same for rows whose response is one contiguous tail."""
    values = values * mask
    next_values = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], dim=1)
    deltas = (rewards + GAMMA * next_values - values) * mask
    advantages = vectorised_scan(deltas, GAMMA * LAMBDA) * mask
    return advantages, advantages + values


def make_batch() -> PackedBatch:
    """Prompts of 256 tokens; responses of segments of 512 tokens, each with a credit."""
    generator = torch.Generator().manual_seed(0)
    num_tokens = SEQUENCES * LENGTH
    mask = torch.ones(SEQUENCES, LENGTH, dtype=torch.bool)
    mask[:, :PROMPT] = mask[:, -1] = False
    mask = mask.flatten()
    numbers = torch.arange(num_tokens)
    return PackedBatch(
        tokens=numbers,
        positions=numbers % LENGTH,
        targets=numbers,
        loss_mask=mask,
        loss_weights=mask.float(),
        cu_seqlens=torch.arange(0, num_tokens + 1, LENGTH, dtype=torch.int32),
        max_seqlen=LENGTH,
        segment_ids=torch.where(mask, numbers // 512, -1).int(),
        credit=torch.where(mask, torch.randn(num_tokens, generator=generator), 0.0),
        rollout_logprobs=torch.zeros(num_tokens),
        source=torch.arange(SEQUENCES).int(),
        minibatch=0,
        num_minibatch_tokens=int(mask.sum()),
        values=torch.randn(num_tokens, generator=generator),
    )


def ready(fast: Callable[..., object] | None, *arguments: object) -> Callable[[], object] | None:
    return fast and (lambda: fast(*arguments))


def test_scan(race, one_thread) -> None:
    x = torch.randn(SEQUENCES, LENGTH, generator=torch.Generator().manual_seed(0))
    boundaries = torch.arange(0, x.numel() + 1, LENGTH, dtype=torch.int32)
    decay = GAMMA * LAMBDA
    expected = segment_scan(x.flatten(), decay, boundaries).view_as(x)
    for scan in (loop_scan, vectorised_scan):
        torch.testing.assert_close(scan(x, decay), expected, rtol=1e-4, atol=1e-4)
    race(
        "scan",
        {
            "ours": lambda: segment_scan(x.flatten(), decay, boundaries),
            "python loop": lambda: loop_scan(x, decay),
            "vectorised": lambda: vectorised_scan(x, decay),
            "torch.compile": ready(compiled(vectorised_scan, x, decay), x, decay),
        },
        targets=TARGETS,
        extra=SHAPE | {"copy_floor_ms": significant(8e3 * x.numel() / copy_bandwidth())},
    )


def test_gae(race, one_thread) -> None:
    batch = make_batch()
    rule = AdvantageRule("gae", gamma=GAMMA, lambda_=LAMBDA)

    # The peers' layout: padded rows, with the reward of a segment at its last token.
    mask = batch.loss_mask
    is_last = mask & (batch.segment_ids != batch.segment_ids.roll(-1))
    rewards = torch.where(is_last, batch.credit, 0.0).view(SEQUENCES, LENGTH)
    values = batch.require("values").view(SEQUENCES, LENGTH)
    rows = rewards, values, mask.view(SEQUENCES, LENGTH).float()
    flat = batch.require("values"), batch.credit, mask, batch.cu_seqlens

    def trainer() -> object:
        return estimate_advantages([batch], rule, lambda x: x)

    def operation() -> object:
        return gae(*flat, gamma=GAMMA, lambda_=LAMBDA, segment_ids=batch.segment_ids)

    (estimate,) = estimate_advantages([batch], rule, lambda x: x)
    for peer in (loop_gae, vectorised_gae):
        advantages, returns = peer(*rows)
        torch.testing.assert_close(advantages.flatten(), estimate.advantages, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(returns.flatten(), estimate.returns, rtol=1e-4, atol=1e-4)
    race(
        "gae",
        {
            "ours": trainer,
            "ours, the operation alone": operation,
            "python loop": lambda: loop_gae(*rows),
            "vectorised": lambda: vectorised_gae(*rows),
            "torch.compile": ready(compiled(vectorised_gae, *rows), *rows),
        },
        targets=TARGETS,
        repeats=5,
        extra=SHAPE,
    )
