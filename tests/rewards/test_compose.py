# SPDX-License-Identifier: Apache-2.0
"""The whole solution is graded, the terms add up, and groups that teach nothing are dropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from satori_fast.data.arithmetic import domain_words
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer, build_trajectory
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.grading import GradingPool
from satori_fast.rewards.compose import (
    RewardTerms,
    breakdown,
    drop_uninformative_groups,
    grade_trajectories,
    score,
)
from satori_fast.types import Prefix, Problem, Trajectory

RENDERER = PromptRenderer(build_word_tokenizer(domain_words()), PLAIN_TEMPLATE, 64)
TERMS = RewardTerms(reflection_bonus=0.5)


@pytest.fixture
def pool() -> Iterator[GradingPool]:
    with GradingPool(num_workers=0) as opened:
        yield opened


def sampled(
    response: str,
    *,
    prefix: str | None = None,
    source_correct: bool | None = None,
    answer: str | None = "4",
    group_id: int = 0,
) -> Trajectory:
    start = None if prefix is None else Prefix(prefix, "restart", correct=source_correct)
    ids = np.asarray([*RENDERER.encode(response), RENDERER.eos_id])
    problem = Problem("one", "sum 4", answer, start)
    return build_trajectory(problem, ids, renderer=RENDERER, group_id=group_id, finish="stop")


@pytest.mark.parametrize(
    ("trajectory", "rule", "reflection"),
    [
        (sampled("\\boxed{ 4 }"), 0.0, 0.0),
        (sampled("\\boxed{ 5 }"), -1.0, 0.0),
        (sampled("4"), -1.0, 0.0),
        (sampled("\\boxed{ 5 } <|reflect|> over <|explore|> less <|continue|> \\boxed{ 4 }"), 0, 0),
        (
            sampled("\\boxed{ 4 } <|reflect|> under <|explore|> more <|continue|> \\boxed{ 5 }"),
            -1,
            0,
        ),
        (
            sampled("over \\boxed{ 4 }", prefix="\\boxed{ 5 }<|reflect|>", source_correct=False),
            0.0,
            0.5,
        ),
        (
            sampled("over \\boxed{ 6 }", prefix="\\boxed{ 5 }<|reflect|>", source_correct=False),
            -1.0,
            0.0,
        ),
        (
            sampled("over \\boxed{ 3 }", prefix="\\boxed{ 4 }<|reflect|>", source_correct=True),
            -1.0,
            -0.5,
        ),
        # The answer that counts stands in the prefix: the reflection only confirmed it.
        (sampled("right", prefix="\\boxed{ 4 }<|reflect|>", source_correct=True), 0.0, 0.0),
    ],
    ids=[
        "right",
        "wrong",
        "no box",
        "last box right",
        "last box wrong",
        "D- mended",
        "D- still wrong",
        "D+ spoilt",
        "D+ confirmed",
    ],
)
def test_worked_rewards(
    trajectory: Trajectory, rule: float, reflection: float, pool: GradingPool
) -> None:
    (scored,) = score([trajectory], TERMS, pool)
    reward = scored.reward
    assert reward is not None
    assert (reward.rule, reward.reflection) == (rule, reflection)
    assert reward.total == rule + reflection
    assert reward.correct is (rule == 0)
    assert (reward.preference, reward.similarity) == (0.0, 0.0)
    assert reward.segments.dtype == np.float32
    assert reward.segments.tolist() == [0.0] * len(trajectory.segments)
    assert trajectory.reward is None


def test_total_is_the_sum_of_the_terms() -> None:
    spoilt = sampled("\\boxed{ 5 }", prefix="4<|reflect|>", source_correct=True)
    for scale in (0.0, 0.25, 1.0):
        reward = breakdown(spoilt, False, RewardTerms(reflection_bonus=scale))
        parts = reward.rule + reward.reflection + reward.preference + reward.similarity
        assert reward.total == parts == -1 - scale


@pytest.mark.parametrize(
    ("source_correct", "correct", "without", "ranges"),
    [
        (None, True, 0.0, (0.0, 1.0)),
        (None, False, -1.0, (-1.0, 0.0)),
        (False, True, 0.5, (0.5, 1.5)),
        (False, False, -1.0, (-1.0, 0.0)),
        (True, True, 0.0, (0.0, 1.0)),
        (True, False, -1.5, (-1.5, -0.5)),
    ],
    ids=["right", "wrong", "D- mended", "D- still wrong", "D+ kept", "D+ spoilt"],
)
def test_reward_with_and_without_the_preference_term(
    source_correct: bool | None, correct: bool, without: float, ranges: tuple[float, float]
) -> None:
    prefix = None if source_correct is None else "\\boxed{ 5 }<|reflect|>"
    trajectory = sampled("\\boxed{ 4 }", prefix=prefix, source_correct=source_correct)
    assert breakdown(trajectory, correct, TERMS).total == without
    # The paper's weight is 1: sigmoid(score) spans the range of each case.
    paper = RewardTerms(preference=1.0)
    totals = [breakdown(trajectory, correct, paper, preference=p).total for p in (0.0, 0.25, 1.0)]
    assert totals == [ranges[0], without + 0.25, ranges[1]]


def test_each_term_has_a_weight_and_can_be_switched_off() -> None:
    mended = sampled("\\boxed{ 4 }", prefix="\\boxed{ 5 }<|reflect|>", source_correct=False)
    spoilt = sampled("\\boxed{ 5 }", prefix="\\boxed{ 4 }<|reflect|>", source_correct=True)
    terms = RewardTerms(rule=2.0, reflection_bonus=0.25, preference=0.5)
    reward = breakdown(mended, True, terms, preference=0.75)
    assert (reward.rule, reward.reflection, reward.preference) == (0.0, 0.25, 0.375)
    assert reward.total == 0.625
    reward = breakdown(spoilt, False, terms, preference=0.5)
    assert (reward.rule, reward.reflection, reward.preference) == (-2.0, -0.25, 0.25)
    assert reward.total == -2.0
    for name, total in (("rule", 0.25 - 0.25), ("reflection_bonus", -1.75), ("preference", -2.25)):
        without = replace(terms, **{name: 0.0})
        assert breakdown(spoilt, False, without, preference=0.5).total == total


def test_preferences_go_to_their_trajectories(pool: GradingPool) -> None:
    terms = RewardTerms(preference=1.0)
    answers = [sampled("\\boxed{ 4 }"), sampled("\\boxed{ 5 }"), sampled("\\boxed{ 4 }")]
    scored = score(answers, terms, pool, preferences=[0.25, 0.5, 0.75])
    assert [t.reward.total for t in scored if t.reward] == [0.25, -0.5, 0.75]
    with pytest.raises(ValueError, match="preference reward is on"):
        score(answers, terms, pool)


def test_order_is_kept(pool: GradingPool) -> None:
    responses = [f"\\boxed{{ {n} }}" for n in (4, 5, 4, 4, 6)]
    scored = score([sampled(r) for r in responses], TERMS, pool)
    assert [t.reward.correct for t in scored if t.reward] == [True, False, True, True, False]
    assert pool.graded == 5
    assert score([], TERMS, pool) == []


def test_problem_without_an_answer_cannot_be_rewarded(pool: GradingPool) -> None:
    with pytest.raises(ValueError, match="problem 'one' has no answer: it cannot be rewarded"):
        grade_trajectories([sampled("\\boxed{ 4 }"), sampled("4", answer=None)], pool)


def graded_group(group_id: int, *correct: bool) -> list[Trajectory]:
    members = [sampled("4", group_id=group_id) for _ in correct]
    return [
        t.with_reward(breakdown(t, right, TERMS)) for t, right in zip(members, correct, strict=True)
    ]


def test_groups_without_a_difference_are_dropped() -> None:
    mixed = graded_group(1, True, False, False)
    everything = [*graded_group(0, True, True), *mixed, *graded_group(2, False, False, False)]
    assert drop_uninformative_groups(everything, 0.0) == mixed
    # Siblings need not be neighbours, and the order stays.
    shuffled = [everything[i] for i in (2, 0, 5, 3, 1, 6, 4, 7)]
    assert drop_uninformative_groups(shuffled, 0.0) == [everything[i] for i in (2, 3, 4)]


def test_threshold_is_exclusive_and_below_zero_keeps_all() -> None:
    half = graded_group(0, True, False)  # standard deviation 0.5
    assert drop_uninformative_groups(half, 0.49) == half
    assert drop_uninformative_groups(half, 0.5) == []
    alone = graded_group(1, True)
    assert drop_uninformative_groups([*half, *alone], -1.0) == [*half, *alone]
    assert drop_uninformative_groups(alone, 0.0) == []
    assert drop_uninformative_groups([], 0.0) == []
