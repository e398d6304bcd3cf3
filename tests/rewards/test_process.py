# SPDX-License-Identifier: Apache-2.0
"""Process rewards against rewards that a hand gives, and responses that are not in order."""

from __future__ import annotations

import numpy as np
import pytest

from satori_fast.data.formats.trials import TRIALS, WORDS
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer, build_trajectory
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.grading import GradingPool
from satori_fast.rewards.outcome import OutcomeReward
from satori_fast.rewards.process import ProcessReward
from satori_fast.rewards.terms import score
from satori_fast.types import Finish, Problem, RewardBreakdown, Trajectory

VOCABULARY = [*"pqr+=", r"\boxed{", "}", *(str(n) for n in range(20)), "over", *WORDS.words]
RENDERER = PromptRenderer(
    build_word_tokenizer(VOCABULARY, ()), PLAIN_TEMPLATE, 64, format=TRIALS.in_dialect("words")
)


def judged(text: str, *, answer: str | None = "p q", finish: Finish = "stop") -> Trajectory:
    ids = RENDERER.encode(text) + [RENDERER.eos_id] * (finish == "stop")
    problem = Problem("1", "p 7 q 1 r 9", answer)
    made = build_trajectory(problem, np.asarray(ids), renderer=RENDERER, group_id=0, finish=finish)
    with GradingPool(0) as pool:
        outcome = OutcomeReward(pool, float(answer is not None), 0.0, right=1.0)
        (result,) = score([made], [outcome, ProcessReward(pool)])
    return result


def scored(text: str, *, answer: str | None = "p q", finish: Finish = "stop") -> RewardBreakdown:
    reward = judged(text, answer=answer, finish=finish).reward
    assert reward is not None
    return reward


@pytest.mark.parametrize(
    ("text", "rewards", "total"),
    [
        (
            r"\boxed{ p r } wait 7 + 9 = 16 over again \boxed{ p q } wait 7 + 1 = 8 right",
            [-1, 1, 1, 1],
            1,
        ),
        (r"\boxed{ p q } wait 7 + 1 = 8 right", [1, 1], 1),
        (r"\boxed{ q r } wait 1 + 9 = 10 right", [-1, -1], -1),
        (
            r"\boxed{ p r } wait 7 + 9 = 16 over again \boxed{ q r } wait 1 + 9 = 10 right",
            [-1, 1, -1, -1],
            -1,
        ),
        # A box of the verification is not the answer, nor is one that a later solution takes back.
        (r"\boxed{ p r } wait \boxed{ p q } right", [-1, -1], -1),
        (r"\boxed{ p q } wait wrong again p r", [1, -1, -1], -1),
    ],
)
def test_rewards_by_hand(text: str, rewards: list[int], total: int) -> None:
    reward = scored(text)
    assert reward.segments is not None and reward.segments.tolist() == rewards
    assert reward.actions == tuple(value > 0 for value in rewards)
    assert reward.total == total and reward.correct is (total > 0)


@pytest.mark.parametrize(
    ("text", "finish", "actions"),
    [
        (r"\boxed{ p q }", "stop", (True,)),
        (r"\boxed{ p q } wait 7 + 1 = 8", "stop", (True, False)),  # undecided
        (r"\boxed{ p q } wait right wait right", "stop", (True, True, False)),
        (r"\boxed{ p } again \boxed{ p q } wait right", "stop", (False, True, True)),
        ("wait right", "stop", (False,)),
        ("wait wrong again", "stop", (False, False)),
        (r"\boxed{ p q } wait right", "length", (True, False)),
        (r"\boxed{ p q }", "length", (False,)),
    ],
)
def test_disorder_is_never_right_by_accident(
    text: str, finish: Finish, actions: tuple[bool, ...]
) -> None:
    assert scored(text, finish=finish).actions == actions


@pytest.mark.parametrize("text", [r"\boxed{ } wait right", "wait right", "again wait right"])
def test_two_empty_answers_are_not_equal(text: str) -> None:
    reward = scored(text, answer="")
    assert reward.correct is False and not any(reward.actions or (True,))


def test_a_problem_without_an_answer_judges_nothing() -> None:
    assert scored(r"\boxed{ p }", answer=None) == RewardBreakdown({})
