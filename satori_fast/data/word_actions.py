# SPDX-License-Identifier: Apache-2.0
"""Word problems as chain of action thought: a sentence an action, checks that say what is wrong.

    He earns 9 dollars, so he has 14 + 9 = 23 dollars.<|continue|> He spends 5 dollars on a book, so
    he has 23 + 5 = 28 dollars.<|reflect|> Let me check this step: he spends 5 dollars on a book, so
    it is 23 - 5 = 18. That is wrong, I have to subtract and not to add.<|explore|> I do this step
    again: he spends 5 dollars on a book, so he has 23 - 5 = 18 dollars.<|continue|> The answer is
    \\boxed{18}.

After an answer a check goes through all that led there, up to the first step that is wrong:

    ... The answer is \\boxed{28}.<|reflect|> Let me check all steps: 14 + 9 = 23, 23 - 5 = 18. That
    is wrong, I have to subtract and not to add.<|explore|> I do this step again: ...

Of all this only equations are read. Problems, steps and slips are `word_problems`; who writes such
responses is `synthesis.word_agents`.
"""

from __future__ import annotations

from collections.abc import Sequence

from satori_fast.data.step_actions import StepReader
from satori_fast.data.stories import Story, parse_story
from satori_fast.data.word_problems import Equation, equations, right_equation

_RIGHT = "That is right."


def is_answer(step: str) -> bool:
    """Whether a step states the answer, and is no equation."""
    return "\\boxed" in step


def read_step(text: str) -> Equation:
    """Read the one equation of a step. Raises ValueError for a text without one, or with several.

    >>> read_step("He earns 9 dollars, so he has 14 + 9 = 24 dollars.").result
    24
    """
    found = equations(text)
    if len(found) != 1:
        raise ValueError(f"not a step with one equation: {text!r}")
    return found[0]


def first_slip(story: Story, steps: Sequence[str]) -> int | None:
    """The place of the first wrong step, None where all are right. steps: those of a solution from
    its beginning, the answer not counted. Raises ValueError for a step without an equation."""
    for place, expected in enumerate(_expected(story, steps)):
        if read_step(steps[place]) != expected:
            return place
    return None


def step_check(story: Story, place: int, steps: Sequence[str]) -> str:
    """A reflection on one step: the story looked at again, the equation done again, a verdict.

    place: of the step, the last of `steps`, which are those of a solution from its beginning.
    ValueError where the event has no result in whole numbers there."""
    expected = _expected(story, steps)[place]
    written = read_step(steps[place])
    again = f"{story.clause(place)}, so it is {expected}."
    return f"Let me check this step: {again} {_judgement(written, expected)}"


def whole_check(story: Story, steps: Sequence[str]) -> str:
    """A reflection on a solution, the answer not counted: its equations done again, up to the first
    that is wrong, and a verdict."""
    expected, slip = _expected(story, steps), first_slip(story, steps)
    last = len(steps) - 1 if slip is None else slip
    again = ", ".join(map(str, expected[: last + 1]))
    judgement = _judgement(read_step(steps[last]), expected[last])
    return f"Let me check all steps: {again}. {judgement}"


def step_again(story: Story, place: int, value: int) -> str:
    """An exploration: a step done rightly from the quantity before it."""
    equation = right_equation(story, place, value)
    assert equation is not None, (story, place, value)
    return f"I do this step again: {story.clause(place)}, so {story.state(str(equation))}."


_STEPS = StepReader(is_answer, lambda check: len(equations(check)))


def standing_steps(text: str) -> tuple[str, ...]:
    """List the steps that stand at the end of a response; see `StepReader`."""
    return _STEPS.standing_steps(text)


def slip_counts(question: str, response: str) -> dict[str, float]:
    """Count the slips in a response, and those that a local check mends; see `StepReader`.

    A slip is a step whose equation is not the one that the event at its place asks for after the
    step before it, or that has none.
    """
    story = parse_story(question)

    def is_right(steps: Sequence[str]) -> bool:
        found = [equations(step) for step in steps[-2:]]
        value = story.start if len(steps) == 1 else found[0][-1].result if found[0] else None
        expected = None if value is None else right_equation(story, len(steps) - 1, value)
        return found[-1] == [expected]

    return _STEPS.slip_counts(response, len(story.events), is_right)


def _expected(story: Story, steps: Sequence[str]) -> list[Equation]:
    """The equations that the events ask for, each after the step that is written before it.
    ValueError where one has no result in whole numbers, or where there are too many steps."""
    values = [story.start, *(read_step(step).result for step in steps[:-1])]
    expected = [
        right_equation(story, place, value)
        for place, value in zip(range(len(story.events)), values, strict=False)
    ]
    found = [each for each in expected if each is not None]
    if len(found) < len(steps):
        raise ValueError(f"not the steps of a solution: {list(steps)}")
    return found


def _judgement(written: Equation, expected: Equation) -> str:
    if written == expected:
        return _RIGHT
    if written.kind != expected.kind:
        return f"That is wrong, I have to {expected.kind} and not to {written.kind}."
    if written.number != expected.number:
        return f"That is wrong, the number is {expected.number} and not {written.number}."
    if written.value != expected.value:
        return f"That is wrong, I have to go on from {expected.value}."
    return f"That is wrong, it is not {written.result}."
