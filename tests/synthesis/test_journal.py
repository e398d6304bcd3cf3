# SPDX-License-Identifier: Apache-2.0
"""Nothing is asked twice: not after a kill, not at the same time, not for another run's model."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from satori_fast.synthesis.chat import ChatError, ChatReply, ChatRequest, ChatSampling
from satori_fast.synthesis.journal import Journal, OutcomeFile, RecordedChat
from satori_fast.synthesis.outcomes import Outcome
from satori_fast.types import Demonstration, Problem

SAMPLING = ChatSampling(temperature=0.3, max_new_tokens=64)


@dataclass
class CountingModel:
    """Says what it was asked, and fails after `limit` answers."""

    name: str = "counting"
    limit: int = 10**9
    asked: Counter[tuple[str, int]] = field(default_factory=Counter)

    async def complete(self, request: ChatRequest) -> ChatReply:
        if self.asked.total() == self.limit:
            raise ChatError("the server is gone")
        self.asked[request.prompt, request.sample] += 1
        await asyncio.sleep(0.001)
        text = f"{request.prompt}/{request.sample}"
        return ChatReply(text, prompt_tokens=3, completion_tokens=2, num_retries=1)

    async def close(self) -> None:
        pass


def ask(
    path: Path, model: CountingModel, asked: list[tuple[str, int]], *, role: str = "critic"
) -> tuple[list[str | BaseException], Journal]:
    """Texts of the replies, asked all at once, and the journal (closed)."""
    with closing(Journal(path)) as journal:
        chat = RecordedChat(model, role, sampling=SAMPLING, journal=journal)

        async def run() -> list[ChatReply | BaseException]:
            requests = (chat.ask(prompt, sample=sample) for prompt, sample in asked)
            return await asyncio.gather(*requests, return_exceptions=True)

        replies = asyncio.run(run())
    return [r.text if isinstance(r, ChatReply) else r for r in replies], journal


PAIRS = [(f"prompt {i}", sample) for i in range(4) for sample in range(3)]


def test_a_second_session_asks_nothing(tmp_path: Path) -> None:
    path, model = tmp_path / "replies.jsonl", CountingModel()
    first, _ = ask(path, model, PAIRS)
    second, journal = ask(path, model, PAIRS)
    assert first == second == [f"{prompt}/{sample}" for prompt, sample in PAIRS]
    assert set(model.asked.values()) == {1} and journal.num_replayed == len(PAIRS)


def test_after_a_failure_only_the_rest_is_asked(tmp_path: Path) -> None:
    path, model = tmp_path / "replies.jsonl", CountingModel(limit=5)
    replies, _ = ask(path, model, PAIRS)
    assert sum(isinstance(reply, ChatError) for reply in replies) == len(PAIRS) - 5
    model.limit = 10**9
    replies, journal = ask(path, model, PAIRS)
    assert replies == [f"{prompt}/{sample}" for prompt, sample in PAIRS]
    assert set(model.asked.values()) == {1} and journal.num_replayed == 5


def test_a_torn_reply_is_asked_again(tmp_path: Path) -> None:
    path, model = tmp_path / "replies.jsonl", CountingModel()
    ask(path, model, PAIRS)
    path.write_bytes(path.read_bytes()[:-9])
    replies, journal = ask(path, model, PAIRS)
    assert replies == [f"{prompt}/{sample}" for prompt, sample in PAIRS]
    assert sorted(model.asked.values())[-2:] == [1, 2] and journal.num_replayed == len(PAIRS) - 1


def test_the_same_request_at_the_same_time_is_one(tmp_path: Path) -> None:
    model = CountingModel()
    replies, _ = ask(tmp_path / "replies.jsonl", model, [("again", 0)] * 5)
    assert replies == ["again/0"] * 5 and model.asked == {("again", 0): 1}


def test_role_and_model_are_told_apart(tmp_path: Path) -> None:
    path, model, other = tmp_path / "replies.jsonl", CountingModel(), CountingModel("other")
    ask(path, model, PAIRS)
    ask(path, model, PAIRS, role="generator")
    ask(path, other, PAIRS)
    assert set(model.asked.values()) == {2} and set(other.asked.values()) == {1}


def test_usage_counts_every_session(tmp_path: Path) -> None:
    path, model = tmp_path / "replies.jsonl", CountingModel()
    ask(path, model, PAIRS[:8])
    _, journal = ask(path, model, PAIRS)
    used = journal.usage["critic"]
    assert (used.requests, used.retries) == (12, 12)
    assert (used.prompt_tokens, used.completion_tokens) == (36, 24)


def test_refusals_are_remembered(tmp_path: Path) -> None:
    class Refusing(CountingModel):
        async def complete(self, request: ChatRequest) -> ChatReply:
            await super().complete(request)
            return ChatReply("too long", "refused")

    path, model = tmp_path / "replies.jsonl", Refusing()
    for _ in range(2):
        replies, _ = ask(path, model, [("long", 0)])
        assert replies == ["too long"]
    assert model.asked.total() == 1


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    with closing(Journal(path)), pytest.raises(ValueError, match="another process"):
        Journal(path)


# --- outcomes: they come back as they were, behind the problems that they are of ---

PROBLEMS = [Problem(f"p{i}", f"{i} + 1", str(i + 1)) for i in range(3)]
OUTCOMES = [
    Outcome(
        problem,
        [Demonstration(problem, f"a<|reflect|> b \\boxed{{{problem.answer}}}", "II-I")],
        Counter({"solutions/right": 2, "dropped/leak": 1}),
        {"leak": "the ground truth"},
    )
    for problem in PROBLEMS
]


def test_outcomes_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "finished.jsonl"
    with closing(OutcomeFile(path, PROBLEMS)) as file:
        file.append(OUTCOMES[0])
        file.append(OUTCOMES[1])
    path.write_bytes(path.read_bytes() + b'{"problem_id": "p2", "dem')
    with closing(OutcomeFile(path, PROBLEMS)) as file:
        assert file.outcomes == OUTCOMES[:2]
        file.append(OUTCOMES[2])
    with closing(OutcomeFile(path, PROBLEMS)) as file:
        assert file.outcomes == OUTCOMES


def test_other_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "finished.jsonl"
    with closing(OutcomeFile(path, PROBLEMS)) as file:
        file.append(OUTCOMES[0])
    with pytest.raises(ValueError, match="its problem 1 is 'p0', which the data does not have"):
        OutcomeFile(path, PROBLEMS[1:])
    with pytest.raises(ValueError, match="resume with the same data"):
        OutcomeFile(path, [])
