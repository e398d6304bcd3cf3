# SPDX-License-Identifier: Apache-2.0
"""Chains as chain of action thought: an operation an action, checks, and corrections.

    37 + 25 = 62<|continue|> 62 - 8 = 70<|reflect|> 62 - 8 = 54 wrong<|explore|> 62 - 8 = 54
    <|continue|> swap 54 = 45<|continue|> 45 + 9 = 54<|continue|> \\boxed{ 54 }

A reflection carries out again what is written to the left of "=" and compares. After an operation
it checks that one (a local check); after an answer it goes through all that led there, up to the
first that differs:

    ... <|continue|> \\boxed{ 16 }<|reflect|> 37 + 25 = 62 ; 62 - 8 = 54 wrong
    <|explore|> 62 - 8 = 54 ...

An exploration is the operation done rightly; what stands after it is `step_actions`. Problems and
the words themselves are `chains`; who writes such responses is `synthesis.chain_agents`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from satori_fast.data.chains import STEP_END, VERDICTS, Operation, parse_chain
from satori_fast.data.step_actions import StepReader

_STEP = re.compile(
    r"(?:(?P<value>[0-9]{1,2}) (?P<sign>[+-]) (?P<operand>[0-9]{1,2})|swap (?P<swapped>[0-9]{1,2}))"
    r" = (?P<result>[0-9]{1,2})"
)


@dataclass(frozen=True, slots=True)
class WrittenStep:
    """An operation as a response carries it out. value, result: before it, and after, as written.

    >>> read_step("62 - 8 = 70")
    WrittenStep(operation=Operation(kind='minus', operand=8), value=62, result=70)
    """

    operation: Operation
    value: int
    result: int

    @property
    def corrected(self) -> str:
        """The step with the result that its left side has."""
        return self.operation.step(self.value)

    @property
    def is_slip(self) -> bool:
        """Whether the left side has another result than the written one."""
        return self.operation.apply(self.value) != self.result


def read_step(text: str) -> WrittenStep:
    """Read an operation that is carried out. Raises ValueError for any other text."""
    found = _STEP.fullmatch(text)
    if found is None:
        raise ValueError(f"not an operation of a chain: {text!r}")
    result = int(found["result"])
    if found["swapped"] is not None:
        return WrittenStep(Operation("swap"), int(found["swapped"]), result)
    kind = "plus" if found["sign"] == "+" else "minus"
    return WrittenStep(Operation(kind, int(found["operand"])), int(found["value"]), result)


def is_answer(step: str) -> bool:
    """Whether a step states the answer, and is no operation."""
    return step.startswith("\\boxed")


def check_text(steps: Sequence[str]) -> str:
    """Carry operations out again, up to the first with another result, and judge. Raises ValueError
    for a step that is no operation.

    >>> check_text(["37 + 25 = 62", "62 - 8 = 70", "swap 70 = 7"])
    '37 + 25 = 62 ; 62 - 8 = 54 wrong'
    >>> check_text(["swap 54 = 45"])
    'swap 54 = 45 right'
    """
    again: list[str] = []
    verdict = VERDICTS[0]
    for written in map(read_step, steps):
        again.append(written.corrected)
        if written.is_slip:
            verdict = VERDICTS[1]
            break
    return f"{f' {STEP_END} '.join(again)} {verdict}"


_STEPS = StepReader(is_answer, lambda check: check.count(STEP_END) + 1)


def standing_steps(text: str) -> tuple[str, ...]:
    """List the steps that stand at the end of a response; see `StepReader`.

    >>> standing_steps("9 + 1 = 11<|reflect|> 9 + 1 = 10 wrong<|explore|> 9 + 1 = 10")
    ('9 + 1 = 10',)
    """
    return _STEPS.standing_steps(text)


def slip_counts(question: str, response: str) -> dict[str, float]:
    """Count the slips in a response, and those that a local check mends; see `StepReader`.

    A slip is an operation with a wrong result, of the wrong kind, or that does not go on from the
    number before it.

    >>> slip_counts("start 1 plus 2", "1 + 2 = 4<|reflect|> 1 + 2 = 3 wrong<|explore|> 1 + 2 = 3")
    {'slips': 1.0, 'mends': 1.0, 'breaks': 0.0, 'slips_mended': 1.0}
    """
    chain = parse_chain(question)

    def is_right(steps: Sequence[str]) -> bool:
        value = chain.start if len(steps) == 1 else _result(steps[-2])
        return value is not None and steps[-1] == chain.operations[len(steps) - 1].step(value)

    return _STEPS.slip_counts(response, len(chain.operations), is_right)


def _result(step: str) -> int | None:
    """The number that a step ends with, None for text that is no operation."""
    found = _STEP.fullmatch(step)
    return int(found["result"]) if found else None
