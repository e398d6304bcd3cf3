# SPDX-License-Identifier: Apache-2.0
"""The scripted agents do what they say: slips, honest critiques, and tries that respect them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from satori_fast.data.arithmetic import name_answer, parse_puzzle
from satori_fast.data.formats.coat import EXPLORE, REFLECT
from satori_fast.grading import extract_answer
from satori_fast.synthesis.agents import (
    CheckingCritic,
    Critique,
    RepetitionRewardModel,
    SlippingGenerator,
    Solution,
    Unusable,
)
from satori_fast.types import Problem

NUMBERS = {"p": 7, "q": 1, "r": 9, "s": 4, "t": 8}
PROBLEM = Problem("one", "p 7 q 1 r 9 s 4 t 8 pick 3 sum 24", "p r t")
MIDDLE = Problem("two", "p 7 q 1 r 9 s 4 t 8 pick 3 sum 16", "p q t")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def solve(
    generator: SlippingGenerator, count: int, stream: np.random.Generator
) -> Sequence[Solution]:
    solutions = asyncio.run(generator.solve(PROBLEM, count, stream))
    return [s for s in solutions if not isinstance(s, Unusable)]


def resume(
    generator: SlippingGenerator, problem: Problem, text: str, *, corrected: bool, seed: int = 0
) -> Solution:
    return asyncio.run(generator.resume(problem, text, corrected=corrected, rng=rng(seed)))


def criticise(steps: Solution) -> Critique:
    return asyncio.run(CheckingCritic().criticise(MIDDLE, steps, transcript="", rng=rng()))


def verify(problem: Problem, steps: Solution) -> str:
    return asyncio.run(CheckingCritic().verify(problem, steps, rng=rng()))


def answer_of(solution: Solution) -> str:
    answer = extract_answer(solution[-1])
    assert answer is not None
    return answer


def total_of(answer: str) -> int:
    return sum(NUMBERS[name] for name in answer.split())


def transcript(*tries: str) -> str:
    """Wrong tries, each followed by its critique, as the pipeline writes them."""
    text = ""
    for names in tries:
        critique = criticise(("x", f"\\boxed{{ {names} }}"))
        text += f"\\boxed{{ {names} }}{REFLECT} {critique.mistake}{EXPLORE} {critique.hint}"
    return text


# --- generator -----------------------------------------------------------------------------------


def test_solutions_name_a_part_then_the_whole() -> None:
    solutions = solve(SlippingGenerator(0.3), 40, rng())
    assert len(solutions) == 40
    for part, last in solutions:
        answer = answer_of((part, last))
        assert last == f"\\boxed{{ {answer} }}"
        assert answer.split()[:-1] == part.split()
        assert len(set(answer.split())) == 3


@pytest.mark.parametrize("skill", [0.0, 0.3, 1.0])
def test_skill_is_the_share_of_right_solutions(skill: float) -> None:
    solutions = solve(SlippingGenerator(skill), 400, rng())
    share = np.mean([answer_of(s) == PROBLEM.answer for s in solutions])
    # Four standard errors.
    assert abs(share - skill) <= 4 * np.sqrt(skill * (1 - skill) / 400)


def test_wrong_solutions_cover_every_other_choice() -> None:
    solutions = solve(SlippingGenerator(0.0), 400, rng())
    every = {name_answer(c) for c in combinations(range(5), 3)}
    assert {answer_of(s) for s in solutions} == every - {"p r t"}


def test_same_stream_same_solutions() -> None:
    generator = SlippingGenerator(0.5)
    assert solve(generator, 9, rng(1)) == solve(generator, 9, rng(1))
    assert solve(generator, 9, rng(1)) != solve(generator, 9, rng(2))


def test_corrected_tries_go_on_in_order() -> None:
    generator = SlippingGenerator(0.0)

    def after(*tried: str) -> str:
        return answer_of(resume(generator, MIDDLE, transcript(*tried), corrected=True))

    assert after("p q r") == "p q s"
    # p q t is the answer: order leads to it too.
    assert after("p q r", "p q s") == "p q t"
    # After the last choice the order starts again, and what was tried is passed over.
    assert after("r s t") == "p q r"
    assert after("p q r", "r s t") == "p q s"


def test_corrected_try_is_right_as_often_as_the_skill_says() -> None:
    text, generator = transcript("q r s"), SlippingGenerator(0.3)
    right = [
        answer_of(resume(generator, MIDDLE, text, corrected=True, seed=seed)) == MIDDLE.answer
        for seed in range(400)
    ]
    assert abs(np.mean(right) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)


def test_after_a_confirmed_part_the_rest_follows() -> None:
    seen = set()
    for seed in range(30):
        (rest,) = resume(
            SlippingGenerator(0.3),
            PROBLEM,
            f"p r{REFLECT} 7 + 9 = 16 left 8",
            corrected=False,
            seed=seed,
        )
        seen.add(answer_of((rest,)))
    # r is the third of five names: only two choices go on from it.
    assert seen == {"p r s", "p r t"}


def test_after_a_confirmed_answer_nothing_follows() -> None:
    text = f"p r<|continue|> \\boxed{{ p r t }}{REFLECT} 7 + 9 = 16 + 8 = 24 right"
    assert resume(SlippingGenerator(), PROBLEM, text, corrected=False) == ()


# --- critic and reward model ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "mistake", "hint"),
    [
        ("r s t", "9 + 4 = 13 + 8 = 21 over", "less"),
        ("p q s", "7 + 1 = 8 + 4 = 12 under", "more"),
        ("t s r", "8 + 4 = 12 + 9 = 21 over", "less"),
    ],
)
def test_critique_names_the_last_step_the_sum_and_the_way(
    names: str, mistake: str, hint: str
) -> None:
    critique = criticise(("p q", f"\\boxed{{ {names} }}"))
    assert (critique.wrong_step, critique.mistake, critique.hint) == (1, mistake, hint)


def test_verification_of_a_part_and_of_a_whole() -> None:
    assert verify(PROBLEM, ("p r",)) == "7 + 9 = 16 left 8"
    assert verify(PROBLEM, ("p r", "\\boxed{ p r t }")) == "7 + 9 = 16 + 8 = 24 right"


def test_a_bare_critic_says_the_verdict_alone() -> None:
    critic = CheckingCritic(bare_share=1.0)
    # 9 + 4 + 8 = 21, and 16 is asked for.
    steps = ("r s", "\\boxed{ r s t }")
    critique = asyncio.run(critic.criticise(MIDDLE, steps, transcript="", rng=rng()))
    assert critique == Critique(1, "over", "less")
    assert asyncio.run(critic.verify(PROBLEM, ("p r",), rng=rng())) == "left 8"
    whole = ("p r", "\\boxed{ p r t }")
    assert asyncio.run(critic.verify(PROBLEM, whole, rng=rng())) == "right"


def test_a_critic_may_mix_its_checks() -> None:
    critic, draws = CheckingCritic(bare_share=0.75), rng()
    whole = ("p r", "\\boxed{ p r t }")
    said = [asyncio.run(critic.verify(PROBLEM, whole, rng=draws)) for _ in range(400)]
    # The same verdict either way.
    assert {text.split()[-1] for text in said} == {"right"}
    assert abs(sum(text == "right" for text in said) - 300) < 4 * (400 * 0.75 * 0.25) ** 0.5


def test_agents_refuse_other_problems() -> None:
    other = Problem("sum", "2 + 2", "4")
    with pytest.raises(ValueError, match="not a problem of the built-in domain"):
        asyncio.run(SlippingGenerator().solve(other, 1, rng()))
    with pytest.raises(ValueError, match="not a problem of the built-in domain"):
        verify(other, ("p",))


def test_repeated_attempts_cost_and_length_does_not() -> None:
    def score(text: str) -> float:
        return asyncio.run(RepetitionRewardModel().score(PROBLEM, text))

    once, other = "\\boxed{ p q r }", "\\boxed{ p q s }"
    assert score(once) == score(f"{once} and {other}") == 0
    assert score(f"{once} {other} {once}") == -1


def test_examples_are_what_they_seem() -> None:
    for problem in (PROBLEM, MIDDLE):
        puzzle = parse_puzzle(problem.question)
        assert [name_answer(c) for c in puzzle.solutions] == [problem.answer]
