# SPDX-License-Identifier: Apache-2.0
"""A built-in domain of long calculations: a number, and operations on it modulo 100.

    question:     start 37 plus 25 minus 8 swap plus 9
    solution:     37 + 25 = 62 ; 62 - 8 = 54 ; swap 54 = 45 ; 45 + 9 = 54 ; \\boxed{ 54 }
    confirming:   back 54 - 9 = 45 ; swap 45 = 54 ; 54 + 8 = 62 ; 62 - 25 = 37 ; start 37 right
    re-solving:   forward 37 + 25 = 62 ; 62 - 8 = 54 ; swap 54 = 45 ; 45 + 9 = 54 ; box 54 right

`swap` exchanges the digits of the two-digit form: 7 is 07, swapped 70. A slip anywhere spoils the
end, so difficulty is length: the level is the number of operations. Every operation has an inverse,
so walking back from an answer leads to the start if, and only if, the answer is right; going
forward again finds the answer anew. ``;`` stands between steps because a word tokenizer drops line
breaks, and steps must be told apart after decoding too; it is a word of its own and occurs nowhere
else.

How hard it is depends on operands and demonstrations. With operands of 1 to 9, 4,000 demonstrations
of 4, 6 and 8 operations and 1,000 steps of 32 (0.8 M parameters, learning rate 2e-3 falling by a
cosine), 81, 59 and 44 % of held-out chains are right, greedily: 95, 92 and 90 % of single steps. Of
4, 5 and 6 operations it is 93, 92 and 89 %. Operands of 1 to 99 leave 37 % after 1,500 steps, and
half as many demonstrations are learnt by heart. `configs/s2r/quickstart.toml` has these sizes.

Drawing, splitting and numbering problems is `drawn_problems`; who writes verifications into
trajectories, and which, is `synthesis`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import numpy as np

from satori_fast.data.drawn_problems import DrawnProblems, is_held_out

MODULUS = 100
STEP_END = ";"
CONFIRMING = "back"
RESOLVING = "forward"
VERDICTS = ("right", "wrong")
OperationKind = Literal["plus", "minus", "swap"]
_KINDS: tuple[OperationKind, ...] = ("plus", "minus", "swap")
_QUESTION = re.compile(
    r"start (?P<start>[0-9]{1,2})(?P<operations>( (plus|minus) [0-9]{1,2}| swap)+)"
)
_OPERATION = re.compile(r"(plus|minus|swap)(?: ([0-9]+))?")
_RESULT = re.compile(r"= ([0-9]{1,2})$")
_INVERSE: dict[OperationKind, OperationKind] = {"plus": "minus", "minus": "plus", "swap": "swap"}


@dataclass(frozen=True, slots=True)
class Level:
    """A difficulty: how many operations, on numbers between 1 and `largest`."""

    num_operations: int
    largest: int


LEVELS = {num: Level(num_operations=num, largest=9) for num in range(4, 17)}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a chain. operand: 0 for a swap."""

    kind: OperationKind
    operand: int = 0

    @property
    def title(self) -> str:
        """The operation as a question names it: ``plus 25`` or ``swap``."""
        return self.kind if self.kind == "swap" else f"{self.kind} {self.operand}"

    @property
    def inverse(self) -> Operation:
        """The operation that takes this one back."""
        return Operation(_INVERSE[self.kind], self.operand)

    def apply(self, value: int) -> int:
        """The number after the operation, 0 to 99."""
        if self.kind == "swap":
            tens, ones = divmod(value, 10)
            return 10 * ones + tens
        return (value + (self.operand if self.kind == "plus" else -self.operand)) % MODULUS

    def confuse(self, value: int) -> int:
        """The number that carelessness gives: it adds for minus, subtracts for plus, forgets to
        swap. Some numbers it leaves right: 77 swapped is 77."""
        return value if self.kind == "swap" else self.inverse.apply(value)

    def forget_carry(self, value: int) -> int:
        """The number that haste gives: each digit for itself, nothing carried or borrowed. Where
        there is nothing to carry it is right.

        >>> Operation("plus", 5).forget_carry(38), Operation("minus", 5).forget_carry(31)
        (33, 36)
        """
        if self.kind == "swap":
            return self.apply(value)
        sign = 1 if self.kind == "plus" else -1
        pairs = zip(divmod(value, 10), divmod(self.operand, 10), strict=True)
        tens, ones = ((digit + sign * other) % 10 for digit, other in pairs)
        return 10 * tens + ones

    def step(self, value: int, result: int | None = None) -> str:
        """The operation written out for the number before it. result: None is the right one.

        >>> Operation("plus", 25).step(90)
        '90 + 25 = 15'
        >>> Operation("swap").step(7)
        'swap 7 = 70'
        """
        result = self.apply(value) if result is None else result
        if self.kind == "swap":
            return f"swap {value} = {result}"
        sign = "+" if self.kind == "plus" else "-"
        return f"{value} {sign} {self.operand} = {result}"


