# SPDX-License-Identifier: Apache-2.0
"""The rewriter of solutions: what it is asked, which replies are steps, and what becomes of many
solutions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from satori_fast.data.steps import ExpertStep, NoSteps, parse_steps
from satori_fast.grading import GradingPool
from satori_fast.synthesis.chat import ChatReply
from satori_fast.synthesis.language_agents import render
from satori_fast.synthesis.outcomes import Outcome
from satori_fast.synthesis.step_agents import (
    LanguageRewriter,
    read_steps,
    rewrite_solutions,
    steps_of,
)
from satori_fast.types import Demonstration, Problem
from tests.synthesis.test_language_agents import Listening, played, reason_of

GIVEN = Demonstration(Problem("p", "What is {{ 2 }} + 2?", "4"), "2+2, hmm, is 4. So 4.")
REPLY = "SOLUTION:\n1. **Add** 2 + 2 = 4.\n2. **State the answer** \\boxed{4}\n"


def test_a_solution_is_written_again_as_steps(tmp_path: Path) -> None:
    model = Listening(REPLY)
    steps = played(tmp_path, model, lambda chat, rng: LanguageRewriter(chat).rewrite(GIVEN))
    assert steps == (
        ExpertStep("Add", "2 + 2 = 4."),
        ExpertStep("State the answer", "\\boxed{4}"),
    )
    (request,) = model.requests
    assert "Problem: What is {{ 2 }} + 2?\nGiven solution: 2+2, hmm" in request.prompt


def test_the_examples_of_the_prompt_are_of_the_form_that_is_asked_for() -> None:
    prompt = render("rewrite_steps", problem="p", solution="s")
    examples = prompt.split("SOLUTION:\n")[1:]
    assert len(examples) == 2
    for example in examples:
        steps = parse_steps(example.partition("\n\n")[0], "numbered")
        assert "boxed" in steps[-1].text and len(steps) > 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (ChatReply("It is 4."), "rewriter_no_steps"),
        (ChatReply("1. **Add** a\n3. **Answer** b"), "rewriter_out_of_order"),
        (ChatReply("1. **Add**\n2. **Answer** b"), "rewriter_title_without_text"),
        (ChatReply(REPLY, "length"), "rewriter_cut_off"),
        (ChatReply("no", "refused"), "rewriter_refused"),
        (ChatReply("1. **Add** as the reference solution says"), "rewriter_leak"),
    ],
)
def test_replies_that_are_no_steps(reply: ChatReply, reason: str) -> None:
    assert reason_of(lambda: read_steps(reply)) == reason


class Scripted:
    """Writes what a table says; the earlier a problem, the longer it takes."""

    def __init__(self, replies: dict[str, str]) -> None:
        self._replies = replies

    async def rewrite(self, demonstration: Demonstration) -> tuple[ExpertStep, ...]:
        asked = demonstration.problem.problem_id
        await asyncio.sleep(0.01 * (len(self._replies) - list(self._replies).index(asked)))
        return read_steps(ChatReply(self._replies[asked]))


def test_each_solution_comes_in_its_place_with_steps_or_a_reason() -> None:
    replies = {
        "right": REPLY,
        "none": "It is 4.",
        "changed": REPLY.replace("4", "5"),
        "same": "1. **Add:** 2 + 2\n\n= 4.\n2. **Answer** It is \\boxed{4.0}",
        "open": REPLY.replace("4", "5"),
    }
    given = [
        Demonstration(Problem(name, "What is 2 + 2?", None if name == "open" else "4"), "So 4.")
        for name in replies
    ]

    async def outcomes(pool: GradingPool) -> list[Outcome]:
        found = rewrite_solutions(given, Scripted(replies), pool=pool, num_concurrent=3)
        return [outcome async for outcome in found]

    with GradingPool(0, 5.0) as pool:
        right, none, changed, same, unanswered = asyncio.run(outcomes(pool))
    assert [d.response for d in right.demonstrations] == [REPLY.strip().partition("\n")[2]]
    assert steps_of(same) == (
        ExpertStep("Add", "2 + 2\n\n= 4."),
        ExpertStep("Answer", "It is \\boxed{4.0}"),
    )
    assert len(steps_of(unanswered)) == 2
    assert right.counts == {"trajectories/rewritten": 1}
    for outcome, reason, text in (
        (none, "rewriter_no_steps", "It is 4."),
        (changed, "rewriter_wrong_answer", "2. **State the answer** \\boxed{5}"),
    ):
        assert outcome.counts == {f"dropped/{reason}": 1} and not outcome.demonstrations
        with pytest.raises(NoSteps) as caught:
            steps_of(outcome)
        assert caught.value.reason == reason and text in (caught.value.text or "")
