# SPDX-License-Identifier: Apache-2.0
"""Scripted agents of Satori's data synthesis for chains: a calculator who slips, and a critic who
calculates again.

Two demonstrations, broken into lines: the slip of one is found where it was made, that of the other
after the answer.

    start 81 plus 6 plus 8 minus 2 swap minus 2 swap

    81 + 6 = 87<|continue|> 87 + 8 = 95<|reflect|> 87 + 8 = 95 right<|continue|> 95 - 2 = 93
    <|continue|> swap 93 = 93<|reflect|> swap 93 = 39 wrong<|explore|> swap 93 = 39
    <|continue|> 39 - 2 = 37<|continue|> swap 37 = 73<|continue|> \\boxed{ 73 }

    start 94 swap minus 6 swap swap minus 2 swap

    swap 94 = 49<|continue|> 49 - 6 = 43<|continue|> swap 43 = 34<|continue|> swap 34 = 43
    <|continue|> 43 - 2 = 44<|continue|> swap 44 = 44<|continue|> \\boxed{ 44 }
    <|reflect|> swap 94 = 49 ; 49 - 6 = 43 ; swap 43 = 34 ; swap 34 = 43 ; 43 - 2 = 41 wrong
    <|explore|> 43 - 2 = 41<|continue|> swap 41 = 14<|continue|> \\boxed{ 14 }

How such text reads is `data.chain_actions`, what the roles are asked for is `agents`, and which
domain has which agents is `scripted_agents`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from satori_fast.data.chain_actions import (
    WrittenStep,
    check_text,
    is_answer,
    read_step,
    standing_steps,
)
from satori_fast.data.chains import Chain, Operation, expert_steps, parse_chain
from satori_fast.synthesis.agents import Critique, Solution, Unusable
from satori_fast.types import Problem

# Of the slips, those that confuse the operation; the others have one digit wrong.
_CONFUSED_SHARE = 0.5
# Of the wrong solutions, those that are judged after their answer; the others at the slip.
_WHOLE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class SlippingCalculator:
    """Scripted generator: an operation a step, then the answer.

    A solution from the question alone is right with probability `skill`: each of its L operations
    is, independently, with the L-th root of it. What is left after a check has fewer operations
    and is right more often. A slip confuses the operation or has one digit wrong, and the
    calculation goes on rightly from it. Slips never cancel: after one no number is that of the
    right solution, so that an answer is right only where every step is.

    One in haste slips where a digit is carried or borrowed and nowhere else: it forgets to, but for
    a share `skill` of these places. A model that imitates it slips there as well when it takes the
    likeliest word, not by chance alone.
    """

    skill: float = 0.3
    in_haste: bool = False

    async def solve(
        self, problem: Problem, num_solutions: int, rng: np.random.Generator
    ) -> list[Solution]:
        chain = parse_chain(problem.question)
        return [self._steps(chain, (), rng) for _ in range(num_solutions)]

    async def resume(
        self, problem: Problem, transcript: str, *, corrected: bool, rng: np.random.Generator
    ) -> Solution:
        chain, standing = parse_chain(problem.question), standing_steps(transcript)
        return () if is_answer(standing[-1]) else self._steps(chain, standing, rng)

    def _steps(self, chain: Chain, standing: Sequence[str], rng: np.random.Generator) -> Solution:
        """The steps that follow those that stand."""
        value = _read(standing[-1], "generator").result if standing else chain.start
        truth, share = chain.start, self.skill
        if not self.in_haste:
            share **= 1 / len(chain.operations)
        steps: list[str] = []
        for place, operation in enumerate(chain.operations):
            truth = operation.apply(truth)
            if place < len(standing):
                continue
            after = operation.apply(value)
            if rng.random() >= share:
                after = self._slip(operation, value, truth, rng)
            steps.append(operation.step(value, after))
            value = after
        return (*steps, f"\\boxed{{ {value} }}")

    def _slip(self, operation: Operation, value: int, truth: int, rng: np.random.Generator) -> int:
        """A result that is not `truth`, the right solution's number, where it is a wrong one."""
        if not self.in_haste:
            return _chance_slip(operation, value, truth, rng)
        hasty = operation.forget_carry(value)
        return operation.apply(value) if hasty == truth else hasty


def _chance_slip(operation: Operation, value: int, truth: int, rng: np.random.Generator) -> int:
    """A wrong result of an operation that is not `truth` either."""
    right = operation.apply(value)
    while True:
        wrong = operation.confuse(value)
        if rng.random() >= _CONFUSED_SHARE:
            digits = list(divmod(right, 10))
            place = rng.integers(2)
            digits[place] = (digits[place] + int(rng.integers(1, 10))) % 10
            wrong = 10 * digits[0] + digits[1]
        if wrong not in (right, truth):
            return wrong


@dataclass(frozen=True, slots=True)
class RecalculatingCritic:
    """Scripted critic: carries operations out again from what is written to the left of "=".

    Of a wrong solution it finds the first slip, either where that is, by a check of this one
    operation, or after the answer, by a check of all operations up to it. The alternative is the
    operation done rightly.
    """

    async def criticise(
        self, problem: Problem, steps: Solution, *, transcript: str, rng: np.random.Generator
    ) -> Critique:
        parse_chain(problem.question)
        operations = [_read(step, "critic") for step in steps if not is_answer(step)]
        slips = [place for place, written in enumerate(operations) if written.is_slip]
        if not slips:
            raise Unusable("critic_no_slip", steps[-1])
        place, last = slips[0], len(steps) - 1
        hint = operations[place].corrected
        if rng.random() < _WHOLE_SHARE:
            written = (*standing_steps(transcript), *steps[: place + 1])
            return Critique(last, _check(written), hint)
        return Critique(place, _check(steps[place : place + 1]), hint)

    async def verify(self, problem: Problem, steps: Solution, *, rng: np.random.Generator) -> str:
        chain = parse_chain(problem.question)
        if not is_answer(steps[-1]):
            if _read(steps[-1], "critic").is_slip:
                raise Unusable("critic_slip_in_right_solution", steps[-1])
            return check_text(steps[-1:])
        # A right solution has these operations, also those before a correction, which `steps` lack.
        return check_text(expert_steps(chain)[:-1])


def _check(steps: Sequence[str]) -> str:
    """A check of steps. Raises Unusable for one that is no operation."""
    try:
        return check_text(steps)
    except ValueError as error:
        raise Unusable("critic_no_operation", str(error)) from None


def _read(step: str, role: str) -> WrittenStep:
    """An operation as it is written. Raises Unusable for a step that is none."""
    try:
        return read_step(step)
    except ValueError:
        raise Unusable(f"{role}_no_operation", step) from None
