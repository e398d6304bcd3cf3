# SPDX-License-Identifier: Apache-2.0
"""Satori's rule reward and reflection bonus against their table (METHODS 1.6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from satori_fast.grading import GradingPool, answer_finder
from satori_fast.rewards.outcome import OutcomeReward, reflection_bonus
from satori_fast.rewards.terms import score
from satori_fast.types import Prefix, Problem, Segment, SegmentKind, Trajectory

BETA = 0.5


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
) -> Trajectory:
    start = None if prefix is None else Prefix(prefix, "restart", correct=source_correct)
    return Trajectory(
        problem=Problem("one", "sum 4", answer, start),
        group_id=0,
        tokens=np.arange(3, dtype=np.int32),
        prompt_len=2,
        logprobs=np.zeros(1, np.float32),
        policy_version=0,
        finish="stop",
        segments=(Segment(SegmentKind.WHOLE, 0, 1, response),),
    )


def problem(prefix: Prefix | None) -> Problem:
    return Problem("one", "2 + 2", "4", prefix)


@pytest.mark.parametrize(
    ("source_correct", "correct", "bonus"),
    [
        (False, True, BETA),  # D-, mended
        (True, False, -BETA),  # D+, spoilt
        (False, False, 0.0),  # D-, still wrong
        (True, True, 0.0),  # D+, still right
    ],
)
def test_four_cases_of_a_restart(source_correct: bool, correct: bool, bonus: float) -> None:
    restart = problem(Prefix("5<|reflect|>", "restart", correct=source_correct))
    assert reflection_bonus(restart, correct, scale=BETA) == bonus
    assert reflection_bonus(restart, correct, scale=0.0) == 0.0


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize(
    "prefix",
    [
        None,
        Prefix("5<|reflect|>", "restart", correct=None),
        Prefix("first\n", "step", target="second"),
        Prefix("first\n", "step", correct=False),
        Prefix("first\n", "step", correct=True),
    ],
    ids=["whole", "unknown source", "step", "step of a wrong one", "step of a right one"],
)
def test_nothing_else_earns_a_bonus(prefix: Prefix | None, correct: bool) -> None:
    assert reflection_bonus(problem(prefix), correct, scale=BETA) == 0.0


def test_range_of_the_sum() -> None:
    totals = {
        (source, correct): float(correct)
        - 1.0
        + reflection_bonus(
            problem(Prefix("5<|reflect|>", "restart", correct=source)), correct, scale=BETA
        )
        for source in (True, False)
        for correct in (True, False)
    }
    assert totals == {
        (True, True): 0.0,
        (True, False): -1.5,
        (False, True): 0.5,
        (False, False): -1.0,
    }


@pytest.mark.parametrize(
    ("trajectory", "rule", "reflection"),
    [
        (sampled("\\boxed{ 4 }"), 0.0, 0.0),
        (sampled("\\boxed{ 5 }"), -1.0, 0.0),
        (sampled("4"), -1.0, 0.0),
        (sampled("\\boxed{ 5 } <|reflect|> over <|explore|> less \\boxed{ 4 }"), 0.0, 0.0),
        (sampled("\\boxed{ 4 } <|reflect|> under <|explore|> more \\boxed{ 5 }"), -1.0, 0.0),
        (
            sampled("over \\boxed{ 4 }", prefix="\\boxed{ 5 }<|reflect|>", source_correct=False),
            0.0,
            BETA,
        ),
        (
            sampled("over \\boxed{ 6 }", prefix="\\boxed{ 5 }<|reflect|>", source_correct=False),
            -1.0,
            0.0,
        ),
        (
            sampled("over \\boxed{ 3 }", prefix="\\boxed{ 4 }<|reflect|>", source_correct=True),
            -1.0,
            -BETA,
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
    (reward,) = OutcomeReward(pool, 1.0, BETA)([trajectory])
    assert list(reward.terms.items()) == [("rule", rule), ("reflection", reflection)]
    assert reward.total == rule + reflection
    assert reward.correct is (rule == 0)
    assert reward.segments is None


def test_a_weight_of_zero_leaves_the_term_out(pool: GradingPool) -> None:
    spoilt = sampled("\\boxed{ 5 }", prefix="\\boxed{ 4 }<|reflect|>", source_correct=True)
    expected = {
        (1.0, 0.5): {"rule": -1.0, "reflection": -0.5},
        (2.0, 0.25): {"rule": -2.0, "reflection": -0.25},
        (0.0, 0.5): {"reflection": -0.5},
        (0.5, 0.0): {"rule": -0.5},
        (0.0, 0.0): {},
    }
    for (rule, bonus), terms in expected.items():
        (reward,) = OutcomeReward(pool, rule, bonus)([spoilt])
        # The verdict is there all the same: accuracy is of interest without its reward.
        assert (reward.terms, reward.correct) == (terms, False)


def test_order_is_kept(pool: GradingPool) -> None:
    trajectories = [sampled(f"\\boxed{{ {n} }}") for n in (4, 5, 4, 4, 6)]
    scored = score(trajectories, [OutcomeReward(pool)])
    assert [t.reward.correct for t in scored if t.reward] == [True, False, True, True, False]
    assert pool.graded == 5


def test_only_a_term_that_is_on_needs_an_answer(pool: GradingPool) -> None:
    trajectories = [sampled("4", answer=None), sampled("\\boxed{ 4 }")]
    for weights in ((1.0, 0.0), (0.0, 0.5)):
        with pytest.raises(ValueError, match=r"problem 'one' has no answer to grade against: give"):
            OutcomeReward(pool, *weights)(trajectories)
    unknown, right = OutcomeReward(pool, 0.0, 0.0)(trajectories)
    assert (unknown.terms, unknown.correct, right.correct) == ({}, None, True)
    assert unknown == replace(right, correct=None, answered=None)


def test_what_has_an_answer_is_told_apart_from_what_is_wrong(pool: GradingPool) -> None:
    given = [sampled(r"\boxed{5}"), sampled("4"), sampled("4", answer=None)]
    rewards = OutcomeReward(pool, 0.0, 0.0)(given)
    assert [(r.correct, r.answered) for r in rewards] == [
        (False, True),
        (False, False),
        (None, None),
    ]
    assert [t.reward.answered for t in score(given[:2], [OutcomeReward(pool)]) if t.reward] == [
        True,
        False,
    ]


def test_a_number_at_a_cut_is_no_answer() -> None:
    given = [sampled("so 4"), replace(sampled("so 4"), finish="length")]
    with GradingPool(0, finder=answer_finder("last_number")) as numbers:
        rewards = OutcomeReward(numbers)(given)
    assert [(r.correct, r.answered) for r in rewards] == [(True, True), (False, False)]
