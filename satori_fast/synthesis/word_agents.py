# SPDX-License-Identifier: Apache-2.0
"""Scripted agents of Satori's data synthesis for word problems: a pupil who slips, and a critic who
looks at the story again.

Two demonstrations are in `data.word_actions`, with how such text reads. What the roles are asked
for is `agents`, and which domain has which agents is `scripted_agents`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from satori_fast.data.stories import Story, parse_story
from satori_fast.data.word_actions import (
    first_slip,
    is_answer,
    read_step,
    standing_steps,
    step_again,
    step_check,
    whole_check,
)
from satori_fast.data.word_problems import (
    Equation,
    answer_text,
    draw_slip,
    expert_steps,
    hasty_slip,
    miscalculation,
    right_equation,
    step_text,
)
from satori_fast.synthesis.agents import Critique, Solution, Unusable
from satori_fast.types import Problem

# Of the wrong solutions, those that are judged after their answer; the others at the slip.
_WHOLE_SHARE = 0.5
# Of the steps in which haste changes no operation, those that one in haste miscalculates.
_MISCALCULATED = 0.3


@dataclass(frozen=True, slots=True)
class SlippingPupil:
    """Scripted generator: a sentence for each event, then the answer.

    A solution from the question alone is right with probability `skill`: each of its L steps is,
    independently, with the L-th root of it. What is left after a check has fewer steps and is right
    more often. A slip is one of `data.word_problems.slips`, and the pupil goes on rightly from it.
    Slips never cancel, so that an answer is right only where every step is.

    One in haste subtracts where he has to divide and adds where he has to multiply, but for a share
    `skill` of these places, until he is corrected. A model that imitates him slips there as well
    when it takes the likeliest word, not by chance alone. Now and then he miscalculates elsewhere:
    a model that never sees such a slip found repeats results in its checks instead of calculating.
    """

    skill: float = 0.3
    in_haste: bool = False

    async def solve(
        self, problem: Problem, num_solutions: int, rng: np.random.Generator
    ) -> list[Solution]:
        story = parse_story(problem.question)
        return [self._steps(story, (), rng) for _ in range(num_solutions)]

    async def resume(
        self, problem: Problem, transcript: str, *, corrected: bool, rng: np.random.Generator
    ) -> Solution:
        story, standing = parse_story(problem.question), standing_steps(transcript)
        if is_answer(standing[-1]):
            return ()
        careful = corrected and self.in_haste
        return self._steps(story, standing, rng, share=1.0 if careful else None)

    def _steps(
        self,
        story: Story,
        standing: Sequence[str],
        rng: np.random.Generator,
        *,
        share: float | None = None,
    ) -> Solution:
        """The steps that follow those that stand. share: of those that are right, where he may
        slip."""
        if share is None:
            exponent = 1.0 if self.in_haste else 1 / len(story.events)
            share = float(self.skill**exponent)
        value = _result(standing[-1], "generator") if standing else story.start
        steps: list[str] = []
        for place in range(len(standing), len(story.events)):
            equation = right_equation(story, place, value)
            if equation is None:
                raise Unusable("generator_no_whole_number", story.clause(place))
            if rng.random() >= share:
                equation = self._slip(story, place, value, rng) or equation
            steps.append(step_text(story, place, equation))
            value = equation.result
        return (*steps, answer_text(value))

    def _slip(
        self, story: Story, place: int, value: int, rng: np.random.Generator
    ) -> Equation | None:
        if not self.in_haste:
            return draw_slip(story, place, value, rng)
        hasty = hasty_slip(story, place, value)
        if hasty is None and rng.random() < _MISCALCULATED:
            return miscalculation(story, place, value, rng)
        return hasty


@dataclass(frozen=True, slots=True)
class RereadingCritic:
    """Scripted critic: looks at the story again and does the equations again.

    Of a wrong solution it finds the first slip, either where that is, by a check of this one step,
    or after the answer, by a check of all steps up to it. The alternative is the step done rightly.
    """

    async def criticise(
        self, problem: Problem, steps: Solution, *, transcript: str, rng: np.random.Generator
    ) -> Critique:
        story = parse_story(problem.question)
        standing = standing_steps(transcript)
        written = [*standing, *(step for step in steps if not is_answer(step))]
        try:
            slip = first_slip(story, written)
            if slip is None or slip < len(standing):
                raise Unusable("critic_no_slip", steps[-1])
            value = story.start if slip == 0 else read_step(written[slip - 1]).result
            hint = step_again(story, slip, value)
            if rng.random() < _WHOLE_SHARE:
                return Critique(len(steps) - 1, whole_check(story, written[: slip + 1]), hint)
            return Critique(slip - len(standing), step_check(story, slip, written), hint)
        except ValueError as error:
            raise Unusable("critic_no_equation", str(error)) from None

    async def verify(self, problem: Problem, steps: Solution, *, rng: np.random.Generator) -> str:
        story = parse_story(problem.question)
        # A right solution has these steps, also those before a correction, which `steps` lack.
        right = expert_steps(story)[:-1]
        if is_answer(steps[-1]):
            return whole_check(story, right)
        try:
            if first_slip(story, steps) is not None:
                raise Unusable("critic_slip_in_right_solution", steps[-1])
        except ValueError as error:
            raise Unusable("critic_no_equation", str(error)) from None
        return step_check(story, len(steps) - 1, steps)


def _result(step: str, role: str) -> int:
    """The number that a step ends with. Raises Unusable for one without an equation."""
    try:
        return read_step(step).result
    except ValueError:
        raise Unusable(f"{role}_no_equation", step) from None
