# SPDX-License-Identifier: Apache-2.0
"""The rewriter of solutions: what it is asked, and which replies are steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from satori_fast.data.steps import ExpertStep, parse_steps
from satori_fast.synthesis.chat import ChatReply
from satori_fast.synthesis.language_agents import render
from satori_fast.synthesis.step_agents import LanguageRewriter, read_steps
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
