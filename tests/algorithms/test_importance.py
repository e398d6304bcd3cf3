# SPDX-License-Identifier: Apache-2.0
"""Sequence weights and gaps against a loop over trajectories."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch

from satori_fast.algorithms.importance import (
    count_non_finite,
    first_gap,
    logprob_gap,
    weigh_sequences,
)
from satori_fast.algorithms.losses import PolicyLoss
from satori_fast.kernels import MAX_LOG_RATIO, PolicyTerms
from satori_fast.types import Advantages, PackedBatch
from tests.algorithms.test_advantages import make_batch

SHAPES = [(2, [3]), (1, [2, 2]), (4, [1])]


def in_packing_order(batch: PackedBatch, rows: list[list[float]]) -> list[float]:
    return [x for source in batch.source.tolist() if source >= 0 for x in rows[source]]


def batch_with_gaps(gaps: list[list[float]]) -> PackedBatch:
    """Trainer's log-prob minus the engine's of every response token; junk where masked."""
    batch = make_batch(SHAPES, [[1.0], [1.0, 1.0], [1.0]])
    old = torch.full((batch.num_tokens,), math.nan)
    old[batch.loss_mask] = torch.tensor(in_packing_order(batch, gaps))
    return batch.annotated(old_logprobs=old + batch.rollout_logprobs)


def weighing(level: Literal["token", "sequence"], terms: PolicyTerms) -> PolicyLoss:
    return PolicyLoss(terms, importance_level=level)


# exp of the sums: 0.5, 4 and 1.
GAPS = [[-math.log(2), 0.0, 0.0], [math.log(2), 0.0, math.log(2), 0.0], [0.0]]


@pytest.mark.parametrize(
    ("kind", "weights"), [("truncate", (0.75, 2.0, 1.0)), ("mask", (0.0, 0.0, 1.0))]
)
def test_every_token_gets_the_weight_of_its_sequence(kind, weights) -> None:
    batch = batch_with_gaps(GAPS)
    advantages = Advantages(torch.where(batch.loss_mask, 3.0, 0.0))
    rule = weighing(
        "sequence", PolicyTerms(importance=kind, importance_low=0.75, importance_high=2.0)
    )
    (weighed,), counts = weigh_sequences([batch], [advantages], rule)
    rows = [[3 * w] * len(row) for w, row in zip(weights, GAPS, strict=True)]
    expected = in_packing_order(batch, rows)
    assert weighed.advantages[batch.loss_mask].tolist() == pytest.approx(expected)
    assert not weighed.advantages[~batch.loss_mask].any()
    assert counts.tolist() == [2, 3]


@pytest.mark.parametrize("gap", [800.0, -800.0])
def test_a_broken_token_leaves_its_sequence_a_finite_weight(gap: float) -> None:
    batch = batch_with_gaps([[gap, 0.0, 0.0], *GAPS[1:]])
    advantages = Advantages(batch.loss_mask.float())
    (weighed,), _ = weigh_sequences(
        [batch], [advantages], weighing("sequence", PolicyTerms(importance="mask"))
    )
    weights = math.exp(math.copysign(MAX_LOG_RATIO, gap)), 4.0, 1.0
    rows = [[w] * len(row) for w, row in zip(weights, GAPS, strict=True)]
    expected = pytest.approx(in_packing_order(batch, rows))
    assert weighed.advantages[batch.loss_mask].tolist() == expected


@pytest.mark.parametrize(
    "rule",
    [PolicyLoss(importance_level="sequence"), PolicyLoss(PolicyTerms(importance="mask"))],
)
def test_other_rules_leave_advantages_alone(rule: PolicyLoss) -> None:
    batch = batch_with_gaps(GAPS)
    advantages = Advantages(batch.loss_mask.float())
    weighed, counts = weigh_sequences([batch], [advantages], rule)
    assert weighed == [advantages] and counts.tolist() == [0, 0]


def test_gap_is_summed_over_loss_tokens() -> None:
    total, count = logprob_gap([batch_with_gaps(GAPS), batch_with_gaps(GAPS)]).tolist()
    assert total == pytest.approx(6 * math.log(2)) and count == 16


def test_first_gap_names_sequence_position_and_token() -> None:
    gap = first_gap([batch_with_gaps([[0.0] * 3, [0.0, 0.0, 0.0, 0.3], [0.0]])], 0.2)
    # The last of four response tokens after a prompt of one: position 4, and token 4 there.
    assert gap is not None and (gap.source, gap.position, gap.token) == (1, 4, 4)
    assert gap.trainer - gap.engine == pytest.approx(0.3)
    assert first_gap([batch_with_gaps(GAPS)], 1.0) is None


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_counted_and_found(broken: float) -> None:
    whole = batch_with_gaps(GAPS)
    assert count_non_finite([whole]).tolist() == [0, 0]  # junk where masked does not count
    trainer = batch_with_gaps([[0.0] * 3, [0.0, broken, 0.0, broken], [0.0]])
    engine = replace(whole, rollout_logprobs=torch.full_like(whole.rollout_logprobs, broken))
    assert count_non_finite([whole, trainer]).tolist() == [2, 0]
    assert count_non_finite([trainer, engine]).tolist() == [2, 8]
    gap = first_gap([whole, trainer], math.inf)
    assert gap is not None and (gap.source, gap.position) == (1, 2)
    assert not math.isfinite(gap.trainer) and math.isfinite(gap.engine)
