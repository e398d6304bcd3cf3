# SPDX-License-Identifier: Apache-2.0
"""The built-in domain: find the numbers that add up. Made on the fly, with room for search.

    question:     p 7 q 1 r 9 s 4 t 8 u 3 pick 3 sum 24
    answer:       p r t                      (the only three names whose numbers add up to 24)
    check:        7 + 9 = 16 + 8 = 24 right
    part check:   7 + 9 = 16 left 8
    bare check:   right

Finding the three takes search; checking three takes two additions. A check that looks every name up
again and recomputes the sum catches every way to be wrong: a wrong number, a wrong sum, a name that
was not given. Names stand for numbers so that an answer is short and has one form.

Drawing, splitting and numbering problems is `drawn_problems`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from satori_fast.data.drawn_problems import DrawnProblems, is_held_out

NAMES = ("p", "q", "r", "s", "t", "u", "v", "w")
VERDICTS = ("right", "over", "under")
HINTS = ("less", "more")


@dataclass(frozen=True, slots=True)
class Level:
    """A difficulty: `num_picked` of `num_given` distinct numbers between 1 and `largest`."""

    num_given: int
    num_picked: int
    largest: int


LEVELS = {
    1: Level(num_given=4, num_picked=2, largest=9),
    2: Level(num_given=5, num_picked=3, largest=9),
    3: Level(num_given=6, num_picked=3, largest=9),
    4: Level(num_given=6, num_picked=3, largest=20),
    5: Level(num_given=8, num_picked=4, largest=20),
}


@dataclass(frozen=True, slots=True)
class Puzzle:
    """The content of a problem: numbers in the order given, how many to pick, their sum."""

    numbers: tuple[int, ...]
    num_picked: int
    total: int

    @property
    def question(self) -> str:
        given = " ".join(f"{name} {n}" for name, n in zip(NAMES, self.numbers, strict=False))
        return f"{given} pick {self.num_picked} sum {self.total}"

    def add(self, choice: Sequence[int]) -> int:
        """Sum of the numbers at the chosen positions."""
        return sum(self.numbers[i] for i in choice)

    @property
    def solutions(self) -> list[tuple[int, ...]]:
        """Every choice of positions, ascending, whose numbers add up to `total`."""
        return [
            choice
            for choice in combinations(range(len(self.numbers)), self.num_picked)
            if self.add(choice) == self.total
        ]

    @property
    def answer(self) -> str:
        """The first of the solutions, by names."""
        return name_answer(self.solutions[0])

    @property
    def heldout(self) -> bool:
        """Whether a puzzle is held out: by content, so the order of its numbers does not matter."""
        return is_held_out(f"{sorted(self.numbers)} {self.num_picked} {self.total}")


def parse_puzzle(question: str) -> Puzzle:
    """The puzzle of a question text. Raises ValueError when the text is not of this domain.

    >>> parse_puzzle("p 7 q 1 r 9 pick 2 sum 8").numbers
    (7, 1, 9)
    """
    words = question.split()
    try:
        at = words.index("pick")
        numbers = tuple(int(word) for word in words[1:at:2])
        puzzle = Puzzle(numbers, int(words[at + 1]), int(words[at + 3]))
    except (ValueError, IndexError):
        puzzle = None
    if puzzle is None or puzzle.question != question:
        raise ValueError(f"not a problem of the built-in domain: {question!r}")
    return puzzle


def name_answer(choice: Sequence[int]) -> str:
    """Positions to answer text: ``(0, 2, 4)`` -> ``"p r t"``."""
    return " ".join(NAMES[i] for i in choice)


def parse_answer(answer: str, puzzle: Puzzle) -> tuple[int, ...] | None:
    """Answer text to positions, or None when it names something not given, twice, or too few."""
    words = answer.split()
    known = NAMES[: len(puzzle.numbers)]
    if len(words) != puzzle.num_picked or len(set(words)) != len(words):
        return None
    return tuple(known.index(w) for w in words) if all(w in known for w in words) else None


def check_text(choice: Sequence[int], puzzle: Puzzle) -> str:
    """Look a choice up in the question again, add, and judge: the verdict of a whole choice, or
    what is left to find of a part of one.

    >>> check_text((0, 2), parse_puzzle("p 7 q 1 r 9 pick 2 sum 8"))
    '7 + 9 = 16 over'
    >>> check_text((0,), parse_puzzle("p 7 q 1 r 9 pick 2 sum 8"))
    '7 left 1'
    """
    running = puzzle.numbers[choice[0]]
    words = [str(running)]
    for i in choice[1:]:
        running += puzzle.numbers[i]
        words += ["+", str(puzzle.numbers[i]), "=", str(running)]
    return " ".join([*words, bare_check_text(choice, puzzle)])


def bare_check_text(choice: Sequence[int], puzzle: Puzzle) -> str:
    """Say what `check_text` ends with, without the sum that shows it: a verdict to be believed.

    >>> bare_check_text((0, 2), parse_puzzle("p 7 q 1 r 9 pick 2 sum 8"))
    'over'
    >>> bare_check_text((0,), parse_puzzle("p 7 q 1 r 9 pick 2 sum 8"))
    'left 1'
    """
    found = puzzle.add(choice)
    if len(choice) < puzzle.num_picked:
        return f"left {puzzle.total - found}"
    return verdict(found, puzzle.total)


def verdict(found: int, total: int) -> str:
    """ "right", "over" or "under"."""
    return "right" if found == total else "over" if found > total else "under"


def expert_steps(puzzle: Puzzle) -> tuple[str, ...]:
    """The solution step by step: take a number, say what is left, then answer.

    >>> expert_steps(parse_puzzle("p 7 q 1 r 9 pick 2 sum 8"))
    ('take p 7 left 1', 'take q 1 left 0', '\\\\boxed{ p q }')
    """
    (choice, *_) = puzzle.solutions
    left = puzzle.total
    steps: list[str] = []
    for i in choice:
        left -= puzzle.numbers[i]
        steps.append(f"take {NAMES[i]} {puzzle.numbers[i]} left {left}")
    return (*steps, f"\\boxed{{ {name_answer(choice)} }}")


def domain_words() -> list[str]:
    """Every word that a question, an answer, a check, a hint or an expert step can contain."""
    largest = max(level.largest * level.num_picked for level in LEVELS.values())
    words = [*NAMES, *VERDICTS, "pick", "sum", "take", "left", "\\boxed{", "}", "+", "=", *HINTS]
    return [*words, *(str(n) for n in range(largest + 1))]


def draw_puzzle(level: Level, rng: np.random.Generator) -> Puzzle:
    """A puzzle with exactly one solution."""
    while True:
        given = tuple(int(n) + 1 for n in rng.permutation(level.largest)[: level.num_given])
        choice: list[int] = rng.permutation(level.num_given)[: level.num_picked].tolist()
        puzzle = Puzzle(given, level.num_picked, sum(given[i] for i in choice))
        if len(puzzle.solutions) == 1:
            return puzzle


class ArithmeticProblems(DrawnProblems):
    """Problems of this domain; see `DrawnProblems`."""

    name = "arithmetic"

    def known_levels(self) -> list[int]:
        """List the rows of `LEVELS`."""
        return sorted(LEVELS)

    def draw(self, level: int, rng: np.random.Generator) -> Puzzle:
        """Draw a puzzle of a level."""
        return draw_puzzle(LEVELS[level], rng)
