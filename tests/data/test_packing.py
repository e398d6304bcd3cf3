# SPDX-License-Identifier: Apache-2.0
"""Packing: nothing lost, nothing shifted, the same work whatever the number of ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.data.packing import PackingSpec, pack, pack_pairs
from satori_fast.types import (
    Credit,
    PackedBatch,
    PreferencePair,
    Problem,
    Segment,
    SegmentKind,
    Trajectory,
)

SPEC = PackingSpec(max_tokens_per_microbatch=32, num_minibatches=1)


def make_trajectory(prompt_len: int, segment_lengths: list[int], seed: int = 0) -> Trajectory:
    rng = np.random.default_rng(seed)
    stops = np.cumsum(segment_lengths).tolist()
    starts = [0, *stops[:-1]]
    return Trajectory(
        problem=Problem(f"p{seed}", "q", "a"),
        group_id=seed,
        tokens=rng.integers(1, 1000, prompt_len + stops[-1], dtype=np.int32),
        prompt_len=prompt_len,
        logprobs=-rng.random(stops[-1], dtype=np.float32) - 0.1,
        policy_version=0,
        finish="stop",
        segments=tuple(
            Segment(SegmentKind.STEP, a, b, "") for a, b in zip(starts, stops, strict=True)
        ),
    )


def make_credit(trajectory: Trajectory, seed: int = 0) -> Credit:
    values = np.random.default_rng(seed).normal(size=(2, len(trajectory.segments)))
    return Credit(*values.astype(np.float32))


def pack_all_ranks(
    trajectories: list[Trajectory], spec: PackingSpec, weighting: str = "token"
) -> list[list[PackedBatch]]:
    credits = [make_credit(t, seed) for seed, t in enumerate(trajectories)]
    ranks = range(spec.data_parallel_size)
    return [
        pack(trajectories, credits, replace(spec, data_parallel_rank=rank), weighting)
        for rank in ranks
    ]


def test_one_trajectory_by_hand() -> None:
    # The example of the Trajectory docstring: three prompt tokens, segments of 1, 2 and 3.
    trajectory = replace(
        make_trajectory(3, [1, 2, 3]),
        tokens=np.arange(10, 19, dtype=np.int32),
        logprobs=np.array([-1, -2, -3, -4, -5, -6], dtype=np.float32),
    )
    credit = Credit(np.array([1, 2, 3], np.float32), np.array([0.5, 0, 1], np.float32))
    (batch,) = pack([trajectory], [credit], replace(SPEC, pad_to_multiple=4), "token")
    assert batch.tokens.tolist() == [10, 11, 12, 13, 14, 15, 16, 17, 18, 0, 0, 0]
    assert batch.targets.tolist() == [11, 12, 13, 14, 15, 16, 17, 18, 0, 0, 0, 0]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2]
    assert batch.loss_mask.tolist() == [i in range(2, 8) for i in range(12)]
    assert batch.segment_ids.tolist() == [-1, -1, 0, 1, 1, 2, 2, 2, -1, -1, -1, -1]
    assert batch.credit.tolist() == [0, 0, 0.5, 2, 2, 2, 2, 2, 0, 0, 0, 0]
    assert batch.rollout_logprobs.tolist() == [0, 0, -1, -2, -3, -4, -5, -6, 0, 0, 0, 0]
    assert batch.loss_weights.tolist() == batch.loss_mask.float().tolist()
    assert batch.cu_seqlens.tolist() == [0, 9, 12]
    assert batch.source.tolist() == [0, -1]
    assert (batch.max_seqlen, batch.minibatch, batch.num_minibatch_tokens) == (9, 0, 6)
    assert batch.tokens.dtype == batch.positions.dtype == batch.targets.dtype == torch.int64
    assert batch.cu_seqlens.dtype == batch.segment_ids.dtype == batch.source.dtype == torch.int32
    assert batch.credit.dtype == batch.rollout_logprobs.dtype == torch.float32
    assert batch.loss_weights.dtype == torch.float32


shapes = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 6), min_size=1, max_size=3)),
    min_size=1,
    max_size=14,
)


@settings(max_examples=80, deadline=None)
@given(
    shapes=shapes,
    num_minibatches=st.integers(1, 4),
    num_ranks=st.integers(1, 3),
    max_tokens=st.integers(32, 70),
    pad_to_multiple=st.sampled_from([1, 4]),
    seed=st.integers(0, 3),
)
def test_nothing_lost_nothing_shifted(
    shapes: list[tuple[int, list[int]]],
    num_minibatches: int,
    num_ranks: int,
    max_tokens: int,
    pad_to_multiple: int,
    seed: int,
) -> None:
    trajectories = [make_trajectory(p, s, i) for i, (p, s) in enumerate(shapes)]
    spec = PackingSpec(
        max_tokens_per_microbatch=max_tokens,
        num_minibatches=num_minibatches,
        data_parallel_size=num_ranks,
        pad_to_multiple=pad_to_multiple,
        seed=seed,
    )
    ranks = pack_all_ranks(trajectories, spec)

    sources = [i for rank in ranks for b in rank for i in b.source.tolist() if i >= 0]
    assert sorted(sources) == list(range(len(trajectories)))
    assert len({tuple(b.minibatch for b in rank) for rank in ranks}) == 1
    for rank in ranks:
        assert [b.minibatch for b in rank] == sorted(b.minibatch for b in rank)
    loss_tokens: Counter[int] = Counter()
    declared: dict[int, set[int]] = {}
    for batch in (b for rank in ranks for b in rank):
        check_batch(batch, trajectories)
        assert batch.num_tokens <= max_tokens
        assert batch.num_tokens % pad_to_multiple == 0
        loss_tokens[batch.minibatch] += int(batch.loss_mask.sum())
        declared.setdefault(batch.minibatch, set()).add(batch.num_minibatch_tokens)
    assert set(loss_tokens) == set(range(min(num_minibatches, len(trajectories))))
    for minibatch, num_tokens in loss_tokens.items():
        assert num_tokens > 0
        assert declared[minibatch] == {num_tokens}


def check_batch(batch: PackedBatch, trajectories: list[Trajectory]) -> None:
    """Read the batch back, sequence by sequence, against the trajectories."""
    bounds = batch.cu_seqlens.tolist()
    assert bounds[-1] == batch.num_tokens
    assert batch.max_seqlen == max(np.diff(bounds))
    next_segment = 0
    for index, start, stop in zip(batch.source.tolist(), bounds[:-1], bounds[1:], strict=True):
        entries = slice(start, stop)
        mask = batch.loss_mask[entries]
        assert batch.positions[entries].tolist() == list(range(stop - start))
        assert not mask[-1] and batch.targets[stop - 1] == 0
        if index < 0:
            assert not mask.any() and not batch.loss_weights[entries].any()
            assert (batch.segment_ids[entries] == -1).all()
            continue
        source = trajectories[index]
        credit = make_credit(source, index)
        assert batch.tokens[entries].tolist() == source.tokens.tolist()
        assert batch.targets[entries][:-1].tolist() == source.tokens[1:].tolist()
        assert batch.targets[entries][mask].tolist() == source.response_tokens.tolist()
        assert batch.rollout_logprobs[entries][mask].tolist() == source.logprobs.tolist()
        for segment, value, baseline in zip(
            source.segments, credit.values, credit.baselines, strict=True
        ):
            first = start + source.prompt_len - 1
            tokens = slice(first + segment.start, first + segment.stop)
            assert (batch.segment_ids[tokens] == next_segment).all()
            assert (batch.credit[tokens] == float(value - baseline)).all()
            next_segment += 1
    for name in ("loss_weights", "credit", "rollout_logprobs"):
        assert not getattr(batch, name)[~batch.loss_mask].any()
    assert (batch.segment_ids[~batch.loss_mask] == -1).all()


@pytest.mark.parametrize("weighting", ["token", "sequence", "fixed"])
def test_ranks_share_the_same_work(weighting: str) -> None:
    rng = np.random.default_rng(5)
    trajectories = [
        make_trajectory(int(rng.integers(1, 9)), rng.integers(1, 6, 2).tolist(), i)
        for i in range(13)
    ]
    spec = replace(SPEC, num_minibatches=3, fixed_length=20)

    def work(num_ranks: int) -> Counter[tuple[int, int, tuple[float, ...]]]:
        counter: Counter[tuple[int, int, tuple[float, ...]]] = Counter()
        for rank in pack_all_ranks(
            trajectories, replace(spec, data_parallel_size=num_ranks), weighting
        ):
            for batch in rank:
                weights = batch.loss_weights.tensor_split(batch.cu_seqlens[1:-1].long())
                for source, weight in zip(batch.source.tolist(), weights, strict=True):
                    if source >= 0:
                        counter[source, batch.minibatch, tuple(weight.tolist())] += 1
        return counter

    assert work(1) == work(2) == work(3)


def test_weights_turn_one_denominator_into_each_mean() -> None:
    trajectories = [make_trajectory(2, [n], n) for n in (1, 2, 5)]
    spec = replace(SPEC, fixed_length=10)
    losses = {1: 3.0, 2: 5.0, 5: 7.0}  # per token, by response length

    def mean_loss(weighting: str) -> float:
        ((batch,),) = pack_all_ranks(trajectories, spec, weighting)
        lengths = np.diff(batch.cu_seqlens.numpy())
        per_token = torch.tensor([losses[n - 2] for n in lengths]).repeat_interleave(
            torch.from_numpy(lengths)
        )
        return float((batch.loss_weights * per_token).sum()) / batch.num_minibatch_tokens

    assert mean_loss("token") == pytest.approx((3 * 1 + 5 * 2 + 7 * 5) / 8)
    assert mean_loss("sequence") == pytest.approx((3 + 5 + 7) / 3)
    assert mean_loss("segment") == mean_loss("sequence")  # one segment each
    assert mean_loss("fixed") == pytest.approx((3 * 1 + 5 * 2 + 7 * 5) / (3 * 10))


def test_weights_of_segments_by_hand() -> None:
    # 72 tokens in four responses: w = 72 / (4 * segments * tokens of the segment).
    shapes = ([4, 7, 5, 8], [4, 8], [4, 8], [4, 7, 5, 8])
    trajectories = [make_trajectory(1, shape, seed) for seed, shape in enumerate(shapes)]
    spec = replace(SPEC, max_tokens_per_microbatch=100)
    ((batch,),) = pack_all_ranks(trajectories, spec, "segment")
    long, short = [1.125, 0.642857, 0.9, 0.5625], [2.25, 1.125]
    weights = batch.loss_weights.tensor_split(batch.cu_seqlens[1:-1].long())
    for source, row in zip(batch.source.tolist(), weights, strict=True):
        expected = np.repeat(long if source in (0, 3) else short, shapes[source])
        assert row[:-1].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert float(batch.loss_weights.sum()) == pytest.approx(72) == batch.num_minibatch_tokens


def test_without_credits_there_is_none() -> None:
    trajectory = make_trajectory(2, [1, 2])
    (batch,) = pack([trajectory], None, SPEC, "token")
    assert not batch.credit.any() and batch.loss_weights.sum() == 3
    (scored,) = pack([trajectory], [make_credit(trajectory)], SPEC, "token")
    assert scored.credit.any()
    with pytest.raises(ValueError, match="one of token, sequence, segment, fixed"):
        pack([trajectory], None, SPEC, "action")  # pyright: ignore[reportArgumentType]


MASKED = ([4, 7, 5, 8], [4, 8], [1], [3, 2, 2])
TRAINED = ((False, True, True, True), (True, True), (True,), (True, False, True))


def masked(num_ranks: int = 1, num_minibatches: int = 1) -> list[list[PackedBatch]]:
    trajectories = [make_trajectory(2, shape, seed) for seed, shape in enumerate(MASKED)]
    spec = replace(
        SPEC, num_minibatches=num_minibatches, data_parallel_size=num_ranks, pad_to_multiple=4
    )
    credits = [make_credit(t, seed) for seed, t in enumerate(trajectories)]
    return [
        pack(
            trajectories,
            credits,
            replace(spec, data_parallel_rank=rank),
            "token",
            trained=TRAINED,
        )
        for rank in range(num_ranks)
    ]


def test_segments_that_are_not_trained_are_masked_like_a_prompt() -> None:
    trajectories = [make_trajectory(2, shape, seed) for seed, shape in enumerate(MASKED)]
    plain = {b.source[0].item(): b for b in pack_all_ranks(trajectories, SPEC)[0]}
    assert sum(b.num_minibatch_tokens for b in plain.values()) >= 44
    rows = []
    for batch in masked()[0]:
        assert batch.num_minibatch_tokens == 20 + 12 + 1 + 5
        bounds = batch.cu_seqlens.tolist()
        for source, start, stop in zip(batch.source.tolist(), bounds, bounds[1:], strict=False):
            rows.append(source)
            if source < 0:
                assert not batch.loss_mask[start:stop].any()
                continue
            expected = np.repeat(TRAINED[source], MASKED[source]).tolist()
            assert batch.loss_mask[start:stop].tolist() == [False, *expected, False]
        # What a trained token has is what it has without a mask; all others have nothing.
        mask = batch.loss_mask
        assert (batch.segment_ids >= 0).equal(mask) and batch.loss_weights.equal(mask.float())
        for values in (batch.credit, batch.rollout_logprobs):
            assert (values != 0).equal(mask)
        assert batch.targets[mask].all()
    assert sorted(source for source in rows if source >= 0) == [0, 1, 2, 3]


def test_a_mask_leaves_the_order_and_the_numbers_of_trained_tokens() -> None:
    trajectories = [make_trajectory(2, shape, seed) for seed, shape in enumerate(MASKED)]
    spec = replace(SPEC, pad_to_multiple=4)
    for batch, whole in zip(masked()[0], pack_all_ranks(trajectories, spec)[0], strict=True):
        assert batch.tokens.equal(whole.tokens) and batch.source.equal(whole.source)
        mask = batch.loss_mask
        assert (mask & ~whole.loss_mask).sum() == 0
        for name in ("segment_ids", "credit", "loss_weights", "rollout_logprobs"):
            assert getattr(batch, name)[mask].equal(getattr(whole, name)[mask])


def test_a_mask_that_leaves_everything_is_no_mask() -> None:
    trajectories = [make_trajectory(2, shape, seed) for seed, shape in enumerate(MASKED)]
    everything = [[True] * len(shape) for shape in MASKED]
    plain = pack(trajectories, None, SPEC, "token")
    for batch, same in zip(
        plain, pack(trajectories, None, SPEC, "token", trained=everything), strict=True
    ):
        for field in fields(PackedBatch):
            a, b = getattr(batch, field.name), getattr(same, field.name)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def test_ranks_share_what_a_mask_leaves() -> None:
    def work(num_ranks: int) -> Counter[tuple[int, int, int, tuple[bool, ...]]]:
        counter: Counter[tuple[int, int, int, tuple[bool, ...]]] = Counter()
        for batch in (b for rank in masked(num_ranks, 2) for b in rank):
            masks = batch.loss_mask.tensor_split(batch.cu_seqlens[1:-1].long())
            for source, mask in zip(batch.source.tolist(), masks, strict=True):
                if source >= 0:
                    key = (source, batch.minibatch, batch.num_minibatch_tokens)
                    counter[*key, tuple(mask.tolist())] += 1
        return counter

    assert work(1) == work(2) == work(3) and work(1).total() == 4
    assert sum({m: n for _, m, n, _ in work(2)}.values()) == 38


def test_a_rank_without_trajectories_gets_padding_only() -> None:
    spec = replace(SPEC, data_parallel_size=3, pad_to_multiple=4)
    ranks = pack_all_ranks([make_trajectory(2, [3]), make_trajectory(2, [4], 1)], spec)
    empty = ranks[2][0]
    assert [len(rank) for rank in ranks] == [1, 1, 1]
    assert (empty.source.tolist(), empty.cu_seqlens.tolist()) == ([-1], [0, 4])
    assert not empty.loss_mask.any()
    assert empty.num_minibatch_tokens == 7


def test_minibatches_ranks_and_microbatches_are_even() -> None:
    rng = np.random.default_rng(2)
    trajectories = [make_trajectory(20, [int(rng.integers(10, 120))], i) for i in range(200)]
    spec = PackingSpec(1000, num_minibatches=4, data_parallel_size=3)
    ranks = pack_all_ranks(trajectories, spec)
    total = sum(len(t.tokens) for t in trajectories)
    for minibatch in range(4):
        loads = [[b.num_tokens for b in rank if b.minibatch == minibatch] for rank in ranks]
        assert abs(sum(map(sum, loads)) - total / 4) <= 140
        assert max(map(sum, loads)) / min(map(sum, loads)) < 1.1
        flat = [tokens for load in loads for tokens in load]
        assert max(flat) / min(flat) < 1.2


def test_ranks_are_even_where_microbatches_cannot_be() -> None:
    # No two of these fit together: ranks get 30 + 17 and 28 + 18, not 30 + 28 and 18 + 17.
    trajectories = [make_trajectory(2, [n - 2], n) for n in (17, 30, 28, 18)]
    ranks = pack_all_ranks(trajectories, replace(SPEC, data_parallel_size=2))
    assert [sorted(b.num_tokens for b in rank) for rank in ranks] == [[17, 30], [18, 28]]


def make_siblings(num_groups: int, num_samples: int, prompt_len: int) -> list[Trajectory]:
    """Groups of responses of 4 to 30 tokens to one prompt each; a group is spread over the list."""
    made = [make_trajectory(prompt_len, [4 + (7 * i) % 27], i) for i in range(num_groups)]
    rng = np.random.default_rng(0)
    siblings = []
    for _ in range(num_samples):
        for first in made:
            response = rng.integers(1, 1000, first.num_response_tokens, dtype=np.int32)
            tokens = np.concatenate([first.tokens[:prompt_len], response])
            siblings.append(replace(first, tokens=tokens))
    return siblings


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_sequences_that_begin_alike_lie_together_and_share_rows(num_ranks: int) -> None:
    trajectories = make_siblings(6, 8, prompt_len=40)
    spec = PackingSpec(640, 1, data_parallel_size=num_ranks, pad_to_multiple=4, share_prefixes=True)
    ranks = pack_all_ranks(trajectories, spec)
    batches = [batch for rank in ranks for batch in rank]
    assert sorted(i for b in batches for i in b.source.tolist() if i >= 0) == list(range(48))
    for batch in batches:
        check_batch(batch, trajectories)
        assert batch.num_tokens <= 640 and batch.num_rows % 4 == 0
        assert batch.shared is not None
        # A row is a token after the same tokens.
        positions = batch.positions[batch.shared.tokens]
        assert batch.tokens.equal(batch.tokens[batch.shared.tokens][batch.shared.rows])
        assert batch.positions.equal(positions[batch.shared.rows])
    # 48 prompts of 40 tokens; of those in one microbatch each but the first is free.
    num_tokens = sum(batch.num_tokens for batch in batches)
    num_rows = sum(batch.num_rows for batch in batches)
    assert num_tokens - num_rows > 0.8 * 40 * (48 - 6)
    loads = [sum(batch.num_rows for batch in rank) for rank in ranks]
    assert max(loads) / min(loads) < 1.25
    plain = pack_all_ranks(trajectories, replace(spec, share_prefixes=False))
    assert all(batch.shared is None for rank in plain for batch in rank)


def test_without_common_beginnings_microbatches_are_the_full_ones() -> None:
    rng = np.random.default_rng(2)
    trajectories = [make_trajectory(4, [int(rng.integers(4, 60))], i) for i in range(40)]
    spec = PackingSpec(128, 1)
    for alike in (trajectories, make_siblings(20, 2, prompt_len=2)):  # too little to share
        plain, sharing = (
            pack_all_ranks(alike, replace(spec, share_prefixes=shares))[0]
            for shares in (False, True)
        )
        sources = [sorted(sorted(b.source.tolist()) for b in each) for each in (plain, sharing)]
        assert sources[0] == sources[1]


def test_a_pair_shares_its_question() -> None:
    chosen, rejected = make_siblings(1, 2, prompt_len=9)
    (batch,) = pack_pairs([PreferencePair(chosen, rejected)], replace(SPEC, share_prefixes=True))
    assert batch.source.tolist() == [0, 1]
    assert batch.num_rows == batch.num_tokens - 9


def test_no_minibatch_is_empty_beside_a_very_long_trajectory() -> None:
    trajectories = [make_trajectory(2, [n], n) for n in (28, 1, 2, 3, 4)]
    for seed in range(20):  # the shuffle puts it first, last and in between
        (batches,) = pack_all_ranks(trajectories, replace(SPEC, num_minibatches=4, seed=seed))
        assert {b.minibatch for b in batches} == {0, 1, 2, 3}
        assert all(b.num_minibatch_tokens > 0 for b in batches)


def test_deterministic_and_reshuffled_by_seed() -> None:
    trajectories = [make_trajectory(2, [3], i) for i in range(12)]

    def order(seed: int) -> list[list[int]]:
        ((*batches,),) = pack_all_ranks(trajectories, replace(SPEC, num_minibatches=2, seed=seed))
        return [b.source.tolist() for b in batches]

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_no_trajectories_no_batches() -> None:
    assert pack([], [], SPEC, "token") == []


def test_a_trajectory_that_does_not_fit_is_named() -> None:
    trajectories = [make_trajectory(2, [3], 1), make_trajectory(20, [13], 7)]
    with pytest.raises(ValueError, match=r"'p7'.* 33 tokens.*packing\.max_tokens_per_microbatch"):
        pack_all_ranks(trajectories, SPEC)
    with pytest.raises(ValueError, match=r"'p7'.* 33 tokens.*packing\.max_seqlen = 30"):
        pack_all_ranks(trajectories, replace(SPEC, max_tokens_per_microbatch=64, max_seqlen=30))
    # 33 tokens would fit 34, but not once padded to a multiple of 16.
    with pytest.raises(ValueError, match="multiple of 16"):
        spec = replace(SPEC, max_tokens_per_microbatch=34, pad_to_multiple=16)
        pack_all_ranks(trajectories, spec)


def test_fixed_weighting_needs_a_length() -> None:
    with pytest.raises(ValueError, match=r"packing\.fixed_length"):
        pack_all_ranks([make_trajectory(2, [3])], SPEC, "fixed")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_minibatches", 0),
        ("data_parallel_rank", 1),
        ("pad_to_multiple", 64),
        ("fixed_length", 0),
    ],
)
def test_a_senseless_spec_is_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        replace(SPEC, **{field: value})


def make_pairs(lengths: list[tuple[int, int]]) -> list[PreferencePair]:
    """Pairs of solutions with these numbers of response tokens, after one prompt token."""
    return [
        PreferencePair(make_trajectory(1, [a], 2 * i), make_trajectory(1, [b], 2 * i + 1))
        for i, (a, b) in enumerate(lengths)
    ]


def test_two_pairs_by_hand() -> None:
    pairs = make_pairs([(2, 1), (1, 3)])
    (batch,) = pack_pairs(pairs, replace(SPEC, pad_to_multiple=4))
    expected = [t for pair in pairs for t in (pair.chosen, pair.rejected)]
    assert batch.source.tolist() == [0, 1, 2, 3, -1]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 7, 11, 12]
    assert batch.last_tokens.tolist() == [2, 4, 6, 10]
    assert batch.tokens[:11].tolist() == [int(i) for t in expected for i in t.tokens]
    # One term of the loss for each pair.
    assert (batch.minibatch, batch.num_minibatch_tokens) == (0, 2)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=12),
    num_ranks=st.integers(1, 3),
    pad_to_multiple=st.sampled_from([1, 4]),
)
def test_pairs_stay_together_and_ranks_share_them(
    lengths: list[tuple[int, int]], num_ranks: int, pad_to_multiple: int
) -> None:
    pairs = make_pairs(lengths)
    spec = replace(SPEC, data_parallel_size=num_ranks, pad_to_multiple=pad_to_multiple)
    ranks = [pack_pairs(pairs, replace(spec, data_parallel_rank=r)) for r in range(num_ranks)]
    assert len({len(batches) for batches in ranks}) == 1
    seen: list[int] = []
    for batch in (batch for batches in ranks for batch in batches):
        own = batch.source[batch.source >= 0].view(-1, 2)
        assert (own[:, 0] % 2 == 0).all() and torch.equal(own[:, 1], own[:, 0] + 1)
        assert batch.num_tokens <= spec.max_tokens_per_microbatch
        assert batch.num_minibatch_tokens == len(pairs)
        last = batch.tokens[batch.last_tokens].tolist()
        solutions = [pair for pair in pairs for pair in (pair.chosen, pair.rejected)]
        assert last == [int(solutions[i].tokens[-1]) for i in own.flatten().tolist()]
        seen += own.flatten().tolist()
    assert sorted(seen) == list(range(2 * len(pairs)))


def test_a_pair_that_does_not_fit_is_named() -> None:
    pairs = make_pairs([(3, 3), (20, 20)])
    with pytest.raises(ValueError, match="'p2' has a pair of solutions of 42 tokens"):
        pack_pairs(pairs, SPEC)
    with pytest.raises(ValueError, match="'p2' has a trajectory of 21 tokens, above the context"):
        pack_pairs(pairs, replace(SPEC, max_tokens_per_microbatch=64, max_seqlen=20))
    assert pack_pairs([], SPEC) == []