@dataclass(frozen=True, slots=True)
class Chain:
    """The content of a problem: the number to start with, and what to do with it in order."""

    start: int
    operations: tuple[Operation, ...]

    @property
    def question(self) -> str:
        return " ".join([f"start {self.start}", *(each.title for each in self.operations)])

    @property
    def answer(self) -> str:
        """The number at the end, as it is boxed: ``7``, not ``07``."""
        return str(_walk(self.start, self.operations)[-1])

    @property
    def heldout(self) -> bool:
        """Whether a chain is held out, by its content."""
        return is_held_out(self.question)


def parse_chain(question: str) -> Chain:
    """The chain of a question text. Raises ValueError when the text is not of this domain.

    >>> parse_chain("start 37 plus 25 swap").operations
    (Operation(kind='plus', operand=25), Operation(kind='swap', operand=0))
    """
    found = _QUESTION.fullmatch(question)
    chain = None
    if found is not None:
        read = _OPERATION.findall(found["operations"])
        operations = [Operation(kind, int(operand or 0)) for kind, operand in read]
        chain = Chain(int(found["start"]), tuple(operations))
    # Written again it is the same text: no number has leading zeros.
    if chain is None or chain.question != question:
        raise ValueError(f"not a chain of the built-in domain: {question!r}")
    return chain


def expert_steps(chain: Chain) -> tuple[str, ...]:
    """The solution step by step: one operation each, then the answer.

    >>> expert_steps(parse_chain("start 90 plus 25 swap"))
    ('90 + 25 = 15', 'swap 15 = 51', '\\\\boxed{ 51 }')
    """
    return (*_steps(chain.start, chain.operations), f"\\boxed{{ {chain.answer} }}")


