# SPDX-License-Identifier: Apache-2.0
"""Exact shares over many takes, the same problems after a resume, and no silent empty origin."""

from __future__ import annotations

import json
import logging
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.data.mixture import (
    CORRECT,
    INCORRECT,
    ORIGINAL,
    ORIGINS,
    ProblemMixture,
    origin_of,
)
from satori_fast.types import Prefix, Problem


def pool(origin: str, num: int) -> list[Problem]:
    prefix = None if origin == ORIGINAL else Prefix("a<|reflect|>", "restart", origin == CORRECT)
    return [Problem(f"{origin}-{i}", "q", "a", prefix) for i in range(num)]


POOLS = {origin: pool(origin, num) for origin, num in zip(ORIGINS, (7, 5, 3), strict=True)}


def mixture(weights: tuple[float, float, float] = (1, 1, 1), seed: int = 0) -> ProblemMixture:
    return ProblemMixture(POOLS, dict(zip(ORIGINS, weights, strict=True)), seed=seed)


def test_origin_of_a_problem() -> None:
    for origin in ORIGINS:
        assert [origin_of(p) for p in POOLS[origin]] == [origin] * len(POOLS[origin])
    step = Problem("1", "q", "a", Prefix("step\n", "step", target="next"))
    assert origin_of(step) == ORIGINAL


def test_equal_shares_of_every_step() -> None:
    mixed = mixture()
    for _ in range(4):
        assert Counter(map(origin_of, mixed.take(6))) == dict.fromkeys(ORIGINS, 2)


def test_what_does_not_divide_is_made_up_for() -> None:
    mixed = mixture()
    counts = [Counter(map(origin_of, mixed.take(4))) for _ in range(3)]
    # 4/3 each: one origin gets two, another one each time.
    assert [max(count, key=count.__getitem__) for count in counts] == list(ORIGINS)
    assert sum(counts, Counter()) == dict.fromkeys(ORIGINS, 4)


@settings(max_examples=100, deadline=None)
@given(
    weights=st.tuples(*[st.sampled_from([0.0, 0.1, 0.25, 1.0, 2.0, 3.0])] * 3).filter(any),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=25),
)
def test_shares_are_exact_over_many_takes(
    weights: tuple[float, float, float], sizes: list[int]
) -> None:
    mixed = mixture(weights)
    taken: Counter[str] = Counter()
    for size in sizes:
        step = mixed.take(size)
        assert len(step) == size
        taken.update(map(origin_of, step))
        for origin, weight in zip(ORIGINS, weights, strict=True):
            share = weight / sum(weights) * taken.total()
            assert abs(taken[origin] - share) < 1


def test_every_problem_of_an_origin_once_per_epoch() -> None:
    mixed = mixture((1, 1, 0))
    taken = [p.problem_id for p in mixed.take(10) + mixed.take(4)]
    originals = [name for name in taken if name.startswith(ORIGINAL)]
    assert sorted(originals) == sorted(p.problem_id for p in POOLS[ORIGINAL])


def test_seed_decides_the_order() -> None:
    assert mixture(seed=1).take(12) == mixture(seed=1).take(12)
    assert mixture(seed=1).take(12) != mixture(seed=2).take(12)


@settings(max_examples=25, deadline=None)
@given(before=st.integers(0, 40), after=st.lists(st.integers(0, 12), min_size=1, max_size=6))
def test_resumed_is_uninterrupted(before: int, after: list[int]) -> None:
    straight = mixture((2, 1, 1))
    straight.take(before)
    saved = json.loads(json.dumps(straight.state_dict()))
    resumed = mixture((2, 1, 1))
    resumed.load_state_dict(saved)
    for size in after:
        assert resumed.take(size) == straight.take(size)


def test_taking_on_does_not_change_a_saved_state() -> None:
    mixed = mixture()
    saved = mixed.state_dict()
    copy = json.dumps(saved)
    mixed.take(5)
    assert json.dumps(saved) == copy
    resumed = mixture()
    resumed.load_state_dict(saved)
    resumed.take(5)
    assert json.dumps(saved) == copy


def test_state_of_other_origins_is_refused() -> None:
    with pytest.raises(ValueError, match="the restart buffer changed"):
        mixture((1, 1, 0)).load_state_dict(mixture().state_dict())


def test_empty_origin_gives_its_share_away_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pools = {ORIGINAL: POOLS[ORIGINAL], CORRECT: [], INCORRECT: POOLS[INCORRECT]}
    with caplog.at_level(logging.WARNING):
        mixed = ProblemMixture(pools, {ORIGINAL: 1, CORRECT: 1, INCORRECT: 3}, seed=0)
    assert [record.message for record in caplog.records] == [
        "no restart_correct problem: its share goes to the other origins"
    ]
    assert Counter(map(origin_of, mixed.take(8))) == {ORIGINAL: 2, INCORRECT: 6}


def test_unwanted_origin_is_left_out_silently(caplog: pytest.LogCaptureFixture) -> None:
    mixed = ProblemMixture({ORIGINAL: POOLS[ORIGINAL]}, {ORIGINAL: 1, CORRECT: 0}, seed=0)
    assert not caplog.records
    assert Counter(map(origin_of, mixed.take(5))) == {ORIGINAL: 5}


@pytest.mark.parametrize("weights", [{ORIGINAL: 0.0}, {}, {CORRECT: 1.0}])
def test_nothing_to_draw_from(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no problem to train on"):
        ProblemMixture({ORIGINAL: POOLS[ORIGINAL], CORRECT: []}, weights, seed=0)
