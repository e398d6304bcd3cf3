# SPDX-License-Identifier: Apache-2.0
"""The agents of Satori's data synthesis (appendix C), and scripted ones for arithmetic.

A solution is a list of steps, each the text of one action without its meta-action token. The
scripted agents answer exactly as language models are asked to (`language_agents`): the generator
slips, the critic sees the right answer and names the first wrong step, the reward model ranks whole
trajectories. Methods are coroutines, so that agents who wait for a model let other problems go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np

from satori_fast.data.arithmetic import (
    NAMES,
    Puzzle,
    bare_check_text,
    check_text,
    name_answer,
    parse_answer,
    parse_puzzle,
)
from satori_fast.data.formats.coat import split_actions
from satori_fast.grading import extract_answer, extract_answers
from satori_fast.types import Problem

Solution = tuple[str, ...]


class Unusable(Exception):
    """A reply that cannot be used. The work that needed it is dropped, and the reason is counted.

    reason: a short name, as "critic_no_step". text: what was replied.
    """

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.reason, self.text = reason, text


@dataclass(frozen=True, slots=True)
class Critique:
    """Criticism of a wrong solution.

    wrong_step: index of the first wrong step, or of the answer where that is judged as a whole; the
                solution is kept up to it, that step included.
    mistake:    becomes the ``<|reflect|>`` action.   hint: becomes the ``<|explore|>`` action.
    """

    wrong_step: int
    mistake: str
    hint: str


class Generator(Protocol):
    """Writes solutions and continues partial ones."""

    async def solve(
        self, problem: Problem, num_solutions: int, rng: np.random.Generator
    ) -> Sequence[Solution | Unusable]:
        """`num_solutions` independent solutions from the question alone, or why there is none."""
        ...

    async def resume(
        self, problem: Problem, transcript: str, *, corrected: bool, rng: np.random.Generator
    ) -> Solution:
        """Steps that follow `transcript`, which ends with a hint when `corrected` (then a new
        attempt is asked for) and with a verification otherwise (then the rest of the solution, none
        where it has its answer). Raises Unusable."""
        ...


class Critic(Protocol):
    """Judges solutions, knowing the right answer."""

    async def criticise(
        self, problem: Problem, steps: Solution, *, transcript: str, rng: np.random.Generator
    ) -> Critique:
        """The first wrong one of `steps`, which lead to a wrong answer, and a hint for the next
        attempt. transcript: what stands before `steps` and is not to be judged; "" in a first
        round. Raises Unusable."""
        ...

    async def verify(self, problem: Problem, steps: Solution, *, rng: np.random.Generator) -> str:
        """One sentence that confirms the last of `steps` (a part of a right solution). Raises
        Unusable."""
        ...


class RewardModel(Protocol):
    """Ranks trajectories of one problem; only the order of its scores matters."""

    async def score(self, problem: Problem, response: str) -> float:
        """The higher, the better. Raises Unusable."""
        ...


@dataclass(frozen=True, slots=True)
class SlippingGenerator:
    """Scripted generator: names a part of a choice, then the choice.

    A first attempt is right with probability `skill`, else any wrong choice. After a correction it
    is right with the same probability, else it goes on in order to the next choice that was not
    tried yet. So no attempt is repeated, and the search can be imitated greedily: one that jumps to
    whatever the verdicts leave possible cannot, its imitator runs in circles.
    """

    skill: float = 0.3

    async def solve(
        self, problem: Problem, num_solutions: int, rng: np.random.Generator
    ) -> list[Solution]:
        puzzle = parse_puzzle(problem.question)
        right = puzzle.solutions[0]
        wrong = [choice for choice in _choices(puzzle) if choice != right]
        return [
            _steps(right if rng.random() < self.skill else wrong[rng.integers(len(wrong))])
            for _ in range(num_solutions)
        ]

    async def resume(
        self, problem: Problem, transcript: str, *, corrected: bool, rng: np.random.Generator
    ) -> Solution:
        puzzle = parse_puzzle(problem.question)
        tried = [parse_answer(answer, puzzle) for answer in extract_answers(transcript)]
        if corrected:
            choices, right = _choices(puzzle), puzzle.solutions[0]
            last = choices.index(tried[-1]) if tried[-1] in choices else -1
            rest = [c for c in (*choices[last + 1 :], *choices) if c not in tried]
            return _steps(right if rng.random() < self.skill else rest[0])
        if tried:
            return ()
        part = _last_choice(split_actions(transcript)[0].strip(), puzzle)
        rest = [c for c in _choices(puzzle) if c[: len(part)] == part]
        right = puzzle.solutions[0]
        knows = right in rest and rng.random() < self.skill
        return _steps(right if knows else rest[rng.integers(len(rest))])[1:]


def _choices(puzzle: Puzzle) -> list[tuple[int, ...]]:
    """Every choice of the right size, in order."""
    return list(combinations(range(len(puzzle.numbers)), puzzle.num_picked))


def _steps(choice: tuple[int, ...]) -> Solution:
    """An attempt: a part of the choice, then the whole one as an answer."""
    return (name_answer(choice[:-1]), f"\\boxed{{ {name_answer(choice)} }}")


@dataclass(frozen=True, slots=True)
class CheckingCritic:
    """Scripted critic: looks every name up again, adds, and compares with the sum asked for.

    bare_share: of its checks that give the verdict alone, without the sum that shows it. Whoever
    imitates those learns to say verdicts, and not how to come by a true one.
    """

    bare_share: float = 0.0

    async def criticise(
        self, problem: Problem, steps: Solution, *, transcript: str, rng: np.random.Generator
    ) -> Critique:
        puzzle = parse_puzzle(problem.question)
        choice = _last_choice(steps[-1], puzzle)
        hint = "less" if puzzle.add(choice) > puzzle.total else "more"
        return Critique(len(steps) - 1, self._check(choice, puzzle, rng), hint)

    async def verify(self, problem: Problem, steps: Solution, *, rng: np.random.Generator) -> str:
        puzzle = parse_puzzle(problem.question)
        return self._check(_last_choice(steps[-1], puzzle), puzzle, rng)

    def _check(self, choice: tuple[int, ...], puzzle: Puzzle, rng: np.random.Generator) -> str:
        is_bare = self.bare_share > 0 and rng.random() < self.bare_share
        return bare_check_text(choice, puzzle) if is_bare else check_text(choice, puzzle)


@dataclass(frozen=True, slots=True)
class RepetitionRewardModel:
    """Scripted reward model: minus the number of attempts that repeat an earlier one.

    Length does not count: a model that has seen short searches only cannot check in long ones.
    """

    async def score(self, problem: Problem, response: str) -> float:
        attempts = extract_answers(response)
        return -float(len(attempts) - len(set(attempts)))


def _last_choice(step: str, puzzle: Puzzle) -> tuple[int, ...]:
    """The choice that a step names: a whole one in a box, or a part of one."""
    answer = extract_answer(step)
    if answer is not None:
        choice = parse_answer(answer, puzzle)
        assert choice is not None, step
        return choice
    return tuple(NAMES.index(word) for word in step.split())
