# SPDX-License-Identifier: Apache-2.0
"""The labeller: what it is asked, and when its labels confirm an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from satori_fast.data.domains import DOMAINS
from satori_fast.grading import GradingPool
from satori_fast.synthesis.chat import ChatReply, ChatRequest, ChatSampling
from satori_fast.synthesis.journal import Journal, RecordedChat
from satori_fast.synthesis.label_agents import (
    Labeller,
    LanguageLabeller,
    ScriptedLabeller,
    label_problems,
)
from satori_fast.synthesis.outcomes import Outcome
from satori_fast.types import Problem


class Model:
    """A `ChatModel` with the replies of each question, by sample."""

    name = "m"

    def __init__(self, replies: Mapping[str, Sequence[ChatReply]]) -> None:
        self.replies, self.asked = replies, list[ChatRequest]()

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.asked.append(request)
        question = request.prompt.rpartition("Problem: ")[2].strip()
        return self.replies[question][request.sample]

    async def close(self) -> None:
        pass


def outcomes_of(
    problems: Sequence[Problem], labeller: Labeller, *, num_labels: int, agreement: int
) -> list[Outcome]:
    async def work() -> list[Outcome]:
        with GradingPool(0) as pool:
            stream = label_problems(
                problems,
                labeller,
                num_labels=num_labels,
                agreement=agreement,
                pool=pool,
                num_concurrent=2,
            )
            return [outcome async for outcome in stream]

    return asyncio.run(work())


def labelled(
    folder: Path, replies: Sequence[ChatReply], *, agreement: int
) -> tuple[Outcome, list[ChatRequest]]:
    model = Model({"half of 1?": replies})
    journal = Journal(folder / "replies.jsonl")
    chat = RecordedChat(model, "labeller", sampling=ChatSampling(0.6, 64), journal=journal)
    (outcome,) = outcomes_of(
        [Problem("a", "half of 1?", "1/2")],
        LanguageLabeller(chat),
        num_labels=len(replies),
        agreement=agreement,
    )
    journal.close()
    return outcome, model.asked


RIGHT = ChatReply("<think>\\boxed{2}? No.</think> So \\boxed{0.5}.")
WRONG = ChatReply("So \\boxed{2}.")
CUT = ChatReply("So \\boxed{0.5}.\nLet me check", "length")
NONE = ChatReply("One half.")
REFUSED = ChatReply("too long", "refused")


@pytest.mark.parametrize(
    ("replies", "agreement", "reason"),
    [
        ([RIGHT], 1, None),  # the grader decides: 0.5 is 1/2
        ([WRONG], 1, "labeller_disagrees"),
        ([CUT], 1, "labeller_cut_off"),
        ([NONE], 1, "labeller_no_answer"),
        ([REFUSED], 1, "labeller_refused"),
        ([WRONG, RIGHT, CUT], 1, None),
        ([WRONG, RIGHT, RIGHT], 2, None),
        ([WRONG, RIGHT, RIGHT], 3, "labeller_disagrees"),
        ([CUT, WRONG, NONE, WRONG], 1, "labeller_disagrees"),
        ([NONE, WRONG], 1, "labeller_no_answer"),
    ],
)
def test_enough_labels_must_equal_the_answer(
    tmp_path: Path, replies: list[ChatReply], agreement: int, reason: str | None
) -> None:
    outcome, _ = labelled(tmp_path, replies, agreement=agreement)
    assert list(outcome.faults) == ([reason] if reason else [])
    dropped = {name for name in outcome.counts if name.startswith("dropped/")}
    assert dropped == ({f"dropped/{reason}"} if reason else set())
    labels = {n: c for n, c in outcome.counts.items() if n.startswith("labels/")}
    assert sum(labels.values()) == len(replies)
    assert labels.get("labels/agree", 0) == replies.count(RIGHT)


def test_a_label_that_differs_is_shown_beside_the_answer(tmp_path: Path) -> None:
    outcome, asked = labelled(tmp_path, [WRONG], agreement=1)
    assert outcome.faults == {"labeller_disagrees": "2 instead of 1/2"}
    (request,) = asked
    assert "half of 1?" in request.prompt and "\\boxed{}" in request.prompt
    assert "1/2" not in request.prompt  # it is not shown the answer


def test_a_long_reply_leaves_its_end(tmp_path: Path) -> None:
    outcome, _ = labelled(tmp_path, [ChatReply("x" * 5000 + " the end")], agreement=1)
    fault = outcome.faults["labeller_no_answer"]
    assert fault.endswith("the end") and len(fault) == 400


@pytest.mark.parametrize(("name", "level"), [("arithmetic", 2), ("chains", 6)])
def test_scripted_labels_confirm_the_answers_of_their_domain(name: str, level: int) -> None:
    domain = DOMAINS[name]
    right = list(domain.problems(20, levels=(level,), split="train", seed=1))
    wrong = Problem("x", right[0].question, "100")
    made = outcomes_of([*right, wrong], ScriptedLabeller(domain.answer), num_labels=2, agreement=2)
    assert [outcome.problem for outcome in made] == [*right, wrong]
    assert not any(outcome.faults for outcome in made[:-1])
    assert list(made[-1].faults) == ["labeller_disagrees"]
