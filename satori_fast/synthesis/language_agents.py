# SPDX-License-Identifier: Apache-2.0
"""The agents of synthesis as language models: what they are asked, and how their replies are read.

Prompts are the text files of `templates`, one for each role and purpose; they follow the paper's
templates 1.1 to 2.2.2, whose wording it prints in part. Replies are read strictly: one that cannot
be used is `Unusable` with a reason, and nothing is guessed. The scripted agents are `agents`.
"""

from __future__ import annotations

import asyncio
import re
from functools import cache
from typing import Any

import numpy as np

from satori_fast.data.formats.coat import CONTINUE, EXPLORE, REFLECT, split_actions
from satori_fast.grading import extract_answer
from satori_fast.synthesis.agents import Critique, Solution, Unusable
from satori_fast.synthesis.chat import ChatReply
from satori_fast.synthesis.filters import fault_of, read_template
from satori_fast.synthesis.journal import RecordedChat
from satori_fast.types import Problem

# What the paper's examples (appendices A and D.1.2) say after a meta-action token.
VERIFY_PHRASES = ("Let me stop here to verify.", "I want to double-check my calculations.")
MISTAKE_PHRASES = (
    "But wait.",
    "Wait a minute.",
    "I may have overlooked something.",
    "Let's reassess my previous conclusion.",
)
EXPLORE_PHRASES = (
    "I will now explore another method.",
    "To find a better solution,",
    "This time,",
    "Let's switch to a new solution.",
)
_LABELS = {REFLECT: "Remark: ", EXPLORE: "Hint: ", CONTINUE: "Step: "}

_EMPHASIS = r"[*_#> \t-]*"
_STEP = re.compile(rf"^{_EMPHASIS}Step(?: +\d+)?{_EMPHASIS}[:.)]", re.IGNORECASE | re.MULTILINE)
_NUMBERED = r"In Step\s*<?(\d+)>?\**"
_SAYS = r"[:,]\**\s*(\S[^\n]*"
_CRITIQUE = re.compile(rf"{_NUMBERED}{_SAYS}?)[*_#>\s-]*Alternatively\**{_SAYS})", re.IGNORECASE)
_WRONG_STEP = re.compile(_NUMBERED, re.IGNORECASE)
_VERIFY = re.compile(rf"Verify\**{_SAYS})", re.IGNORECASE)
_RATING = re.compile(r"Rating\**:\**\s*(\d+(?:\.\d+)?)", re.IGNORECASE)
_BEST_RATING = 100.0


class LanguageGenerator:
    """Implements `agents.Generator`."""

    def __init__(self, chat: RecordedChat) -> None:
        self._chat = chat

    async def solve(
        self, problem: Problem, num_solutions: int, rng: np.random.Generator
    ) -> list[Solution | Unusable]:
        prompt = render("generator_solve", problem=problem.question)
        asked = (self._chat.ask(prompt, sample=i) for i in range(num_solutions))
        return [_steps_or_fault(reply) for reply in await asyncio.gather(*asked)]

    async def resume(
        self, problem: Problem, transcript: str, *, corrected: bool, rng: np.random.Generator
    ) -> Solution:
        if not corrected and extract_answer(transcript) is not None:
            return ()
        name = "generator_after_hint" if corrected else "generator_after_verification"
        prompt = render(name, problem=problem.question, transcript=label_actions(transcript))
        return read_steps(await self._chat.ask(prompt))


class LanguageCritic:
    """Implements `agents.Critic`. It is shown the right answer, and must not speak of it."""

    def __init__(self, chat: RecordedChat) -> None:
        self._chat = chat

    async def criticise(
        self, problem: Problem, steps: Solution, *, transcript: str, rng: np.random.Generator
    ) -> Critique:
        prompt = render(
            "critic_later_round" if transcript else "critic_first_round",
            problem=problem.question,
            answer=problem.answer,
            transcript=label_actions(transcript),
            steps=number_steps(steps),
        )
        critique = read_critique(await self._chat.ask(prompt), num_steps=len(steps))
        return Critique(
            critique.wrong_step,
            lead_in(_pick(MISTAKE_PHRASES, rng), critique.mistake),
            lead_in(_pick(EXPLORE_PHRASES, rng), critique.hint),
        )

    async def verify(self, problem: Problem, steps: Solution, *, rng: np.random.Generator) -> str:
        prompt = render("critic_verify", problem=problem.question, steps=number_steps(steps))
        sentence = read_verification(await self._chat.ask(prompt))
        return lead_in(_pick(VERIFY_PHRASES, rng), sentence)


class LanguageRewardModel:
    """Implements `agents.RewardModel` by asking for a rating."""

    def __init__(self, chat: RecordedChat) -> None:
        self._chat = chat

    async def score(self, problem: Problem, response: str) -> float:
        text = label_actions(response)
        prompt = render("reward_model", problem=problem.question, response=text)
        return read_rating(await self._chat.ask(prompt))


# --- prompts -------------------------------------------------------------------------------------


def render(name: str, **fields: Any) -> str:
    """The prompt of a template, its fields filled in. A field that it lacks is an error."""
    return _template(name).render(**fields)


@cache
def _template(name: str) -> Any:
    from jinja2 import Environment, StrictUndefined

    # Fields are the text of problems and replies: they are put in as they are, and never run.
    environment = Environment(undefined=StrictUndefined, autoescape=False)
    return environment.from_string(read_template(f"{name}.txt"))


