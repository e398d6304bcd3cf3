# SPDX-License-Identifier: Apache-2.0
"""The agent of SRL's step data: who writes an expert's solution again as a list of titled steps
(arXiv 2510.25992, appendix B.3).

What steps become is `data.steps`; whether a solution is right is seen before it is rewritten, and
whether it still is afterwards. Which solutions are rewritten is the stage's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Protocol

from satori_fast.data.formats.steps import PAPER
from satori_fast.data.steps import ExpertStep, NoSteps, parse_steps
from satori_fast.grading import GradingPool
from satori_fast.synthesis.agents import Unusable
from satori_fast.synthesis.chat import ChatReply
from satori_fast.synthesis.journal import RecordedChat
from satori_fast.synthesis.language_agents import render, usable_text
from satori_fast.synthesis.outcomes import Outcome, outcomes_in_order
from satori_fast.types import Demonstration

REWRITTEN = "rewritten"


class StepRewriter(Protocol):
    """Writes solutions again as steps, without solving anything itself."""

    async def rewrite(self, demonstration: Demonstration) -> tuple[ExpertStep, ...]:
        """The steps of a solution, the last of which states the answer. Raises Unusable."""
        ...


class LanguageRewriter:
    """Implements `StepRewriter`, with two examples in the prompt."""

    def __init__(self, chat: RecordedChat) -> None:
        self._chat = chat

    async def rewrite(self, demonstration: Demonstration) -> tuple[ExpertStep, ...]:
        question, solution = demonstration.problem.question, demonstration.response
        prompt = render("rewrite_steps", problem=question, solution=solution)
        return read_steps(await self._chat.ask(prompt))


def read_steps(reply: ChatReply) -> tuple[ExpertStep, ...]:
    """Read the steps of a reply. Raises Unusable, also for one that was cut off."""
    text = usable_text(reply, "rewriter")
    if reply.finish == "length":
        raise Unusable("rewriter_cut_off", reply.text)
    try:
        return parse_steps(text, "numbered")
    except NoSteps as fault:
        raise Unusable(f"rewriter_{fault.reason}", text) from None


def rewrite_solutions(
    solutions: Iterable[Demonstration],
    rewriter: StepRewriter,
    *,
    pool: GradingPool,
    num_concurrent: int = 1,
) -> AsyncGenerator[Outcome, None]:
    """Yield the outcome of each solution, in their order, `num_concurrent` at work at once: one
    demonstration, the same solution as lines `N. **Title** text`, or the reason why there is none.

    pool: grades what was written, where the problem has an answer: a rewriter must not change it.
    """

    async def work(solution: Demonstration) -> Outcome:
        outcome = Outcome(solution.problem)
        try:
            written = await _rewritten(solution, rewriter, pool)
        except Unusable as fault:
            outcome.drop(fault)
        else:
            outcome.demonstrations.append(Demonstration(solution.problem, written, REWRITTEN))
            outcome.counts[f"trajectories/{REWRITTEN}"] += 1
        return outcome

    return outcomes_in_order(work, solutions, num_concurrent=num_concurrent)


def steps_of(outcome: Outcome) -> tuple[ExpertStep, ...]:
    """The steps of a rewritten solution. Raises NoSteps with the reason why there are none."""
    for demonstration in outcome.demonstrations:
        return parse_steps(demonstration.response, "numbered")
    ((reason, text),) = outcome.faults.items()
    raise NoSteps(reason, text)


async def _rewritten(solution: Demonstration, rewriter: StepRewriter, pool: GradingPool) -> str:
    """The lines of a rewritten solution. Raises Unusable."""
    steps = await rewriter.rewrite(solution)
    written = PAPER.whole((step.title, step.text) for step in steps)
    answer = solution.problem.answer
    if answer is not None:
        verdict = await asyncio.wrap_future(pool.submit(written, answer))
        if not verdict.correct:
            raise Unusable("rewriter_wrong_answer", written)
    return written
