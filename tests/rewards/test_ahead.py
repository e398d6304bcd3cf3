# SPDX-License-Identifier: Apache-2.0
"""Rewards computed while others are sampled: the values of the reward itself, by a thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from satori_fast.rewards.ahead import ScoredAhead
from satori_fast.rewards.similarity import SimilarityReward
from satori_fast.rewards.terms import score
from satori_fast.types import Prefix, RewardBreakdown, Trajectory
from tests.rewards.test_similarity import answering

STEP = Prefix("", "step", target="37 + 25 = 62")


RESPONSES = [
    answering(text, STEP)
    for text in (
        "<think> a </think> 37 + 25 = 62",
        "<think> a </think> 37 + 24 = 61",
        "37 + 25 = 62",
    )
]


def test_what_was_begun_what_was_not_and_what_nobody_asks_for() -> None:
    reward = SimilarityReward("words")
    ahead = ScoredAhead(reward)
    other = answering("62", STEP)
    for trajectory in (RESPONSES[2], other, RESPONSES[0]):
        ahead.begin(trajectory)
    assert ahead(RESPONSES) == reward(RESPONSES)
    assert not ahead._begun
    assert ahead(RESPONSES) == reward(RESPONSES)  # now without a beginning


def test_it_is_known_by_its_tokens_under_any_reward_that_came_before() -> None:
    """`score` gives a trajectory an empty reward first, which makes another object of it."""
    asked: list[tuple[Trajectory, str]] = []

    def reward(trajectories: Sequence[Trajectory]) -> list[RewardBreakdown]:
        asked.extend((t, threading.current_thread().name) for t in trajectories)
        return [RewardBreakdown({"own": 1.0}) for _ in trajectories]

    ahead = ScoredAhead(reward)
    for trajectory in RESPONSES:
        ahead.begin(trajectory)
    scored = score(RESPONSES, [ahead])
    assert [t.reward and t.reward.total for t in scored] == [1.0] * 3
    assert [t for t, _ in asked] == RESPONSES
    assert all(name.startswith("reward") for _, name in asked)


def test_beginning_does_not_wait_and_asking_does() -> None:
    may_go = threading.Event()

    def slow(trajectories: Sequence[Trajectory]) -> list[RewardBreakdown]:
        assert may_go.wait(60)
        return [RewardBreakdown({"own": 0.5}) for _ in trajectories]

    ahead = ScoredAhead(slow)
    ahead.begin(RESPONSES[0])
    ahead.begin(RESPONSES[1])
    may_go.set()
    assert [part.total for part in ahead(RESPONSES[:2])] == [0.5, 0.5]


def test_an_error_comes_when_the_value_is_asked_for() -> None:
    def broken(trajectories: Sequence[Trajectory]) -> list[RewardBreakdown]:
        raise ValueError("no such term")

    ahead = ScoredAhead(broken)
    ahead.begin(RESPONSES[0])
    with pytest.raises(ValueError, match="no such term"):
        ahead(RESPONSES[:1])
    assert not ahead._begun
