# SPDX-License-Identifier: Apache-2.0
"""One rollout, packed in any order, microbatch size, padding or number of data-parallel ranks,
gives the same advantages, losses and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from satori_fast.algorithms.advantages import AdvantageRule, estimate_advantages
from satori_fast.algorithms.losses import PolicyLoss
from satori_fast.algorithms.recipe import RECIPES, Recipe
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.types import (
    Advantages,
    PackedBatch,
    Problem,
    RewardBreakdown,
    Segment,
    SegmentKind,
    Trajectory,
)

VOCAB, HIDDEN, LONGEST = 19, 6, 32
GROUPS, SAMPLES = 4, 3
SPEC = PackingSpec(
    max_tokens_per_microbatch=400, num_minibatches=1, max_seqlen=LONGEST, fixed_length=24
)
RULES = {
    **RECIPES,
    # Products of segments, weighed by segments.
    "segments": replace(
        RECIPES["grpo"],
        weighting="segment",
        loss=replace(RECIPES["grpo"].loss, ratio="segment", ratio_mean=False),
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What a rollout taught, free of the order in which it was packed."""

    loss: float
    sums: dict[str, float]
    gradients: list[Tensor]
    advantages: dict[int, Tensor]


def make_rollout(*, judged: bool = False) -> list[Trajectory]:
    rng = np.random.default_rng(1)
    rollout: list[Trajectory] = []
    for index in range(GROUPS * SAMPLES):
        prompt_len, lengths = int(rng.integers(1, 12)), rng.integers(1, 9, 2).tolist()
        length = sum(lengths)
        reward = float(rng.normal())
        rollout.append(
            Trajectory(
                problem=Problem(f"p{index // SAMPLES}", "q", "a"),
                group_id=index // SAMPLES,
                tokens=rng.integers(0, VOCAB, prompt_len + length, dtype=np.int32),
                prompt_len=prompt_len,
                logprobs=-rng.random(length, dtype=np.float32) - 2.5,
                policy_version=0,
                finish="stop",
                segments=(
                    Segment(SegmentKind.SOLVE, 0, lengths[0], ""),
                    Segment(SegmentKind.VERIFY, lengths[0], length, ""),
                ),
                reward=RewardBreakdown(
                    {"rule": reward},
                    correct=reward > 0,
                    actions=tuple(rng.random(2) < 0.5) if judged else None,
                ),
            )
        )
    return rollout


