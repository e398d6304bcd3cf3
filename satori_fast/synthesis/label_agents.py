# SPDX-License-Identifier: Apache-2.0
"""The agent of curation: who answers a question again, so that a data set's answer can be believed
where both agree (Satori, section 4.1: QwQ's answer).

Whether a label equals the answer is the grader's affair, as everywhere. Which questions are
labelled is the stage's.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from satori_fast.grading import GradingPool
from satori_fast.synthesis.agents import Unusable
from satori_fast.synthesis.journal import RecordedChat
from satori_fast.synthesis.language_agents import render, text_of
from satori_fast.synthesis.outcomes import Outcome, outcomes_in_order
from satori_fast.types import Problem

_LONGEST_SHOWN = 400  # characters of a reply, its end


class Labeller(Protocol):
    """Answers questions; it is not shown the data set's answer."""

    async def label(self, problem: Problem, *, sample: int) -> str:
        """A solution that ends with a boxed answer. sample: its number among those of the problem.
        Raises Unusable."""
        ...


class LanguageLabeller:
    """Implements `Labeller`. A model may think aloud: its last box counts."""

    def __init__(self, chat: RecordedChat) -> None:
        self._chat = chat

    async def label(self, problem: Problem, *, sample: int) -> str:
        prompt = render("labeller_solve", problem=problem.question)
        reply = await self._chat.ask(prompt, sample=sample)
        text = text_of(reply, "labeller")
        if reply.finish == "length":
            raise Unusable("labeller_cut_off", text[-_LONGEST_SHOWN:])
        return text


@dataclass(frozen=True, slots=True)
class ScriptedLabeller:
    """Implements `Labeller` for a built-in domain. answer: works a question out."""

    answer: Callable[[str], str]

    async def label(self, problem: Problem, *, sample: int) -> str:
        return f"\\boxed{{ {self.answer(problem.question)} }}"


def label_problems(
    problems: Iterable[Problem],
    labeller: Labeller,
    *,
    num_labels: int,
    agreement: int,
    pool: GradingPool,
    num_concurrent: int = 1,
) -> AsyncGenerator[Outcome, None]:
    """Yield the outcome of each problem, in their order, `num_concurrent` at work at once: nothing
    dropped where `agreement` of `num_labels` labels equal its answer, else one reason.

    The reason is the commonest one among the labels that do not agree, the first of equals. Counts:
    "labels/agree", and "labels/REASON" for the others. pool: decides equality.
    """

    async def work(problem: Problem) -> Outcome:
        outcome = Outcome(problem)
        numbers = range(num_labels)
        faults = await asyncio.gather(
            *(_fault(problem, labeller, sample=number, pool=pool) for number in numbers)
        )
        outcome.counts.update(
            "labels/agree" if fault is None else f"labels/{fault.reason}" for fault in faults
        )
        found = [fault for fault in faults if fault is not None]
        if num_labels - len(found) < agreement:
            ((reason, _),) = Counter(fault.reason for fault in found).most_common(1)
            outcome.drop(next(fault for fault in found if fault.reason == reason))
        return outcome

    return outcomes_in_order(work, problems, num_concurrent=num_concurrent)


async def _fault(
    problem: Problem, labeller: Labeller, *, sample: int, pool: GradingPool
) -> Unusable | None:
    """Why a label does not confirm the problem's answer; None where it does."""
    assert problem.answer is not None  # a rule of curation
    try:
        text = await labeller.label(problem, sample=sample)
    except Unusable as fault:
        return fault
    verdict = await asyncio.wrap_future(pool.submit(text, problem.answer))
    if verdict.correct:
        return None
    if verdict.extracted is None:
        return Unusable("labeller_no_answer", text[-_LONGEST_SHOWN:])
    return Unusable("labeller_disagrees", f"{verdict.extracted} instead of {problem.answer}")
