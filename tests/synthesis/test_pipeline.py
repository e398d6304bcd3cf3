# SPDX-License-Identifier: Apache-2.0
"""The five trajectory types: all there, all right, labelled by what their text does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from satori_fast.data.arithmetic import (
    ArithmeticProblems,
    check_text,
    domain_words,
    parse_answer,
    parse_puzzle,
)
from satori_fast.data.formats.coat import CONTINUE, EXPLORE, REFLECT, split_actions
from satori_fast.data.tokenizer import build_word_tokenizer, check_known
from satori_fast.grading import extract_answers, grade
from satori_fast.synthesis.agents import (
    CheckingCritic,
    Critique,
    RepetitionRewardModel,
    SlippingGenerator,
    Solution,
    Unusable,
)
from satori_fast.synthesis.outcomes import Outcome
from satori_fast.synthesis.pipeline import (
    TRAJECTORY_TYPES,
    UNCHECKED,
    SynthesisAgents,
    SynthesisOptions,
    distinct_problems,
    synthesize,
)
from satori_fast.types import Demonstration, Problem

SCRIPTED = SynthesisAgents(SlippingGenerator(0.3), CheckingCritic(), RepetitionRewardModel())
PROBLEMS = list(ArithmeticProblems(30, levels=[2], split="train", seed=0))


def outcomes(
    problems: Iterable[Problem],
    agents: SynthesisAgents = SCRIPTED,
    *,
    num_concurrent: int = 1,
    **options: float,
) -> list[Outcome]:
    settings: dict[str, Any] = {"num_solutions": 12, **options}

    async def all_of_them() -> list[Outcome]:
        stream = synthesize(
            problems, agents, SynthesisOptions(**settings), num_concurrent=num_concurrent
        )
        return [outcome async for outcome in stream]

    return asyncio.run(all_of_them())


def demonstrations(problems: Sequence[Problem] = PROBLEMS, **options: float) -> list[Demonstration]:
    return [d for outcome in outcomes(problems, **options) for d in outcome.demonstrations]


@pytest.fixture(scope="module")
def made() -> list[Demonstration]:
    return demonstrations()


class Brevity:
    """A reward model to whom the shortest response is best."""

    async def score(self, problem: Problem, response: str) -> float:
        return -float(len(response))


def starts(demonstration: Demonstration, token: str) -> int:
    return sum(action.startswith(token) for action in split_actions(demonstration.response))


# --- with the scripted agents --------------------------------------------------------------------


def test_every_type_is_made(made: list[Demonstration]) -> None:
    assert set(Counter(d.trajectory_type for d in made)) == set(TRAJECTORY_TYPES)


def test_at_most_one_of_each_type_per_problem_in_order(made: list[Demonstration]) -> None:
    keys = [(PROBLEMS.index(d.problem), TRAJECTORY_TYPES.index(d.trajectory_type)) for d in made]
    assert keys == sorted(set(keys))


def test_every_trajectory_ends_right(made: list[Demonstration]) -> None:
    for demonstration in made:
        assert demonstration.problem.answer is not None
        puzzle = parse_puzzle(demonstration.problem.question)
        last = extract_answers(demonstration.response)[-1]
        choice = parse_answer(last, puzzle)
        assert choice is not None
        # By the numbers, not by the grader alone.
        assert puzzle.add(choice) == puzzle.total
        assert grade(demonstration.response, demonstration.problem.answer).correct


@pytest.mark.parametrize(
    ("kind", "reflections", "explorations"),
    [("I", 0, 0), ("II-I", 1, 0), ("II-II", 2, 1), ("III-I", 1, 1), ("III-II", 2, 2)],
)
def test_label_agrees_with_the_text(
    made: list[Demonstration], kind: str, reflections: int, explorations: int
) -> None:
    for demonstration in (d for d in made if d.trajectory_type == kind):
        assert starts(demonstration, REFLECT) == reflections
        assert starts(demonstration, EXPLORE) == explorations


def test_order_of_actions(made: list[Demonstration]) -> None:
    for demonstration in made:
        actions = split_actions(demonstration.response)
        assert not actions[0].startswith((CONTINUE, REFLECT, EXPLORE))
        for before, action in pairwise(actions):
            # An exploration answers a reflection; what follows it is a new attempt.
            assert action.startswith(EXPLORE) <= before.startswith(REFLECT)
            assert before.startswith(EXPLORE) <= action.startswith(CONTINUE)
            assert action.startswith(REFLECT) <= (not before.startswith((REFLECT, EXPLORE)))


def test_every_reflection_is_true(made: list[Demonstration]) -> None:
    for demonstration in made:
        puzzle = parse_puzzle(demonstration.problem.question)
        actions = split_actions(demonstration.response)
        for before, action in pairwise(actions):
            if not action.startswith(REFLECT):
                continue
            step = before.removeprefix(CONTINUE).strip().removeprefix("\\boxed{").rstrip(" }")
            choice = tuple("pqrst".index(name) for name in step.split())
            assert action == f"{REFLECT} {check_text(choice, puzzle)}"


def test_tries_differ_and_each_hint_is_true(made: list[Demonstration]) -> None:
    for demonstration in made:
        puzzle = parse_puzzle(demonstration.problem.question)
        tries = [parse_answer(a, puzzle) for a in extract_answers(demonstration.response)]
        sums = [puzzle.add(choice) for choice in tries if choice is not None]
        assert len(sums) == len(tries) == len(set(tries))
        hints = [
            action.removeprefix(EXPLORE).strip()
            for action in split_actions(demonstration.response)
            if action.startswith(EXPLORE)
        ]
        # One hint between two tries, none before the first.
        for (before, _), hint in zip(pairwise(sums), hints, strict=True):
            assert hint == ("less" if before > puzzle.total else "more")


def test_tokenizer_knows_every_word(made: list[Demonstration]) -> None:
    tokenizer = build_word_tokenizer(domain_words())
    for demonstration in made:
        check_known(tokenizer, demonstration.response)


def test_same_whatever_the_order_or_subset_of_problems(made: list[Demonstration]) -> None:
    by_problem = {d.problem.problem_id: [] for d in made}
    for demonstration in made:
        by_problem[demonstration.problem.problem_id].append(demonstration)
    subset = PROBLEMS[25:4:-3]
    expected = [d for p in subset for d in by_problem.get(p.problem_id, [])]
    assert demonstrations(subset) == expected
    assert demonstrations(subset, seed=1) != expected


def test_outcomes_come_one_problem_at_a_time() -> None:
    taken: list[str] = []

    def problems() -> Iterable[Problem]:
        for problem in PROBLEMS:
            taken.append(problem.problem_id)
            yield problem

    async def first() -> Outcome:
        return await anext(synthesize(problems(), SCRIPTED, SynthesisOptions(12)))

    assert asyncio.run(first()).problem == PROBLEMS[0]
    assert taken == [PROBLEMS[0].problem_id]


def test_confirm_share(made: list[Demonstration]) -> None:
    confirmed = demonstrations(confirm_share=1.0)
    assert len(confirmed) == len(made)
    for plain, with_check in zip(made, confirmed, strict=True):
        assert with_check.problem == plain.problem
        assert with_check.trajectory_type == plain.trajectory_type
        assert not split_actions(plain.response)[-1].endswith("right") or (
            plain.trajectory_type == "II-I"
        )
        if EXPLORE not in plain.response:
            assert with_check == plain
            continue
        puzzle = parse_puzzle(plain.problem.question)
        (right,) = puzzle.solutions
        added = f"{REFLECT} {check_text(right, puzzle)}"
        assert added.endswith(" right")
        assert with_check.response == plain.response + added


def test_confirm_share_between(made: list[Demonstration]) -> None:
    some = demonstrations(confirm_share=0.5)
    corrected = [d for d in some if EXPLORE in d.response]
    share = np.mean([d.response.endswith("right") for d in corrected])
    assert 0.2 < share < 0.8


def test_unchecked_share_keeps_wrong_solutions_beside_the_others(
    made: list[Demonstration],
) -> None:
    with_wrong = demonstrations(unchecked_share=1.0)
    assert [d for d in with_wrong if d.trajectory_type != UNCHECKED] == made
    wrong = [d for d in with_wrong if d.trajectory_type == UNCHECKED]
    failed = [
        outcome.problem for outcome in outcomes(PROBLEMS) if outcome.counts["solutions/wrong"]
    ]
    assert [d.problem for d in wrong] == failed
    for demonstration in wrong:
        assert demonstration.problem.answer is not None
        assert not grade(demonstration.response, demonstration.problem.answer).correct
        assert REFLECT not in demonstration.response
    some = demonstrations(unchecked_share=0.5)
    share = sum(d.trajectory_type == UNCHECKED for d in some) / len(wrong)
    assert 0.2 < share < 0.8


def test_problem_without_an_answer_is_refused() -> None:
    unanswered = replace(PROBLEMS[0], answer=None)
    with pytest.raises(ValueError, match=f"{unanswered.problem_id!r} has no answer"):
        demonstrations([unanswered])


# --- with agents whose every word is known -------------------------------------------------------


@dataclass(frozen=True)
class ListedGenerator:
    """Gives listed solutions, and one listed continuation for each round."""

    solutions: tuple[Solution, ...]
    continuations: tuple[Solution, ...]

    async def solve(
        self, problem: Problem, num_solutions: int, rng: np.random.Generator
    ) -> list[Solution | Unusable]:
        return list(self.solutions[:num_solutions])

    async def resume(
        self, problem: Problem, transcript: str, *, corrected: bool, rng: np.random.Generator
    ) -> Solution:
        return self.continuations[transcript.count(REFLECT) - 1]


@dataclass(frozen=True)
class ListedCritic:
    wrong_step: int

    async def criticise(
        self, problem: Problem, steps: Solution, *, transcript: str, rng: np.random.Generator
    ) -> Critique:
        return Critique(min(self.wrong_step, len(steps) - 1), "wrong.", "another way.")

    async def verify(self, problem: Problem, steps: Solution, *, rng: np.random.Generator) -> str:
        return f"{len(steps)} steps are right."


SUM = Problem("sum", "2 + 2", "4")
RIGHT: Solution = ("add", "\\boxed{4}")
WRONG: Solution = ("add", "add badly", "so", "\\boxed{5}")


def run(
    solutions: tuple[Solution, ...],
    continuations: tuple[Solution, ...],
    *,
    wrong_step: int = 1,
    max_rounds: int = 2,
    num_kept: int = 4,
) -> dict[str, str]:
    generator = ListedGenerator(solutions, continuations)
    agents = SynthesisAgents(generator, ListedCritic(wrong_step), Brevity())
    (outcome,) = outcomes([SUM], agents, max_rounds=max_rounds, num_kept=num_kept)
    return {d.trajectory_type: d.response for d in outcome.demonstrations}


def test_wrong_solution_is_cut_after_its_first_wrong_step() -> None:
    assert run((WRONG,), (RIGHT,)) == {
        "III-I": (
            "add<|continue|> add badly<|reflect|> wrong.<|explore|> another way."
            "<|continue|> add<|continue|> \\boxed{4}"
        )
    }


def test_second_critique_cuts_the_new_attempt_only() -> None:
    assert run((WRONG,), (("again", "\\boxed{6}", "done"), RIGHT)) == {
        "III-II": (
            "add<|continue|> add badly<|reflect|> wrong.<|explore|> another way."
            "<|continue|> again<|continue|> \\boxed{6}<|reflect|> wrong.<|explore|> another way."
            "<|continue|> add<|continue|> \\boxed{4}"
        )
    }


def test_what_stays_wrong_is_dropped() -> None:
    assert run((WRONG,), (WRONG, WRONG)) == {}
    # Two rounds are not enough for the third try; three are.
    assert run((WRONG,), (WRONG, WRONG, RIGHT)) == {}
    (response,) = run((WRONG,), (WRONG, WRONG, RIGHT), max_rounds=3).values()
    assert response.count(EXPLORE) == 3


def test_right_solution_is_kept_and_verified() -> None:
    one_step: Solution = ("\\boxed{4}",)
    assert run((one_step,), ((),)) == {
        "I": "\\boxed{4}",
        "II-I": "\\boxed{4}<|reflect|> 1 steps are right.",
    }


def test_verified_then_spoilt_then_corrected() -> None:
    # Whichever step is verified, the generator then goes wrong, and right after the critique.
    made = run((RIGHT,), (("\\boxed{7}",), RIGHT), wrong_step=9)
    assert set(made) == {"I", "II-II"}
    assert "are right.<|continue|> \\boxed{7}<|reflect|> wrong.<|explore|>" in made["II-II"]
    assert made["II-II"].endswith("<|continue|> add<|continue|> \\boxed{4}")


def test_best_of_each_type_is_the_one_that_the_reward_model_prefers() -> None:
    longer: Solution = ("add", "slowly and at length", "\\boxed{4}")
    for solutions in ((RIGHT, longer), (longer, RIGHT)):
        assert run(solutions, (("\\boxed{4}",),))["I"] == "add<|continue|> \\boxed{4}"


def test_equal_solutions_count_once_and_no_more_than_asked_are_kept() -> None:
    many = tuple((f"way {i}", "\\boxed{5}") for i in range(6))
    asked: list[int] = []

    @dataclass(frozen=True)
    class Counting(ListedCritic):
        async def criticise(
            self, problem: Problem, steps: Solution, *, transcript: str, rng: np.random.Generator
        ) -> Critique:
            asked.append(1)
            return await super().criticise(problem, steps, transcript=transcript, rng=rng)

    agents = SynthesisAgents(ListedGenerator(many * 2, (RIGHT,)), Counting(1), Brevity())
    assert len(outcomes([SUM], agents, num_kept=4)[0].demonstrations) == 1
    assert len(asked) == 4
    asked.clear()
    assert len(outcomes([SUM], agents, num_kept=99)[0].demonstrations) == 1
    assert len(asked) == 6


# --- replies that are of no use, and many problems at once ---------------------------------------


@dataclass(frozen=True)
class Clumsy(ListedGenerator):
    """Every continuation is unusable."""

    async def resume(
        self, problem: Problem, transcript: str, *, corrected: bool, rng: np.random.Generator
    ) -> Solution:
        raise Unusable("generator_leak", "as the ground truth says")


def test_unusable_replies_are_counted_and_cost_their_trajectory_only() -> None:
    solutions = (RIGHT, WRONG, ("no answer",), Unusable("generator_cut_off", "and so"))
    generator = Clumsy(solutions, ())  # type: ignore[arg-type]
    agents = SynthesisAgents(generator, ListedCritic(1), Brevity())
    (outcome,) = outcomes([SUM], agents)
    assert [d.response for d in outcome.demonstrations] == ["add<|continue|> \\boxed{4}"]
    dropped = {name: n for name, n in outcome.counts.items() if n and name.startswith("dropped/")}
    assert dropped == {
        "dropped/generator_no_answer": 1,
        "dropped/generator_cut_off": 1,
        "dropped/generator_leak": 2,
    }
    assert outcome.counts["solutions/right"] == outcome.counts["solutions/wrong"] == 1
    assert outcome.faults["generator_leak"] == "as the ground truth says"


def test_unusable_rating_comes_last() -> None:
    class Speechless(Brevity):
        async def score(self, problem: Problem, response: str) -> float:
            if "slowly" not in response:
                raise Unusable("reward_model_no_rating", "nice")
            return -1e9

    generator = ListedGenerator((RIGHT, ("add slowly", "\\boxed{4}")), (("\\boxed{4}",),))
    (outcome,) = outcomes([SUM], SynthesisAgents(generator, ListedCritic(1), Speechless()))
    assert outcome.demonstrations[0].response == "add slowly<|continue|> \\boxed{4}"


def test_solutions_that_differ_in_spelling_are_the_same() -> None:
    spellings: tuple[Solution, ...] = (RIGHT, ("Add ", "\\boxed{4}."), ("add", "\\boxed{ 4 }"))
    generator = ListedGenerator(spellings, (("\\boxed{4}",),))
    (outcome,) = outcomes([SUM], SynthesisAgents(generator, ListedCritic(1), Brevity()))
    assert outcome.counts["dropped/same_solution"] == 2


def test_problems_that_ask_the_same_are_one() -> None:
    again = Problem("again", "2 +  2 ", "4")
    assert distinct_problems([SUM, again, PROBLEMS[0]]) == [SUM, PROBLEMS[0]]


def test_later_critique_sees_what_stands_before_the_attempt() -> None:
    seen: list[tuple[str, Solution]] = []

    class Watched(ListedCritic):
        async def criticise(
            self, problem: Problem, steps: Solution, *, transcript: str, rng: np.random.Generator
        ) -> Critique:
            seen.append((transcript, steps))
            return Critique(0, "wrong.", "another way.")

    # Verified after the first or the second step, spoilt, corrected.
    generator = ListedGenerator((RIGHT,), (("so", "\\boxed{7}"), RIGHT))
    (outcome,) = outcomes([SUM], SynthesisAgents(generator, Watched(1), Brevity()))
    ((transcript, steps),) = seen
    assert transcript.endswith(" steps are right.") and steps == ("so", "\\boxed{7}")
    # The verified part stays, whatever step of the continuation is the first wrong one.
    response = outcome.demonstrations[-1].response
    assert response.startswith(f"{transcript}<|continue|> so<|reflect|> wrong.<|explore|>")


at_work: list[str] = []


class Sleepy(SlippingGenerator):
    """Later problems are solved first."""

    async def solve(
        self, problem: Problem, num_solutions: int, rng: np.random.Generator
    ) -> list[Solution]:
        at_work.append(problem.problem_id)
        await asyncio.sleep(0.002 * (len(PROBLEMS) - PROBLEMS.index(problem)))
        return await super().solve(problem, num_solutions, rng)


def test_many_problems_at_once_change_nothing(made: list[Demonstration]) -> None:
    agents = replace(SCRIPTED, generator=Sleepy(0.3))
    at_once = outcomes(PROBLEMS, agents, num_concurrent=8)
    assert [o.problem for o in at_once] == PROBLEMS
    assert [d for o in at_once for d in o.demonstrations] == made
    assert at_work[:8] == [p.problem_id for p in PROBLEMS[:8]]


def test_an_error_ends_all_work() -> None:
    async def tasks_left() -> int:
        stream = synthesize(
            [*PROBLEMS[:5], replace(PROBLEMS[0], answer=None)],
            replace(SCRIPTED, generator=Sleepy(0.3)),
            SynthesisOptions(12),
            num_concurrent=6,
        )
        with pytest.raises(ValueError, match="has no answer"):
            async for _ in stream:
                pass
        return len(asyncio.all_tasks())

    assert asyncio.run(tasks_left()) == 1