def parameters() -> list[Tensor]:
    """Embedding, positions, output layer and value head of a model without attention."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(VOCAB, HIDDEN), (LONGEST, HIDDEN), (VOCAB, HIDDEN), (HIDDEN,)]
    return [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]


def forward(batch: PackedBatch, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    embedding, position, _, head = weights
    hidden = torch.tanh(embedding[batch.tokens] + position[batch.positions])
    return hidden, hidden @ head


def annotate(batch: PackedBatch, weights: Sequence[Tensor]) -> PackedBatch:
    """Old, reference log-probabilities and values of two slightly different models."""

    def logprobs(scale: float) -> Tensor:
        hidden, _ = forward(batch, [scale * w for w in weights])
        dense = (hidden @ weights[2].T).log_softmax(dim=-1)
        return torch.where(batch.loss_mask, dense.gather(1, batch.targets[:, None])[:, 0], 0.0)

    with torch.no_grad():
        return batch.annotated(
            old_logprobs=logprobs(0.9),
            ref_logprobs=logprobs(0.8),
            values=1.1 * forward(batch, weights)[1],
        )


def estimate_on_ranks(
    ranks: list[list[PackedBatch]], rule: AdvantageRule
) -> list[list[Advantages]]:
    """Every rank in turn: once to hear what it would send, once with the sum of what all sent."""
    sent: list[Tensor] = []

    def record(tensor: Tensor) -> Tensor:
        sent.append(tensor)
        return tensor

    for batches in ranks:
        estimate_advantages(batches, rule, record)
    total = torch.stack(sent).sum(dim=0) if sent else torch.zeros(())
    return [estimate_advantages(batches, rule, lambda _: total) for batches in ranks]


def learn(rollout: list[Trajectory], order: list[int], spec: PackingSpec, rule: Recipe) -> Outcome:
    weights = parameters()
    trajectories = [rollout[i] for i in order]
    credits = rule.credit().assign(trajectories)
    ranks = [
        [
            annotate(batch, weights)
            for batch in pack(
                trajectories, credits, replace(spec, data_parallel_rank=rank), rule.weighting
            )
        ]
        for rank in range(spec.data_parallel_size)
    ]
    total, sums, by_source = torch.zeros(()), dict[str, float](), dict[int, Tensor]()
    for batches, estimates in zip(ranks, estimate_on_ranks(ranks, rule.advantage), strict=True):
        for batch, estimate in zip(batches, estimates, strict=True):
            for output in losses(rule.loss, batch, estimate, weights):
                total = total + output.loss / batch.num_minibatch_tokens
                for name, value in output.sums.items():
                    sums[name] = sums.get(name, 0.0) + float(value) / batch.num_minibatch_tokens
            pieces = estimate.advantages.tensor_split(batch.cu_seqlens[1:-1].long())
            for source, piece in zip(batch.source.tolist(), pieces, strict=True):
                if source >= 0:
                    by_source[order[source]] = piece
    gradients = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
    return Outcome(total.item(), sums, list(gradients), by_source)


def losses(terms: PolicyLoss, batch: PackedBatch, estimate: Advantages, weights: Sequence[Tensor]):
    hidden, values = forward(batch, weights)
    yield terms.policy(hidden, weights[2], batch, estimate, vocab_size=VOCAB)
    if estimate.returns is not None:
        yield terms.value(values, batch, estimate)


def assert_same(actual: Outcome, expected: Outcome) -> None:
    assert actual.loss == pytest.approx(expected.loss, rel=2e-5, abs=1e-6)
    assert actual.sums == pytest.approx(expected.sums, rel=1e-4, abs=1e-5)
    for gradient, wanted in zip(actual.gradients, expected.gradients, strict=True):
        assert torch.allclose(gradient, wanted, rtol=1e-4, atol=2e-6)
    assert actual.advantages.keys() == expected.advantages.keys()
    for source, wanted in expected.advantages.items():
        assert torch.allclose(actual.advantages[source], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_packing_does_not_change_what_is_learned(name: str) -> None:
    rollout, rule = make_rollout(judged=name == "s2r_process"), RULES[name]
    order = list(range(len(rollout)))
    expected = learn(rollout, order, SPEC, rule)
    assert any(float(g.norm()) > 1e-3 for g in expected.gradients)
    shuffled = np.random.default_rng(3).permutation(len(rollout)).tolist()
    assert_same(learn(rollout, shuffled, SPEC, rule), expected)
    variants = (
        replace(SPEC, max_tokens_per_microbatch=30, seed=5),
        replace(SPEC, max_tokens_per_microbatch=64, pad_to_multiple=16),
        replace(SPEC, max_tokens_per_microbatch=90, data_parallel_size=2),
        replace(SPEC, max_tokens_per_microbatch=40, data_parallel_size=3, pad_to_multiple=4),
        replace(SPEC, data_parallel_size=len(rollout) + 1),
    )
    for spec in variants:
        assert_same(learn(rollout, order, spec, rule), expected)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_ranks_do_not_change_any_of_several_minibatches(name: str) -> None:
    rollout, rule = make_rollout(), RULES[name]
    order = list(range(len(rollout)))
    spec = replace(SPEC, num_minibatches=3, max_tokens_per_microbatch=50)
    expected = learn(rollout, order, spec, rule)
    for num_ranks in (2, 3):
        assert_same(
            learn(rollout, order, replace(spec, data_parallel_size=num_ranks), rule), expected
        )
