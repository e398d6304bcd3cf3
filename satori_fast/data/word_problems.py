# SPDX-License-Identifier: Apache-2.0
"""A built-in domain for language models: word problems of one to three steps in plain English.

    question:     Mia keeps 14 shells in a box. She finds 10 more in the attic. Later, Mia gives
                  half of them to Leo. How many shells does she have in the end?
    solution:     She finds 10 more, so she has 14 + 10 = 24 shells. She gives half of them to Leo,
                  so she has 24 / 2 = 12 shells. The answer is \\boxed{12}.
    confirming:   I go back from 12: 12 * 2 = 24, 24 - 10 = 14. The story begins with 14, so the
                  answer is correct.
    re-solving:   I solve it again: 14 + 10 = 24, 24 / 2 = 12. That is the same, so the answer is
                  correct.

The level is the number of steps; levels 4 and 5 are those of 2 and 3 steps with an aside, a number
that nothing follows from, levels 6 to 8 those of 1 to 3 steps with numbers up to 20, and levels 9
to 11 with numbers up to 10, which a model of 100 M parameters can calculate with. Whoever solves
them slips in three ways: takes the wrong operation, takes the wrong number of the story, or
calculates wrongly (`slips`).

What is written in a step beside its equation is for the reader: an equation is all that is looked
at. Stories and their sentences are `stories`; drawing, splitting and numbering problems is
`drawn_problems`; chain of action thought is `word_actions`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeVar

import numpy as np

from satori_fast.data.drawn_problems import DrawnProblems
from satori_fast.data.stories import (
    ASIDES,
    KINDS,
    NAMES,
    OPENERS,
    SIGNS,
    SMALLEST,
    THEMES,
    Aside,
    Event,
    Kind,
    Story,
    Theme,
    calculate,
    said,
)

T = TypeVar("T")
CONFIRMING = "I go back from"
RESOLVING = "I solve it again:"
SlipKind = Literal["operation", "number", "result"]
_KIND_OF_SIGN: Mapping[str, Kind] = MappingProxyType({sign: kind for kind, sign in SIGNS.items()})
_INVERSE: Mapping[Kind, Kind] = MappingProxyType(
    {"add": "subtract", "subtract": "add", "multiply": "divide", "divide": "multiply"}
)
# Spaces as they come: models that are trained write some sides without.
_EQUATION = re.compile(r"([0-9]+) *([-+*/]) *([0-9]+) *= *([0-9]+)")
_LARGEST_START, _LARGEST_CHANGE, _LARGEST, _SMALL, _TINY = 60, 60, 150, 20, 10
_LARGEST_FACTOR, _LARGEST_DIVISOR, _LARGEST_ASIDE = 6, 9, 40
_LARGEST_START_OF_PACKS = 20
_LARGEST_WRONG = 300  # a pupil sees that 18 dollars do not become 756
# By how much a result is off that is calculated wrongly: by one of the likely errors where the rest
# of the story allows it. Of the others one always fits: twice a later divisor in either direction.
_LIKELY_ERRORS = (-10, -2, -1, 1, 2, 10)
_OTHER_ERRORS = tuple(range(-2 * _LARGEST_DIVISOR, 2 * _LARGEST_DIVISOR + 1))


@dataclass(frozen=True, slots=True)
class Level:
    """A difficulty: how many steps, whether there is a number that nothing follows from, and the
    largest quantity."""

    num_steps: int
    has_aside: bool = False
    largest: int = _LARGEST


LEVELS = {
    1: Level(1),
    2: Level(2),
    3: Level(3),
    4: Level(2, has_aside=True),
    5: Level(3, has_aside=True),
    6: Level(1, largest=_SMALL),
    7: Level(2, largest=_SMALL),
    8: Level(3, largest=_SMALL),
    9: Level(1, largest=_TINY),
    10: Level(2, largest=_TINY),
    11: Level(3, largest=_TINY),
}


@dataclass(frozen=True, slots=True)
class Equation:
    """One operation as it is written: ``14 + 9 = 23``."""

    value: int
    kind: Kind
    number: int
    result: int

    def __str__(self) -> str:
        return f"{self.value} {SIGNS[self.kind]} {self.number} = {self.result}"

    @property
    def is_true(self) -> bool:
        """Whether its left side is its right side."""
        return calculate(self.value, self.kind, self.number) == self.result


def equations(text: str) -> list[Equation]:
    """Every equation of a text, in order.

    >>> [str(each) for each in equations("She has 14 + 9 =23, then 23 / 2 = 12 shells.")]
    ['14 + 9 = 23', '23 / 2 = 12']
    """
    return [
        Equation(int(value), _KIND_OF_SIGN[sign], int(number), int(result))
        for value, sign, number, result in _EQUATION.findall(text)
    ]


def right_equation(story: Story, place: int, value: int) -> Equation | None:
    """The equation of an event where the quantity before it is `value`; None where that has no
    result in whole numbers from 0."""
    event = story.events[place]
    result = calculate(value, event.kind, event.number)
    return None if result is None else Equation(value, event.kind, event.number, result)


def right_equations(story: Story) -> list[Equation]:
    """The equations of the right solution."""
    pairs = zip(story.events, story.values, story.values[1:], strict=False)
    return [Equation(value, event.kind, event.number, after) for event, value, after in pairs]


# --- solutions -----------------------------------------------------------------------------------


def step_text(story: Story, place: int, equation: Equation) -> str:
    """A step of a solution: what the story says happens, and what follows from it."""
    return f"{_capital(story.clause(place))}, so {story.state(str(equation))}."


def answer_text(value: int | str) -> str:
    """The last step of a solution."""
    return f"The answer is \\boxed{{{value}}}."


def expert_steps(story: Story) -> tuple[str, ...]:
    """The solution step by step: one sentence for each event, then the answer."""
    steps = [step_text(story, place, each) for place, each in enumerate(right_equations(story))]
    return (*steps, answer_text(story.answer))


def solution_text(story: Story) -> str:
    """The expert's steps as one text."""
    return " ".join(expert_steps(story))


