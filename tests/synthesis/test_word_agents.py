# SPDX-License-Identifier: Apache-2.0
"""Agents for word problems: slips with the stated share, checks by hand, and whole demonstrations
read step by step."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from satori_fast.data.formats.coat import CONTINUE, EXPLORE, REFLECT, split_actions
from satori_fast.data.stories import parse_story
from satori_fast.data.word_actions import first_slip, is_answer, read_step, standing_steps
from satori_fast.data.word_problems import WordProblems, hasty_slip, right_equations
from satori_fast.grading import extract_answers, grade
from satori_fast.synthesis.agents import (
    Critique,
    RepetitionRewardModel,
    Solution,
    Unusable,
)
from satori_fast.synthesis.filters import leaks
from satori_fast.synthesis.pipeline import (
    TRAJECTORY_TYPES,
    SynthesisAgents,
    SynthesisOptions,
    synthesize,
)
from satori_fast.synthesis.word_agents import RereadingCritic, SlippingPupil
from satori_fast.types import Demonstration, Problem

PROBLEM = Problem(
    "one",
    "Leo has 14 dollars. He earns 9 dollars for washing cars. Next, he spends 5 dollars on a book. "
    "How many dollars does Leo have now?",
    "18",
)
RIGHT: Solution = (
    "He earns 9 dollars, so he has 14 + 9 = 23 dollars.",
    "He spends 5 dollars on a book, so he has 23 - 5 = 18 dollars.",
    "The answer is \\boxed{18}.",
)
WRONG: Solution = (
    RIGHT[0],
    "He spends 5 dollars on a book, so he has 23 + 5 = 28 dollars.",
    "The answer is \\boxed{28}.",
)
AGAIN = "I do this step again: he spends 5 dollars on a book, so he has 23 - 5 = 18 dollars."
REASON = "That is wrong, I have to subtract and not to add."
LOCAL = f"Let me check this step: he spends 5 dollars on a book, so it is 23 - 5 = 18. {REASON}"
WHOLE = f"Let me check all steps: 14 + 9 = 23, 23 - 5 = 18. {REASON}"
SURE = SlippingPupil(1 - 1e-12)
PROBLEMS = list(WordProblems(120, levels=[1, 2, 3, 5], split="train", seed=0))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def solve(skill: float, count: int, *, problem: Problem = PROBLEM) -> list[Solution]:
    return asyncio.run(SlippingPupil(skill).solve(problem, count, rng()))


def resume(transcript: str, generator: SlippingPupil = SURE) -> Solution:
    corrected = split_actions(transcript)[-1].startswith(EXPLORE)
    return asyncio.run(generator.resume(PROBLEM, transcript, corrected=corrected, rng=rng()))


def criticise(steps: Solution, transcript: str = "", *, seed: int = 0) -> Critique:
    critic = RereadingCritic()
    return asyncio.run(critic.criticise(PROBLEM, steps, transcript=transcript, rng=rng(seed)))


def verify(steps: Solution) -> str:
    return asyncio.run(RereadingCritic().verify(PROBLEM, steps, rng=rng()))


@pytest.fixture(scope="module")
def made() -> list[Demonstration]:
    agents = SynthesisAgents(SlippingPupil(0.4), RereadingCritic(), RepetitionRewardModel())
    options = SynthesisOptions(num_solutions=8, confirm_share=0.5, seed=0)

    async def all_of_them() -> list[Demonstration]:
        stream = synthesize(PROBLEMS, agents, options)
        return [made async for outcome in stream for made in outcome.demonstrations]

    return asyncio.run(all_of_them())


# --- generator -----------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", [0.1, 0.4, 0.8])
def test_skill_is_the_share_of_right_solutions(skill: float) -> None:
    for problem in PROBLEMS[:4]:
        solutions = solve(skill, 1000, problem=problem)
        right = right_equations(parse_story(problem.question))
        shares = [[read_step(step) for step in solution[:-1]] == right for solution in solutions]
        assert abs(np.mean(shares) - skill) < 4 * np.sqrt(skill * (1 - skill) / 1000)


def test_an_answer_is_right_only_where_every_step_is() -> None:
    for problem in PROBLEMS[:40]:
        right = right_equations(parse_story(problem.question))
        for solution in solve(0.1, 20, problem=problem):
            written = [read_step(step) for step in solution[:-1]]
            assert (extract_answers(solution[-1]) == [problem.answer]) == (written == right)
            # It goes on from what is written.
            assert [w.value for w in written[1:]] == [w.result for w in written[:-1]]


@pytest.mark.parametrize(
    ("transcript", "rest"),
    [
        (f"{CONTINUE.join(WRONG[:2])}{REFLECT} {LOCAL}{EXPLORE} {AGAIN}", RIGHT[2:]),
        (f"{CONTINUE.join(WRONG)}{REFLECT} {WHOLE}{EXPLORE} {AGAIN}", RIGHT[2:]),
        (f"{RIGHT[0]}{REFLECT} That is right.", RIGHT[1:]),
        (f"{CONTINUE.join(RIGHT)}{REFLECT} That is right.", ()),
    ],
)
def test_the_rest_follows_from_what_stands(transcript: str, rest: Solution) -> None:
    assert resume(transcript) == rest


# --- critic --------------------------------------------------------------------------------------


def test_the_slip_is_found_where_it_is_or_after_the_answer() -> None:
    critiques = [criticise(WRONG, seed=seed) for seed in range(200)]
    whole = Critique(2, WHOLE, AGAIN)
    assert set(critiques) == {Critique(1, LOCAL, AGAIN), whole}
    assert 70 < critiques.count(whole) < 130  # a half: 100, four standard errors 28


def test_a_second_round_judges_what_followed_the_correction() -> None:
    again = "I do this step again: he earns 9 dollars, so he has 14 + 9 = 23 dollars."
    transcript = f"14 + 9 = 22{REFLECT} That is wrong, it is not 22.{EXPLORE} {again}"
    critiques = {criticise(WRONG[1:], transcript, seed=seed) for seed in range(40)}
    assert critiques == {Critique(0, LOCAL, AGAIN), Critique(1, WHOLE, AGAIN)}


def test_verification_of_a_step_and_of_an_answer() -> None:
    step = "Let me check this step: he earns 9 dollars, so it is 14 + 9 = 23. That is right."
    whole = "Let me check all steps: 14 + 9 = 23, 23 - 5 = 18. That is right."
    assert verify(RIGHT[:1]) == step
    # After a correction only the rest of the solution is at hand; the whole is judged all the same.
    assert verify(RIGHT) == verify(RIGHT[1:]) == whole


def test_what_others_write_is_dropped_with_its_reason() -> None:
    def reason_of(work: Callable[[], object]) -> str:
        with pytest.raises(Unusable) as caught:
            work()
        return caught.value.reason

    assert reason_of(lambda: criticise(("Add.", WRONG[2]))) == "critic_no_equation"
    assert reason_of(lambda: criticise(RIGHT)) == "critic_no_slip"
    assert reason_of(lambda: verify(("Add.",))) == "critic_no_equation"
    assert reason_of(lambda: verify(WRONG[:2])) == "critic_slip_in_right_solution"
    assert reason_of(lambda: resume(f"Add.{REFLECT} Good.")) == "generator_no_equation"
    negative = f"14 - 12 = 2{REFLECT} That is right."
    assert reason_of(lambda: resume(negative)) == "generator_no_whole_number"


# --- demonstrations ------------------------------------------------------------------------------


def test_every_type_is_made_often(made: list[Demonstration]) -> None:
    counts = Counter(d.trajectory_type for d in made)
    assert set(counts) == set(TRAJECTORY_TYPES) and min(counts.values()) >= 10


def test_every_demonstration_ends_right_with_every_step_that_stands(
    made: list[Demonstration],
) -> None:
    for demonstration in made:
        problem = demonstration.problem
        assert problem.answer is not None
        assert grade(demonstration.response, problem.answer).correct
        *steps, answer = standing_steps(demonstration.response)
        assert list(map(read_step, steps)) == right_equations(parse_story(problem.question))
        assert extract_answers(answer) == [problem.answer]


def test_every_reflection_is_true_and_says_what_is_wrong(made: list[Demonstration]) -> None:
    said = Counter[str]()
    for demonstration in made:
        story = parse_story(demonstration.problem.question)
        actions = split_actions(demonstration.response)
        for place, action in enumerate(actions):
            if not action.startswith(REFLECT):
                continue
            steps = standing_steps("".join(actions[:place]))
            slip = first_slip(story, [step for step in steps if not is_answer(step)])
            found = re.findall(r"(\d+ [-+*/] \d+) = (\d+)", action)
            assert all(eval(left) == int(right) for left, right in found)
            assert action.endswith("That is right.") == (slip is None)
            if slip is not None:
                said[re.sub(r"\d+", "N", action.rpartition("That is wrong, ")[2])] += 1
                assert actions[place + 1].startswith(f"{EXPLORE} I do this step again: ")
    kinds = {"operation": "I have to", "number": "the number is N", "result": "it is not N."}
    for start in kinds.values():
        assert sum(count for text, count in said.items() if text.startswith(start)) > 30


def test_demonstrations_give_nothing_away(made: list[Demonstration]) -> None:
    """None says that it was shown the right answer."""
    assert not any(leaks(demonstration.response) for demonstration in made)


def test_haste_takes_the_wrong_operation_or_else_miscalculates_now_and_then() -> None:
    hasty = SlippingPupil(0.2, in_haste=True)
    wrongly = {"divide": "subtract", "multiply": "add"}
    firsts: list[bool] = []
    miscalculated: list[bool] = []
    for number, problem in enumerate(PROBLEMS):
        story = parse_story(problem.question)
        for solution in asyncio.run(hasty.solve(problem, 8, rng(number))):
            value = story.start
            for place, (event, step) in enumerate(zip(story.events, solution, strict=False)):
                written, could_slip = read_step(step), hasty_slip(story, place, value) is not None
                if written.kind == event.kind:
                    assert written.number == event.number and written.value == value
                    assert written.is_true or not could_slip
                else:
                    assert could_slip and written.kind == wrongly[event.kind]
                    assert written.is_true
                miscalculated += [] if could_slip else [not written.is_true]
                firsts += [written.kind != event.kind] if could_slip and place == 0 else []
                value = written.result
    assert len(firsts) > 200 and len(miscalculated) > 200
    assert abs(np.mean(firsts) - 0.8) < 4 * np.sqrt(0.16 / len(firsts))
    assert abs(np.mean(miscalculated) - 0.8 * 0.3) < 4 * np.sqrt(0.18 / len(miscalculated))


def test_haste_is_over_with_the_first_correction() -> None:
    problem = Problem(
        "two",
        "Leo has 12 dollars. He shares the money equally among 2 people, himself included. After "
        "that, he sells drawings until he has 3 times as much. How many dollars does Leo have now?",
        "18",
    )
    story, hasty = parse_story(problem.question), SlippingPupil(1e-9, in_haste=True)
    (wrong,) = asyncio.run(hasty.solve(problem, 1, rng()))
    assert [read_step(step).kind for step in wrong[:-1]] == ["subtract", "add"]
    critique = asyncio.run(RereadingCritic().criticise(problem, wrong, transcript="", rng=rng()))
    told = f"{wrong[0]}{REFLECT} {critique.mistake}{EXPLORE} {critique.hint}"
    for corrected, kinds in ((True, ["multiply"]), (False, ["add"])):
        rest = asyncio.run(hasty.resume(problem, told, corrected=corrected, rng=rng()))
        assert [read_step(step).kind for step in rest[:-1]] == kinds
    assert story.answer == "18"