def number_steps(steps: Solution) -> str:
    return "\n".join(f"Step {number}: {step}" for number, step in enumerate(steps, start=1))


def without_tokens(response: str) -> str:
    """A response as a reader knows it who never saw a meta-action token: one action a line."""
    actions = (_without_token(action) for action in split_actions(response))
    return "\n".join(actions)


def label_actions(transcript: str) -> str:
    """Actions as a language model reads them: "Step: ...", "Remark: ...", "Hint: ..."."""
    lines: list[str] = []
    for action in split_actions(transcript):
        token = next((token for token in _LABELS if action.startswith(token)), "")
        lines.append(_LABELS[token or CONTINUE] + _without_token(action))
    return "\n".join(lines)


def _without_token(action: str) -> str:
    for token in _LABELS:
        action = action.removeprefix(token)
    return action.strip()


def lead_in(phrase: str, sentence: str) -> str:
    """A phrase, then a sentence, which goes on in lower case after a comma."""
    first, *rest = sentence.split(" ", 1)
    is_plain = first[:1].isupper() and (first[1:].islower() or first == "A")
    if phrase.endswith(",") and is_plain:
        sentence = " ".join([first.lower(), *rest])
    return f"{phrase} {sentence}"


def _pick(phrases: tuple[str, ...], rng: np.random.Generator) -> str:
    return phrases[rng.integers(len(phrases))]


# --- replies -------------------------------------------------------------------------------------


def read_steps(reply: ChatReply) -> Solution:
    """The steps of a solution: what follows each "Step:" or "Step 3:", else its paragraphs, else
    its lines. Display formulas are not cut. Raises Unusable."""
    text = usable_text(reply, "generator")
    if reply.finish == "length":
        raise Unusable("generator_cut_off", text)
    starts = list(_STEP.finditer(text))
    if starts:
        stops = [*(match.start() for match in starts[1:]), len(text)]
        pieces = [_plain(text[m.end() : stop]) for m, stop in zip(starts, stops, strict=True)]
        steps = [f"{_introduction(text[: starts[0].start()])} {pieces[0]}", *pieces[1:]]
    else:
        steps = _outside_formulas(text.split("\n\n" if "\n\n" in text.strip() else "\n"))
    steps = [step.strip() for step in steps if step.strip()]
    if not steps:
        raise Unusable("generator_no_steps", text)
    return tuple(steps)


def read_critique(reply: ChatReply, *, num_steps: int) -> Critique:
    """Read the last pair of "In Step <id>: ..." and "Alternatively: ...". Raises Unusable."""
    text = usable_text(reply, "critic")
    found = _CRITIQUE.findall(text)
    if not found:
        has_step = _WRONG_STEP.search(text) is not None
        raise Unusable("critic_no_alternative" if has_step else "critic_no_step", text)
    number, mistake, hint = found[-1]
    if not 1 <= int(number) <= num_steps:
        raise Unusable("critic_step_out_of_range", text)
    if extract_answer(hint) is not None:
        raise Unusable("critic_tells_answer", text)
    return Critique(int(number) - 1, _plain(mistake), _plain(hint))


def read_verification(reply: ChatReply) -> str:
    """ "Verify: ...", the last one. Raises Unusable."""
    text = usable_text(reply, "critic")
    found = _VERIFY.findall(text)
    if not found:
        raise Unusable("critic_no_verification", text)
    return _plain(found[-1])


def read_rating(reply: ChatReply) -> float:
    """ "Rating: 73", the last one, from 0 to 100. Raises Unusable."""
    text = text_of(reply, "reward_model")
    found = _RATING.findall(text)
    if not found or float(found[-1]) > _BEST_RATING:
        raise Unusable("reward_model_no_rating", text)
    return float(found[-1])


def _steps_or_fault(reply: ChatReply) -> Solution | Unusable:
    try:
        return read_steps(reply)
    except Unusable as fault:
        return fault


def usable_text(reply: ChatReply, role: str) -> str:
    """The text of a reply that may become part of a demonstration."""
    text = text_of(reply, role)
    fault = fault_of(text)
    if fault is not None:
        raise Unusable(f"{role}_{fault}", text)
    return text


def text_of(reply: ChatReply, role: str) -> str:
    """The text of a reply; where the token limit cut it, without the line that was cut."""
    if reply.finish == "refused":
        raise Unusable(f"{role}_refused", reply.text)
    return reply.text.rpartition("\n")[0] if reply.finish == "length" else reply.text


def _plain(text: str) -> str:
    """Remove the brackets of "[one sentence]" and a mark of emphasis whose other half was
    cut off."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
    if text.count("**") % 2:
        text = text.replace("**", "", 1)
    return text.strip()


def _introduction(text: str) -> str:
    """Text before the first step, without headings and announcements ("Solution:")."""
    lines = (line.strip(" *\t") for line in text.splitlines())
    return " ".join(line for line in lines if line and line[0] != "#" and line[-1] != ":")


def _outside_formulas(pieces: list[str]) -> list[str]:
    r"""Pieces, joined again where a ``\[``, ``$$`` or ``\begin`` was left open."""
    whole: list[str] = []
    is_open = False
    for piece in pieces:
        if is_open:
            whole[-1] += "\n" + piece
        else:
            whole.append(piece)
        text = whole[-1]
        is_open = (
            text.count("\\[") > text.count("\\]")
            or text.count("\\begin{") > text.count("\\end{")
            or text.count("$$") % 2 == 1
        )
    return whole