def step_titles(story: Story) -> tuple[str, ...]:
    """Titles of the expert's steps: what is done with which number, then "Give the answer"."""
    words = {"add": "Add", "subtract": "Subtract", "multiply": "Multiply by", "divide": "Divide by"}
    return (*(f"{words[each.kind]} {each.number}" for each in story.events), "Give the answer")


def step_thoughts(story: Story, values: Sequence[int] | None = None) -> tuple[str, ...]:
    """Thoughts before the steps: what the story says, and what that asks for. values: the quantity
    before each step, as it was found; None: the right one."""
    values = story.values if values is None else values
    told = [f"{_capital(story.clause(place))}." for place in range(len(story.events))]
    asked = [_asked(event, value) for event, value in zip(story.events, values, strict=False)]
    thoughts = [f"{fact} {what}" for fact, what in zip(told, asked, strict=True)]
    return (*thoughts, f"That was all of it, and {values[-1]} is left.")


def careless_steps(
    story: Story, share: float, rng: np.random.Generator
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Steps, and thoughts before them, of a pupil who looks back at the story and is right, but who
    with probability `share` does not look, and slips. He goes on from the number that he has."""
    values, steps = [story.start], list[str]()
    looked: list[bool] = []
    for place in range(len(story.events)):
        looked.append(rng.random() >= share)
        equation = right_equation(story, place, values[-1])
        assert equation is not None  # a slip leaves a number that the story can go on from
        if not looked[-1]:
            equation = draw_slip(story, place, values[-1], rng)
        steps.append(step_text(story, place, equation))
        values.append(equation.result)
    thoughts = step_thoughts(story, values)
    shown = [t if seen else "Next." for t, seen in zip(thoughts, [*looked, True], strict=True)]
    return (*steps, answer_text(values[-1])), tuple(shown)


# --- slips ---------------------------------------------------------------------------------------


def slips(story: Story, place: int, value: int) -> dict[SlipKind, list[Equation]]:
    """The wrong equations that somebody may write for an event where he has `value` before it.

    operation: another operation with the right number. number: the right operation with another
    number of the story. result: the right left side with another result, off by 1, 2 or 10 where
    that is possible.

    Only those from which the rest of the story can be calculated, and whose result is not the right
    solution's at that place: so slips never cancel. Of "result" there is always one.
    """
    event, right = story.events[place], right_equation(story, place, value)
    assert right is not None
    others: list[Kind] = [kind for kind in KINDS if kind != event.kind]
    numbers = sorted(set(story.numbers) - {event.number})
    written = (
        _calculated((value, kind, event.number) for kind in others),
        _calculated((value, event.kind, number) for number in numbers),
        [replace(right, result=right.result + error) for error in _LIKELY_ERRORS],
        [replace(right, result=right.result + error) for error in _OTHER_ERRORS if error],
    )
    truth = story.values[place + 1]
    operation, number, likely, other = (
        [each for each in equations if _leads_on(story, place, each.result, truth)]
        for equations in written
    )
    return {"operation": operation, "number": number, "result": likely or other}


def draw_slip(story: Story, place: int, value: int, rng: np.random.Generator) -> Equation:
    """One of the slips: their kinds are equally likely, where there is one of the kind."""
    possible = [each for each in slips(story, place, value).values() if each]
    return _one_of(_one_of(possible, rng), rng)


def hasty_slip(story: Story, place: int, value: int) -> Equation | None:
    """The slip of somebody in haste in an event: he subtracts where he had to divide, and adds
    where he had to multiply. None where he is right, or where the rest of the story could not be
    calculated from it."""
    hasty: dict[Kind, Kind] = {"divide": "subtract", "multiply": "add"}
    wrong = hasty.get(story.events[place].kind)
    return next((e for e in slips(story, place, value)["operation"] if e.kind == wrong), None)


def miscalculation(story: Story, place: int, value: int, rng: np.random.Generator) -> Equation:
    """A slip that has the right left side and another result."""
    return _one_of(slips(story, place, value)["result"], rng)


def _calculated(sides: Iterable[tuple[int, Kind, int]]) -> list[Equation]:
    found = [(side, calculate(*side)) for side in sides]
    return [Equation(*side, result) for side, result in found if result is not None]


def _leads_on(story: Story, place: int, result: int, truth: int) -> bool:
    """Whether the rest of the story can be calculated from a wrong result of an event."""
    value: int | None = result if result >= SMALLEST and result != truth else None
    for event in story.events[place + 1 :]:
        if value is None or value > _LARGEST_WRONG:
            return False
        value = event.apply(value)
    return value is not None and value <= _LARGEST_WRONG


# --- verifications -------------------------------------------------------------------------------


def confirming_text(story: Story, answer: int, *, slips: bool = False) -> str:
    """A verification that goes back from `answer` and compares with the beginning; true, whatever
    the answer is. slips: its last result is wrong, and so is its verdict, unless going back ends
    before."""
    back, value = list[str](), answer
    for event in reversed(story.events):
        kind = _INVERSE[event.kind]
        result = calculate(value, kind, event.number)
        if result is None:
            side = f"{value} {SIGNS[kind]} {event.number}"
            back.append(f"{side} is {'no whole number' if kind == 'divide' else 'below zero'}")
            return f"{CONFIRMING} {answer}: {', '.join(back)}. So {_verdict(False)}."
        if slips and event is story.events[0]:
            result = story.start + (result == story.start)
        back.append(str(Equation(value, kind, event.number, result)))
        value = result
    begins = f"The story begins with {story.start}, so {_verdict(value == story.start)}."
    return f"{CONFIRMING} {answer}: {', '.join(back)}. {begins}"


def resolving_text(story: Story, answer: int, *, slips: bool = False) -> str:
    """A verification that solves the problem again and compares with `answer`; true, whatever the
    answer is. slips: its last result is wrong, and so is its verdict."""
    written, is_right = right_equations(story), story.answer == str(answer)
    if slips:
        written[-1] = replace(written[-1], result=answer + is_right)
        is_right = not is_right
    again = ", ".join(map(str, written))
    compared = "That is the same" if is_right else f"That is not {answer}"
    return f"{RESOLVING} {again}. {compared}, so {_verdict(is_right)}."


def _verdict(is_right: bool) -> str:
    return f"the answer is {'correct' if is_right else 'incorrect'}"


def _asked(event: Event, value: int) -> str:
    words = {
        "add": f"So I add {event.number} to {value}.",
        "subtract": f"So I subtract {event.number} from {value}.",
        "multiply": f"So I multiply {value} by {event.number}.",
        "divide": f"So I divide {value} by {event.number}.",
    }
    return words[event.kind]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


# --- drawing -------------------------------------------------------------------------------------


def draw_story(level: Level, rng: np.random.Generator) -> Story:
    """A story whose theme, wordings and numbers are all equally likely, as far as they fit: at most
    one multiplication and one division, and the quantity between 2 and the level's largest."""
    name = _one_of(tuple(THEMES), rng)
    theme = THEMES[name]
    largest = (
        min(_LARGEST_START, level.largest)
        if theme.first is None
        else min(_LARGEST_START_OF_PACKS, level.largest // SMALLEST)
    )
    places: list[int] = rng.permutation(len(NAMES))[:2].tolist()
    person, other = (NAMES[place] for place in places)
    story = Story(
        name,
        int(rng.integers(SMALLEST, largest + 1)),
        (),
        _one_of(theme.things, rng),
        person,
        other,
        _one_of(theme.places, rng) if theme.places else "",
        begin=int(rng.integers(len(theme.begin))),
        ask=int(rng.integers(len(theme.ask))),
    )
    for _ in range(level.num_steps):
        event = _draw_event(theme, story, level.largest, rng)
        story = replace(story, events=(*story.events, event))
    if level.has_aside:
        number = int(rng.integers(SMALLEST, _LARGEST_ASIDE + 1))
        is_last = bool(rng.random() < 0.5)
        aside = Aside(int(rng.integers(len(ASIDES))), number, is_last=is_last)
        story = replace(story, aside=aside)
    return said(story)


def _draw_event(theme: Theme, story: Story, most: int, rng: np.random.Generator) -> Event:
    value, told = story.values[-1], {event.kind for event in story.events}
    said_before = {(event.kind, event.wording) for event in story.events}
    possible: dict[Kind, list[tuple[int, list[int]]]] = {}
    for kind in (theme.first,) if theme.first and not told else KINDS:
        if kind in told and kind in ("multiply", "divide"):
            continue
        for wording in range(len(theme.wordings(kind))):
            fixed = theme.fixed_number(kind, wording)
            numbers = [n for n in _numbers(value, kind, most) if fixed in (None, n)]
            if numbers and (kind, wording) not in said_before:
                possible.setdefault(kind, []).append((wording, numbers))
    kind = _one_of(tuple(possible), rng)
    wording, numbers = _one_of(possible[kind], rng)
    number = _one_of(numbers, rng)
    opener = int(rng.integers(len(OPENERS))) if story.events else 0
    is_named = "{she}" in theme.wordings(kind)[wording] and rng.random() < 0.3
    return Event(kind, number, wording, opener, named=bool(is_named))


def _numbers(value: int, kind: Kind, most: int) -> Iterator[int]:
    """The numbers with which an event of a kind leaves a quantity from `SMALLEST` to `most`."""
    largest = {
        "add": min(_LARGEST_CHANGE, most - value),
        "subtract": min(_LARGEST_CHANGE, value - SMALLEST),
        "multiply": min(_LARGEST_FACTOR, most // value),
        "divide": min(_LARGEST_DIVISOR, value // SMALLEST),
    }[kind]
    for number in range(SMALLEST, largest + 1):
        if kind != "divide" or value % number == 0:
            yield number


def _one_of(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]


class WordProblems(DrawnProblems):
    """Problems of this domain; see `DrawnProblems`."""

    name = "word_problems"

    def known_levels(self) -> list[int]:
        """List the rows of `LEVELS`."""
        return sorted(LEVELS)

    def draw(self, level: int, rng: np.random.Generator) -> Story:
        """Draw a story of a level."""
        return draw_story(LEVELS[level], rng)
