# SPDX-License-Identifier: Apache-2.0
"""Agents for chains: slips with the stated share, checks worked by hand, and whole demonstrations
read step by step."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pytest

from satori_fast.data.chain_actions import (
    WrittenStep,
    check_text,
    is_answer,
    read_step,
    standing_steps,
)
from satori_fast.data.chains import (
    ChainProblems,
    check_steps,
    domain_words,
    expert_steps,
    parse_chain,
    solution_text,
)
from satori_fast.data.formats.coat import CONTINUE, EXPLORE, REFLECT, split_actions
from satori_fast.data.tokenizer import build_word_tokenizer, check_known
from satori_fast.grading import extract_answers, grade
from satori_fast.synthesis import chain_agents
from satori_fast.synthesis.agents import (
    Critique,
    RepetitionRewardModel,
    Solution,
    Unusable,
)
from satori_fast.synthesis.chain_agents import RecalculatingCritic, SlippingCalculator
from satori_fast.synthesis.pipeline import (
    TRAJECTORY_TYPES,
    SynthesisAgents,
    SynthesisOptions,
    synthesize,
)
from satori_fast.types import Demonstration, Problem

T = TypeVar("T")
PROBLEM = Problem("one", "start 37 plus 25 minus 8 swap plus 9", "54")
CHAIN = parse_chain(PROBLEM.question)
WRONG: Solution = ("37 + 25 = 62", "62 - 8 = 70", "swap 70 = 7", "7 + 9 = 16", "\\boxed{ 16 }")
RIGHT = expert_steps(CHAIN)
SURE = SlippingCalculator(1 - 1e-12)
PROBLEMS = list(ChainProblems(120, levels=[4, 6], split="train", seed=0))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def solve(skill: float, count: int, *, problem: Problem = PROBLEM, seed: int = 0) -> list[Solution]:
    return asyncio.run(SlippingCalculator(skill).solve(problem, count, rng(seed)))


def resume(transcript: str, generator: SlippingCalculator = SURE, *, seed: int = 0) -> Solution:
    corrected = split_actions(transcript)[-1].startswith(EXPLORE)
    return asyncio.run(generator.resume(PROBLEM, transcript, corrected=corrected, rng=rng(seed)))


def criticise(steps: Solution, transcript: str = "", *, seed: int = 0) -> Critique:
    critic = RecalculatingCritic()
    return asyncio.run(critic.criticise(PROBLEM, steps, transcript=transcript, rng=rng(seed)))


def verify(steps: Solution) -> str:
    return asyncio.run(RecalculatingCritic().verify(PROBLEM, steps, rng=rng()))


def found(draw: Callable[[int], T], wanted: Callable[[T], bool]) -> T:
    """The first of the draws by seeds 0, 1, ... that is wanted."""
    return next(value for value in map(draw, range(100)) if wanted(value))


def demonstrations(
    problems: Sequence[Problem] = PROBLEMS, *, seed: int = 0, confirm_share: float = 0.5
) -> list[Demonstration]:
    agents = SynthesisAgents(
        SlippingCalculator(0.3), RecalculatingCritic(), RepetitionRewardModel()
    )
    options = SynthesisOptions(num_solutions=8, confirm_share=confirm_share, seed=seed)

    async def all_of_them() -> list[Demonstration]:
        stream = synthesize(problems, agents, options)
        return [made async for outcome in stream for made in outcome.demonstrations]

    return asyncio.run(all_of_them())


@pytest.fixture(scope="module")
def made() -> list[Demonstration]:
    return demonstrations()


# --- generator -----------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", [0.1, 0.3, 0.8])
def test_skill_is_the_share_of_right_solutions(skill: float) -> None:
    solutions = solve(skill, 1000)
    share = np.mean([solution == RIGHT for solution in solutions])
    assert abs(share - skill) < 4 * np.sqrt(skill * (1 - skill) / 1000)
    # Of single operations, four in a solution, the fourth root.
    steps = [read_step(step) for solution in solutions for step in solution[:-1]]
    slips, expected = np.mean([step.is_slip for step in steps]), 1 - skill**0.25
    assert abs(slips - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)


def test_haste_slips_where_a_digit_is_carried_or_borrowed_and_nowhere_else() -> None:
    hasty = SlippingCalculator(0.2, in_haste=True)
    firsts: list[bool] = []
    for number, problem in enumerate(PROBLEMS):
        for solution in asyncio.run(hasty.solve(problem, 8, rng(number))):
            written = [read_step(step) for step in solution[:-1]]
            carries = [w for w in written if hasty_result(w) != w.operation.apply(w.value)]
            firsts += [w.is_slip for w in carries[:1]]
            slips = [w for w in written if w.is_slip]
            assert all(w in carries and w.result == hasty_result(w) for w in slips)
    # Later ones are written right as well where a forgotten carry would cancel an earlier one.
    assert len(firsts) > 500
    assert abs(np.mean(firsts) - 0.8) < 4 * np.sqrt(0.16 / len(firsts))
    first = {solution[0] for solution in asyncio.run(hasty.solve(PROBLEM, 40, rng()))}
    assert first == {"37 + 25 = 62", "37 + 25 = 52"}


def hasty_result(written: WrittenStep) -> int:
    return written.operation.forget_carry(written.value)


@pytest.mark.parametrize("in_haste", [False, True])
def test_an_answer_is_right_only_where_every_step_is(in_haste: bool) -> None:
    generator = SlippingCalculator(0.05, in_haste=in_haste)
    for problem in PROBLEMS[:20]:
        chain = parse_chain(problem.question)
        truth = expert_steps(chain)
        for solution in asyncio.run(generator.solve(problem, 50, rng())):
            assert (solution[-1] == truth[-1]) == (solution == truth)
            # It goes on from what is written, with the operations of the question.
            written = [read_step(step) for step in solution[:-1]]
            assert tuple(step.operation for step in written) == chain.operations
            values = [chain.start, *(step.result for step in written)]
            assert values[:-1] == [step.value for step in written]
            assert solution[-1] == f"\\boxed{{ {values[-1]} }}"


def test_slips_confuse_the_operation_or_a_digit() -> None:
    confused = digit = 0
    for solution in solve(0.05, 300):
        for step in map(read_step, solution[:-1]):
            if step.is_slip:
                right = step.operation.apply(step.value)
                differing = sum(
                    a != b for a, b in zip(f"{right:02d}", f"{step.result:02d}", strict=True)
                )
                is_confused = step.result == step.operation.confuse(step.value)
                assert is_confused or differing == 1
                confused += is_confused
                digit += not is_confused
    assert confused > 100 and digit > 100


def test_a_swap_that_changes_nothing_slips_in_a_digit() -> None:
    problem = Problem("two", "start 77 swap swap swap swap", "77")
    results = {solution[0].split()[-1] for solution in solve(0.01, 300, problem=problem)}
    tens = {f"{digit}7".lstrip("0") for digit in range(10)}
    assert results == tens | {f"7{digit}" for digit in range(10)}


@pytest.mark.parametrize(
    ("transcript", "rest"),
    [
        # A local check has found the slip: on from the corrected operation.
        (
            f"37 + 25 = 62{CONTINUE} 62 - 8 = 70{REFLECT} 62 - 8 = 54 wrong{EXPLORE} 62 - 8 = 54",
            RIGHT[2:],
        ),
        # The check of the answer has.
        (
            f"{CONTINUE.join(WRONG)}{REFLECT} 37 + 25 = 62 ; 62 - 8 = 54 wrong"
            f"{EXPLORE} 62 - 8 = 54",
            RIGHT[2:],
        ),
        # The last operation was wrong: the answer is left to say.
        (
            f"{CONTINUE.join(RIGHT[:3])}{CONTINUE} 45 + 9 = 36{REFLECT} 45 + 9 = 54 wrong"
            f"{EXPLORE} 45 + 9 = 54",
            RIGHT[4:],
        ),
        (f"37 + 25 = 62{REFLECT} 37 + 25 = 62 right", RIGHT[1:]),
        (f"{CONTINUE.join(RIGHT)}{REFLECT} {' ; '.join(RIGHT[:-1])} right", ()),
    ],
)
def test_the_rest_follows_from_what_stands(transcript: str, rest: Solution) -> None:
    assert resume(transcript) == rest


def test_the_rest_slips_as_often_as_any_operation() -> None:
    transcript = f"37 + 25 = 62{REFLECT} 37 + 25 = 62 right"
    slipping = SlippingCalculator(0.2)
    right = [resume(transcript, slipping, seed=seed) == RIGHT[1:] for seed in range(500)]
    share = 0.2 ** (3 / 4)
    assert abs(np.mean(right) - share) < 4 * np.sqrt(share * (1 - share) / 500)


# --- critic --------------------------------------------------------------------------------------


def test_the_first_slip_is_found_where_it_is_or_after_the_answer() -> None:
    local = Critique(1, "62 - 8 = 54 wrong", "62 - 8 = 54")
    whole = Critique(4, "37 + 25 = 62 ; 62 - 8 = 54 wrong", "62 - 8 = 54")
    critiques = [criticise(WRONG, seed=seed) for seed in range(200)]
    assert {c.wrong_step for c in critiques} == {1, 4}
    assert all(c in (local, whole) for c in critiques)
    assert 70 < critiques.count(whole) < 130  # a half: 100, four standard errors 28


def test_a_second_round_judges_what_followed_the_correction() -> None:
    transcript = (
        f"37 + 25 = 62{CONTINUE} 62 - 8 = 70{REFLECT} 62 - 8 = 54 wrong{EXPLORE} 62 - 8 = 54"
    )
    steps = ("swap 54 = 54", "54 + 9 = 64", "\\boxed{ 64 }")

    def draw(seed: int) -> Critique:
        return criticise(steps, transcript, seed=seed)

    assert found(draw, lambda c: c.wrong_step == 0) == Critique(
        0, "swap 54 = 45 wrong", "swap 54 = 45"
    )
    assert found(draw, lambda c: c.wrong_step == 2) == Critique(
        2, "37 + 25 = 62 ; 62 - 8 = 54 ; swap 54 = 45 wrong", "swap 54 = 45"
    )


def test_verification_of_a_step_and_of_an_answer() -> None:
    assert verify(RIGHT[:1]) == "37 + 25 = 62 right"
    assert verify(RIGHT[:3]) == "swap 54 = 45 right"
    whole = "37 + 25 = 62 ; 62 - 8 = 54 ; swap 54 = 45 ; 45 + 9 = 54 right"
    assert verify(RIGHT) == whole
    # After a correction only the rest of the solution is at hand; the whole is judged all the same.
    assert verify(RIGHT[3:]) == whole


def test_what_others_write_is_dropped_with_its_reason() -> None:
    def reason_of(work: Callable[[], object]) -> str:
        with pytest.raises(Unusable) as caught:
            work()
        return caught.value.reason

    assert reason_of(lambda: criticise(("Add.", "\\boxed{ 16 }"))) == "critic_no_operation"
    assert reason_of(lambda: criticise(RIGHT)) == "critic_no_slip"
    assert reason_of(lambda: verify(("Add.",))) == "critic_no_operation"
    assert reason_of(lambda: verify(WRONG[:2])) == "critic_slip_in_right_solution"
    assert reason_of(lambda: resume(f"Add.{REFLECT} Good.")) == "generator_no_operation"


def test_agents_refuse_other_problems() -> None:
    other = Problem("sum", "2 + 2", "4")
    with pytest.raises(ValueError, match="not a chain of the built-in domain"):
        solve(0.3, 1, problem=other)
    with pytest.raises(ValueError, match="not a chain of the built-in domain"):
        asyncio.run(RecalculatingCritic().verify(other, RIGHT, rng=rng()))


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
        chain = parse_chain(problem.question)
        assert " ; ".join([*steps, answer]) == solution_text(chain)
        assert extract_answers(demonstration.response)[-1] == problem.answer


def test_every_reflection_is_true_and_finds_the_first_slip(made: list[Demonstration]) -> None:
    places = Counter[str]()
    for demonstration in made:
        chain = parse_chain(demonstration.problem.question)
        actions = split_actions(demonstration.response)
        for place, action in enumerate(actions):
            if not action.startswith(REFLECT):
                continue
            steps = standing_steps("".join(actions[:place]))
            said = action.removeprefix(REFLECT).strip()
            is_whole = is_answer(steps[-1])
            assert said == check_text(steps[:-1] if is_whole else steps[-1:])
            operations = [step for step in steps if not is_answer(step)]
            right = check_steps(" ; ".join(operations), chain)[: len(operations)]
            assert said.endswith("right") == all(right)
            if all(right):
                continue
            first = right.index(False)
            # A local check stands right behind the first slip, a whole one behind the answer.
            assert is_whole or first == len(operations) - 1
            assert actions[place + 1] == f"{EXPLORE} {expert_steps(chain)[first]}"
            places["whole" if is_whole else "local"] += 1
    assert min(places["whole"], places["local"]) > 50


def test_no_wrong_answer_and_no_slip_stays_unjudged(made: list[Demonstration]) -> None:
    for demonstration in made:
        actions = split_actions(demonstration.response)
        slips = sum(
            read_step(content).is_slip
            for action in actions
            if not action.startswith(REFLECT)
            and not is_answer(
                content := action.removeprefix(CONTINUE).removeprefix(EXPLORE).strip()
            )
        )
        corrections = sum(action.startswith(EXPLORE) for action in actions)
        # Slips that fell with the first one were never judged: there may be more of them.
        assert (slips > 0) == (corrections > 0) and slips >= corrections
        assert corrections == {"III-II": 2, "II-II": 1, "III-I": 1}.get(
            demonstration.trajectory_type, 0
        )
        for before, action in pairwise(actions):
            assert action.startswith(EXPLORE) == before.endswith("wrong")


def test_verified_steps_are_of_every_place(made: list[Demonstration]) -> None:
    places = {
        len(standing_steps(d.response.partition(REFLECT)[0]))
        for d in made
        if d.trajectory_type == "II-I" and d.problem.level == "4"
    }
    assert places == {1, 2, 3, 4, 5}


def test_tokenizer_knows_every_word(made: list[Demonstration]) -> None:
    tokenizer = build_word_tokenizer(domain_words())
    for demonstration in made:
        check_known(tokenizer, demonstration.response)


def test_demonstrations_are_made_again_from_their_seed(made: list[Demonstration]) -> None:
    subset = PROBLEMS[60:20:-7]
    names = [problem.problem_id for problem in subset]
    expected = [d for name in names for d in made if d.problem.problem_id == name]
    assert demonstrations(subset) == expected
    assert demonstrations(subset, seed=1) != expected


def test_demonstrations_of_the_docstring(made: list[Demonstration]) -> None:
    assert chain_agents.__doc__ is not None
    paragraphs = [
        "".join(line.removeprefix("    ") for line in paragraph.split("\n"))
        for paragraph in chain_agents.__doc__.split("\n\n")
    ]
    shown = [p for p in paragraphs if REFLECT in p]
    written = [d for d in made if d.response in shown]
    assert len({d.response for d in written}) == len(shown) == 2
    assert all(d.problem.question in paragraphs for d in written)