def careless_steps(
    chain: Chain, share: float, rng: np.random.Generator
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Steps, and thoughts before them, of a pupil who looks the number and the operation up before
    a step and is right, but who with probability `share` goes straight to the next step, and slips:
    adds for minus, subtracts for plus, forgets to swap. He goes on from the number that he gives.

    >>> careless_steps(parse_chain("start 90 plus 25 swap"), 1.0, np.random.default_rng(0))
    (('90 + 25 = 65', 'swap 65 = 65', '\\\\boxed{ 65 }'), ('next', 'next', '65 answer'))
    """
    value, steps, thoughts = chain.start, list[str](), list[str]()
    for operation in chain.operations:
        after, thought = operation.apply(value), f"{value} {operation.title}"
        if rng.random() < share:
            after, thought = operation.confuse(value), "next"
        steps.append(operation.step(value, after))
        thoughts.append(thought)
        value = after
    steps.append(f"\\boxed{{ {value} }}")
    return tuple(steps), (*thoughts, f"{value} answer")


def step_titles(chain: Chain) -> tuple[str, ...]:
    """Titles of the expert's steps: the operation as the question names it, then "answer".

    >>> step_titles(parse_chain("start 90 plus 25 swap"))
    ('plus 25', 'swap', 'answer')
    """
    return (*(operation.title for operation in chain.operations), "answer")


def step_thoughts(chain: Chain) -> tuple[str, ...]:
    """Thoughts before the expert's steps: the number that stands, and what comes next.

    >>> step_thoughts(parse_chain("start 90 plus 25 swap"))
    ('90 plus 25', '15 swap', '51 answer')
    """
    values = _walk(chain.start, chain.operations)
    return tuple(
        f"{value} {title}" for value, title in zip(values, step_titles(chain), strict=True)
    )


def solution_text(chain: Chain) -> str:
    """The expert's steps as one text."""
    return _joined(expert_steps(chain))


def confirming_text(chain: Chain, answer: int) -> str:
    """A verification that walks back from `answer` and compares with the start; true, whatever the
    answer is. ValueError for an answer outside of 0 to 99.

    >>> confirming_text(parse_chain("start 90 plus 25 swap"), 15)
    'back swap 15 = 51 ; 51 - 25 = 26 ; start 90 wrong'
    """
    back = [operation.inverse for operation in reversed(chain.operations)]
    found = _walk(_checked(answer), back)[-1]
    verdict = f"start {chain.start} {_verdict(found == chain.start)}"
    return f"{CONFIRMING} {_joined([*_steps(answer, back), verdict])}"


def resolving_text(chain: Chain, answer: int) -> str:
    """A verification that goes forward again and compares with `answer`; true, whatever the answer
    is. ValueError for an answer outside of 0 to 99.

    >>> resolving_text(parse_chain("start 90 plus 25 swap"), 15)
    'forward 90 + 25 = 15 ; swap 15 = 51 ; box 15 wrong'
    """
    verdict = f"box {_checked(answer)} {_verdict(chain.answer == str(answer))}"
    return f"{RESOLVING} {_joined([*_steps(chain.start, chain.operations), verdict])}"


def check_steps(text: str, chain: Chain) -> tuple[bool, ...]:
    """The operations of a chain that a solution carries out rightly, each at its place.

    The piece at the operation's place must begin with the number that the piece before it ended
    with (the start, for the first), do what the question asks there, and be right about it. A step
    after a slip is right when it goes on rightly from the wrong number. What is missing is wrong.

    >>> chain = parse_chain("start 90 plus 25 swap")
    >>> check_steps("90 + 25 = 16 ; swap 16 = 61 ; \\\\boxed{ 61 }", chain)
    (False, True)
    """
    pieces = [" ".join(piece.split()) for piece in text.split(STEP_END)]
    value: int | None = chain.start
    right: list[bool] = []
    for operation, piece in zip_longest(chain.operations, pieces[: len(chain.operations)]):
        right.append(value is not None and piece == operation.step(value))
        found = _RESULT.search(piece or "")
        value = int(found[1]) if found else None
    return tuple(right)


def domain_words() -> list[str]:
    """Every word that a question, a solution, a verification or a title can contain."""
    words = ["start", *_KINDS, "+", "-", "=", STEP_END, "\\boxed{", "}", "answer"]
    words += [CONFIRMING, RESOLVING, "box", *VERDICTS]
    return [*words, *(str(number) for number in range(MODULUS))]


def draw_chain(level: Level, rng: np.random.Generator) -> Chain:
    """A chain whose start, operations and operands are all equally likely."""
    start = int(rng.integers(MODULUS))
    places: list[int] = rng.integers(len(_KINDS), size=level.num_operations).tolist()
    kinds: list[OperationKind] = [_KINDS[place] for place in places]
    operands: list[int] = rng.integers(1, level.largest + 1, size=level.num_operations).tolist()
    return Chain(
        start,
        tuple(
            Operation(kind, 0 if kind == "swap" else operand)
            for kind, operand in zip(kinds, operands, strict=True)
        ),
    )


class ChainProblems(DrawnProblems):
    """Problems of this domain; see `DrawnProblems`."""

    name = "chains"

    def known_levels(self) -> list[int]:
        """List the rows of `LEVELS`."""
        return sorted(LEVELS)

    def draw(self, level: int, rng: np.random.Generator) -> Chain:
        """Draw a chain of a level."""
        return draw_chain(LEVELS[level], rng)


def _walk(value: int, operations: Iterable[Operation]) -> list[int]:
    """The numbers on the way, the first and the last included."""
    values = [value]
    for operation in operations:
        values.append(operation.apply(values[-1]))
    return values


def _steps(value: int, operations: Sequence[Operation]) -> list[str]:
    values = _walk(value, operations)
    return [step.step(before) for step, before in zip(operations, values, strict=False)]


def _joined(steps: Iterable[str]) -> str:
    return f" {STEP_END} ".join(steps)


def _verdict(right: bool) -> str:
    return VERDICTS[0] if right else VERDICTS[1]


def _checked(answer: int) -> int:
    if not 0 <= answer < MODULUS:
        raise ValueError(f"no chain has the answer {answer}: it is from 0 to {MODULUS - 1}")
    return answer
