# SPDX-License-Identifier: Apache-2.0
"""Advantages: hand-worked GAE, and the textbook recursion one sequence at a time in float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from satori_fast.algorithms.advantages import AdvantageRule, estimate_advantages
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.types import Credit, PackedBatch, Problem, Segment, SegmentKind, Trajectory


def make_trajectory(prompt_len: int, segment_lengths: list[int]) -> Trajectory:
    stops = np.cumsum(segment_lengths).tolist()
    starts = [0, *stops[:-1]]
    return Trajectory(
        problem=Problem("p", "q", "a"),
        group_id=0,
        tokens=np.arange(prompt_len + stops[-1], dtype=np.int32),
        prompt_len=prompt_len,
        logprobs=np.zeros(stops[-1], np.float32),
        policy_version=0,
        finish="stop",
        segments=tuple(
            Segment(SegmentKind.STEP, a, b, "") for a, b in zip(starts, stops, strict=True)
        ),
    )


def make_batch(shapes: list[tuple[int, list[int]]], rewards: list[list[float]]) -> PackedBatch:
    """One packed batch; the credit of segment j of sequence i is rewards[i][j]."""
    credits = [Credit(np.array(r, np.float32), np.zeros(len(r), np.float32)) for r in rewards]
    spec = PackingSpec(512, num_minibatches=1, pad_to_multiple=16)
    (batch,) = pack([make_trajectory(*shape) for shape in shapes], credits, spec, "token")
    return batch


def random_batch(seed: int) -> PackedBatch:
    """Ragged sequences; what stands in `values` at prompts and padding is poison."""
    rng = np.random.default_rng(seed)
    shapes = [
        (int(rng.integers(1, 7)), rng.integers(1, 8, rng.integers(1, 4)).tolist()) for _ in range(9)
    ]
    shapes.append((1, [1]))
    batch = make_batch(shapes, [rng.normal(size=len(s)).tolist() for _, s in shapes])
    values = torch.from_numpy(rng.normal(size=batch.num_tokens).astype(np.float32))
    return batch.annotated(values=torch.where(batch.loss_mask, values, torch.nan))


def alone(tensor: Tensor) -> Tensor:
    return tensor


def test_gae_by_hand() -> None:
    # Three response tokens, reward 1 at the last, gamma 1, lambda 1/2:
    # delta = (0.5 - 0.25, 0.5 - 0.5, 1 - 0.5), A_3 = 0.5, A_2 = 0.25, A_1 = 0.25 + 0.125.
    batch = make_batch([(2, [3])], [[1.0]])
    values = torch.zeros(batch.num_tokens)
    values[1:4] = torch.tensor([0.25, 0.5, 0.5])
    rule = AdvantageRule("gae", gamma=1.0, lambda_=0.5)
    (result,) = estimate_advantages([batch.annotated(values=values)], rule, alone)
    assert result.returns is not None
    assert result.advantages[:5].tolist() == [0.0, 0.375, 0.25, 0.5, 0.0]
    assert result.returns[:5].tolist() == [0.0, 0.625, 0.75, 1.0, 0.0]
    assert not result.advantages[5:].any() and not result.returns[5:].any()


@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_packed_gae_is_the_textbook_recursion_per_sequence(gamma: float, lambda_: float) -> None:
    batch = random_batch(seed=3)
    rule = AdvantageRule("gae", gamma=gamma, lambda_=lambda_)
    (result,) = estimate_advantages([batch], rule, alone)
    assert result.returns is not None
    values = batch.require("values").double().tolist()
    expected, expected_returns = [0.0] * batch.num_tokens, [0.0] * batch.num_tokens
    bounds = batch.cu_seqlens.tolist()
    for start, stop in pairwise(bounds):
        next_value = next_advantage = 0.0
        next_segment = -1
        for t in reversed(range(start, stop)):
            if not batch.loss_mask[t]:
                continue
            segment = int(batch.segment_ids[t])
            reward = float(batch.credit[t]) if segment != next_segment else 0.0
            delta = reward + gamma * next_value - values[t]
            next_advantage = delta + gamma * lambda_ * next_advantage
            next_value, next_segment = values[t], segment
            expected[t], expected_returns[t] = next_advantage, next_advantage + values[t]
    assert result.advantages.tolist() == pytest.approx(expected, abs=2e-5)
    assert result.returns.tolist() == pytest.approx(expected_returns, abs=2e-5)
    assert result.advantages.dtype == result.returns.dtype == torch.float32


def test_gae_of_a_cut_response_goes_on_with_the_value_after_it() -> None:
    # As by hand above, with V of the state after the last token, 0.8, in place of the reward:
    # delta_3 = 0.9 * 0.8 - 0.5 = 0.22, A_2 = -0.05 + 0.45 * 0.22, A_1 = 0.2 + 0.45 * A_2.
    cut = Credit(np.zeros(1, np.float32), np.zeros(1, np.float32), goes_on=True)
    ended = Credit(np.ones(1, np.float32), np.zeros(1, np.float32))
    spec = PackingSpec(512, num_minibatches=1, pad_to_multiple=16)
    (batch,) = pack([make_trajectory(2, [3]), make_trajectory(1, [2])], [cut, ended], spec, "token")
    assert batch.goes_on is not None and int(batch.goes_on.sum()) == 1
    values = torch.zeros(batch.num_tokens)
    first = batch.sequence_of_token() == batch.source.tolist().index(0)
    begin = int(first.nonzero()[0])
    values[begin + 1 : begin + 5] = torch.tensor([0.25, 0.5, 0.5, 0.8])
    rule = AdvantageRule("gae", gamma=0.9, lambda_=0.5)
    (result,) = estimate_advantages([batch.annotated(values=values)], rule, alone)
    found = result.advantages[begin : begin + 5].tolist()
    assert found == pytest.approx([0.0, 0.2 + 0.45 * 0.049, 0.049, 0.22, 0.0], abs=1e-6)
    # The other response ends with its reward, as ever.
    (plain,) = pack([make_trajectory(2, [3]), make_trajectory(1, [2])], [ended] * 2, spec, "token")
    assert plain.goes_on is None
    (whole,) = estimate_advantages([plain.annotated(values=values)], rule, alone)
    assert torch.equal(result.advantages[~first], whole.advantages[~first])


def test_gae_with_gamma_and_lambda_one_returns_the_reward_to_go() -> None:
    batch = make_batch([(2, [2, 3]), (1, [1])], [[0.5, 1.0], [-1.0]])
    batch = batch.annotated(values=torch.linspace(-1, 1, batch.num_tokens))
    rule = AdvantageRule("gae", gamma=1.0, lambda_=1.0)
    (result,) = estimate_advantages([batch], rule, alone)
    assert result.returns is not None
    by_segment = {0: 1.5, 1: 1.0, 2: -1.0} if batch.source[0] == 0 else {0: -1.0, 1: 1.5, 2: 1.0}
    for t in batch.loss_mask.nonzero().squeeze(1).tolist():
        assert float(result.returns[t]) == pytest.approx(by_segment[int(batch.segment_ids[t])])


def test_gae_without_values_says_who_forgot_them() -> None:
    with pytest.raises(ValueError, match="values"):
        estimate_advantages([make_batch([(1, [2])], [[1.0]])], AdvantageRule("gae"), alone)


def test_spread() -> None:
    batch = random_batch(seed=4)
    (spread,) = estimate_advantages([batch], AdvantageRule("spread"), alone)
    assert torch.equal(spread.advantages, batch.credit)
    assert spread.returns is None


@pytest.mark.parametrize("kind", ["gae", "spread"])
def test_whitening_uses_one_mean_and_std_for_the_rollout(kind: str) -> None:
    batches = [random_batch(seed) for seed in range(3)]
    batches[1] = replace(batches[1], minibatch=1)
    rule = AdvantageRule(kind, whiten=True)  # pyright: ignore[reportArgumentType]
    plain = estimate_advantages(batches, replace(rule, whiten=False), alone)
    white = estimate_advantages(batches, rule, alone)
    masks = torch.cat([b.loss_mask for b in batches])
    before = torch.cat([a.advantages for a in plain])[masks].double()
    after = torch.cat([a.advantages for a in white])
    expected = (before - before.mean()) / before.std(correction=0)
    assert torch.allclose(after[masks].double(), expected, atol=1e-5)
    assert not after[~masks].any()
    for a, b in zip(plain, white, strict=True):
        if kind == "gae":
            assert a.returns is not None and b.returns is not None
            assert torch.equal(a.returns, b.returns)


def test_whitening_over_two_ranks_is_whitening_over_one() -> None:
    batches = [random_batch(seed) for seed in range(4)]
    rule = AdvantageRule("spread", whiten=True)
    shares = [batches[:1], batches[1:]]
    local: list[Tensor] = []

    def record(tensor: Tensor) -> Tensor:
        local.append(tensor)
        return tensor

    for share in shares:
        estimate_advantages(share, rule, record)
    total = torch.stack(local).sum(dim=0)
    by_rank = [a for share in shares for a in estimate_advantages(share, rule, lambda _: total)]
    for split, whole in zip(by_rank, estimate_advantages(batches, rule, alone), strict=True):
        assert torch.allclose(split.advantages, whole.advantages, atol=1e-6)


def test_whitening_equal_advantages_gives_zeros() -> None:
    batch = make_batch([(2, [3]), (1, [2])], [[0.5], [0.5]])
    (result,) = estimate_advantages([batch], AdvantageRule("spread", whiten=True), alone)
    assert not result.advantages.any()


def test_no_batches() -> None:
    assert estimate_advantages([], AdvantageRule("spread", whiten=True), alone) == []
