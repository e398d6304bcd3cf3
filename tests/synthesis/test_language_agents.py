# SPDX-License-Identifier: Apache-2.0
"""What language models are asked and how their replies are read, good ones and bad ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError

from satori_fast.synthesis.agents import Critique, Unusable
from satori_fast.synthesis.chat import ChatReply, ChatRequest, ChatSampling
from satori_fast.synthesis.filters import leaks
from satori_fast.synthesis.journal import Journal, RecordedChat
from satori_fast.synthesis.language_agents import (
    EXPLORE_PHRASES,
    MISTAKE_PHRASES,
    VERIFY_PHRASES,
    LanguageCritic,
    LanguageGenerator,
    LanguageRewardModel,
    label_actions,
    lead_in,
    read_critique,
    read_rating,
    read_steps,
    read_verification,
    render,
)
from satori_fast.types import Problem

PROBLEM = Problem("sum", "What is {{ 2 }} + 2 < 5?", "4")


def steps(text: str) -> tuple[str, ...]:
    return read_steps(ChatReply(text))


def reason_of(read: Callable[[], Any]) -> str:
    with pytest.raises(Unusable) as caught:
        read()
    return caught.value.reason


# --- steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Step: a\nStep: b", ("a", "b")),
        ("Step 1: a\nmore of a\n\nStep 2: b\n", ("a\nmore of a", "b")),
        ("**Step 1:** a\n**Step 2: b.** c", ("a", "b. c")),
        ("### Step 1: a\n### Step 2: b", ("a", "b")),
        ("- Step 1. a\n- Step 2) b", ("a", "b")),
        ("Continued solution:\nStep: a", ("a",)),
        ("# Solution\n\n**Solution:**\nStep 3: a", ("a",)),
        ("Let x be 2.\nStep: a\nStep: b", ("Let x be 2. a", "b")),
        ("step by step we add.\n\nThen done.", ("step by step we add.", "Then done.")),
        ("a\n\nb\nc", ("a", "b\nc")),
        ("a\nb", ("a", "b")),
        ("a\n\n\\[\nx = 1\n\n\\]\n\nb", ("a", "\\[\nx = 1\n\\]", "b")),
        ("a\n$$\nx\n$$\nb", ("a", "$$\nx\n$$", "b")),
        ("a\n\\begin{align}\nx\n\\end{align}\nb", ("a", "\\begin{align}\nx\n\\end{align}", "b")),
        ("Step:\nStep: a", ("a",)),
    ],
)
def test_steps_are_read(text: str, expected: tuple[str, ...]) -> None:
    assert tuple(s.replace("\n\n", "\n") for s in steps(text)) == expected


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (ChatReply(""), "generator_no_steps"),
        (ChatReply(" \n\n "), "generator_no_steps"),
        (ChatReply("Step: a\nStep: b", "length"), "generator_cut_off"),
        (ChatReply("too long", "refused"), "generator_refused"),
        (ChatReply("Step: as the ground truth says"), "generator_leak"),
        (ChatReply("Step: \u52a0 2"), "generator_not_english"),
        (ChatReply("Step: a<|reflect|> b"), "generator_special_token"),
    ],
)
def test_bad_solutions(reply: ChatReply, reason: str) -> None:
    assert reason_of(lambda: read_steps(reply)) == reason


def test_long_blank_replies_are_read_quickly() -> None:
    for text in ("\n" * 20_000, " " * 20_000, "*" * 20_000 + "\n" * 20_000, "Step 1" * 5_000):
        with contextlib.suppress(Unusable):
            read_steps(ChatReply(text))


# --- critiques, verifications, ratings -----------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "In Step 2: The sum is wrong.\nAlternatively: Add again.",
        "In Step <2>: [The sum is wrong.]\n\nAlternatively: [Add again.]",
        "**In Step 2:** The sum is wrong.\n**Alternatively:** Add again.",
        "I looked closely.\nIn step 2, The sum is wrong. Alternatively, Add again.\nThank you.",
        "In Step 1: a\nAlternatively: b\n\nIn Step 2: The sum is wrong.\nAlternatively: Add again.",
    ],
)
def test_critiques_are_read(text: str) -> None:
    found = read_critique(ChatReply(text), num_steps=3)
    assert found == Critique(1, "The sum is wrong.", "Add again.")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The solution is fine.", "critic_no_step"),
        ("In Step two: wrong.\nAlternatively: add.", "critic_no_step"),
        ("In Step 2: wrong.", "critic_no_alternative"),
        ("In Step 0: wrong.\nAlternatively: add.", "critic_step_out_of_range"),
        ("In Step 4: wrong.\nAlternatively: add.", "critic_step_out_of_range"),
        ("In Step 2: not the ground truth.\nAlternatively: add.", "critic_leak"),
        ("In Step 2: wrong.\nAlternatively: write \\boxed{4}.", "critic_tells_answer"),
        ("", "critic_no_step"),
    ],
)
def test_bad_critiques(text: str, reason: str) -> None:
    assert reason_of(lambda: read_critique(ChatReply(text), num_steps=3)) == reason


def test_a_critique_that_was_cut_is_not_used() -> None:
    cut = ChatReply("In Step 2: wrong.\nAlternatively: add the", "length")
    assert reason_of(lambda: read_critique(cut, num_steps=3)) == "critic_no_alternative"
    chatty = ChatReply("In Step 2: wrong.\nAlternatively: add.\nBy the way, I", "length")
    assert read_critique(chatty, num_steps=3).hint == "add."


def test_verifications_are_read() -> None:
    assert read_verification(ChatReply("Verify: 2 + 2 is 4.")) == "2 + 2 is 4."
    assert read_verification(ChatReply("Sure!\n**Verify:** [It is.]\nBye")) == "It is."
    assert reason_of(lambda: read_verification(ChatReply("Right."))) == "critic_no_verification"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rating: 73", 73),
        ("Rating: 0", 0),
        ("**Rating:** 99.5/100", 99.5),
        ("Rating: 9\nRating: 8", 8),
    ],
)
def test_ratings_are_read(text: str, expected: float) -> None:
    assert read_rating(ChatReply(text)) == expected


@pytest.mark.parametrize("text", ["", "Good.", "Rating: high", "Rating: -3", "Rating: 101"])
def test_bad_ratings(text: str) -> None:
    assert reason_of(lambda: read_rating(ChatReply(text))) == "reward_model_no_rating"


def test_a_rating_that_was_cut_is_not_used() -> None:
    assert reason_of(lambda: read_rating(ChatReply("Rating: 7", "length"))) == (
        "reward_model_no_rating"
    )


# --- prompts -------------------------------------------------------------------------------------


def test_transcripts_are_labelled() -> None:
    text = "a<|continue|> b<|reflect|> But wait. no<|explore|> This time, c<|continue|> d"
    assert label_actions(text) == (
        "Step: a\nStep: b\nRemark: But wait. no\nHint: This time, c\nStep: d"
    )


def test_lead_ins() -> None:
    assert lead_in("But wait.", "The sum is wrong.") == "But wait. The sum is wrong."
    assert lead_in("This time,", "The sum is right.") == "This time, the sum is right."
    assert lead_in("This time,", "A sum is right.") == "This time, a sum is right."
    for sentence in ("AB is parallel to CD.", "I add.", "$x$ is 3.", "X is 3."):
        assert lead_in("This time,", sentence) == f"This time, {sentence}"


def test_a_field_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("critic_verify", problem="p")


class Listening:
    """Gives listed replies in turn and keeps the prompts."""

    name = "listening"

    def __init__(self, *replies: str) -> None:
        self.replies, self.requests = list(replies), list[ChatRequest]()

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.requests.append(request)
        return ChatReply(self.replies.pop(0))

    async def close(self) -> None:
        pass


def played(
    folder: Path,
    model: Listening,
    play: Callable[[RecordedChat, np.random.Generator], Coroutine[Any, Any, Any]],
) -> Any:
    with closing(Journal(folder / "replies.jsonl")) as journal:
        sampling = ChatSampling(temperature=0.2, max_new_tokens=99)
        chat = RecordedChat(model, "role", sampling=sampling, journal=journal)
        return asyncio.run(play(chat, np.random.default_rng(0)))


def test_generator_solves(tmp_path: Path) -> None:
    model = Listening("Step: a\nStep: \\boxed{4}", "")
    found = played(
        tmp_path, model, lambda chat, rng: LanguageGenerator(chat).solve(PROBLEM, 2, rng)
    )
    assert found[0] == ("a", "\\boxed{4}") and found[1].reason == "generator_no_steps"
    assert [request.sample for request in model.requests] == [0, 1]
    # The question stands there as it is: nothing in it is taken for a field.
    assert "Problem: What is {{ 2 }} + 2 < 5?" in model.requests[0].prompt
    assert "\\boxed{}" in model.requests[0].prompt


def test_generator_continues(tmp_path: Path) -> None:
    model = Listening("Continued solution:\nStep: b\nStep: \\boxed{4}", "Step: \\boxed{4}")

    async def play(chat: RecordedChat, rng: np.random.Generator) -> list[tuple[str, ...]]:
        generator = LanguageGenerator(chat)
        return [
            await generator.resume(PROBLEM, "a<|reflect|> fine.", corrected=False, rng=rng),
            await generator.resume(
                PROBLEM, "\\boxed{5}<|reflect|> no.<|explore|> so.", corrected=True, rng=rng
            ),
            # The answer is there: nothing is left to ask for.
            await generator.resume(
                PROBLEM, "\\boxed{4}<|reflect|> fine.", corrected=False, rng=rng
            ),
        ]

    assert played(tmp_path, model, play) == [("b", "\\boxed{4}"), ("\\boxed{4}",), ()]
    verified, corrected = (request.prompt for request in model.requests)
    assert "Step: a\nRemark: fine.\nContinued solution:" in verified
    assert "Remark: no.\nHint: so.\nContinued solution:" in corrected


def test_critic_criticises_and_verifies(tmp_path: Path) -> None:
    model = Listening(*["In Step 1: The sum is wrong.\nAlternatively: Add."] * 2, "Verify: It is.")

    async def play(chat: RecordedChat, rng: np.random.Generator) -> list[Any]:
        critic = LanguageCritic(chat)
        return [
            await critic.criticise(PROBLEM, ("a", "b"), transcript="", rng=rng),
            await critic.criticise(PROBLEM, ("c",), transcript="a<|reflect|> no", rng=rng),
            await critic.verify(PROBLEM, ("a",), rng=rng),
        ]

    first, second, verified = played(tmp_path, model, play)
    assert first.wrong_step == second.wrong_step == 0
    assert first.mistake in [lead_in(p, "The sum is wrong.") for p in MISTAKE_PHRASES]
    assert first.hint in [lead_in(p, "Add.") for p in EXPLORE_PHRASES]
    assert verified in [lead_in(p, "It is.") for p in VERIFY_PHRASES]
    prompts = [request.prompt for request in model.requests]
    assert "Step 1: a\nStep 2: b" in prompts[0] and "Correct final answer: 4" in prompts[0]
    assert "First part:\nStep: a\nRemark: no\n" in prompts[1] and "Step 1: c" in prompts[1]
    # Whoever only confirms a step need not know the answer.
    assert "final answer: 4" not in prompts[2]


def test_reward_model_rates_without_tokens(tmp_path: Path) -> None:
    model = Listening("Rating: 40")
    score = played(
        tmp_path,
        model,
        lambda chat, rng: LanguageRewardModel(chat).score(PROBLEM, "a<|reflect|> b"),
    )
    assert score == 40 and "Step: a\nRemark: b" in model.requests[0].prompt
    assert "<|" not in model.requests[0].prompt


def test_every_prompt_forbids_leaks_and_other_languages() -> None:
    fields = {name: name for name in ("problem", "answer", "transcript", "steps", "response")}
    for name in ("generator_after_verification", "generator_after_hint"):
        assert "You have none" in render(name, **fields)
    for name in ("critic_verify", "critic_first_round", "critic_later_round"):
        text = render(name, **fields)
        assert "in English only" in text and leaks(text)  # it says what not to say
    assert "in English only" in render("generator_solve", **fields)


def test_lead_in_phrases_pass_the_filters() -> None:
    for phrase in (*VERIFY_PHRASES, *MISTAKE_PHRASES, *EXPLORE_PHRASES):
        assert steps(phrase) == (phrase,)
