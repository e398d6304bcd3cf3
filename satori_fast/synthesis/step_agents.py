# SPDX-License-Identifier: Apache-2.0
"""The agent of SRL's step data: who writes an expert's solution again as a list of titled steps
(arXiv 2510.25992, appendix B.3).

What steps become is `data.steps`; whether a solution is right is seen before it is rewritten.
"""

from __future__ import annotations

from typing import Protocol

from satori_fast.data.steps import ExpertStep, NoSteps, parse_steps
from satori_fast.synthesis.agents import Unusable
from satori_fast.synthesis.chat import ChatReply
from satori_fast.synthesis.journal import RecordedChat
from satori_fast.synthesis.language_agents import render, usable_text
from satori_fast.types import Demonstration


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
