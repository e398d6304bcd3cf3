# SPDX-License-Identifier: Apache-2.0
"""The agents of S2R's trials: who verifies a solution, and who judges the verification.

A confirming verification tests the answer without solving the problem again; a re-solving one
solves it again and compares. Language models rarely obey when they are asked for the first (the
paper finds 44 to 61 of 100 that do), so a judge looks at each. Scripted agents know the built-in
domains; language models are asked with the prompts of `templates`. Whether a verdict is true is
seen by `trials`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal, Protocol

import numpy as np

from satori_fast.data import word_problems
from satori_fast.data.arithmetic import check_text, parse_answer, parse_puzzle
from satori_fast.data.chains import (
    MODULUS,
    RESOLVING,
    STEP_END,
    Chain,
    confirming_text,
    parse_chain,
    resolving_text,
)
from satori_fast.data.formats.trials import PAPER, WORDS
from satori_fast.data.stories import parse_story
from satori_fast.grading import extract_answer
from satori_fast.synthesis.agents import Unusable
from satori_fast.synthesis.chat import ChatReply
from satori_fast.synthesis.journal import RecordedChat
from satori_fast.synthesis.language_agents import render, text_of, usable_text
from satori_fast.types import Problem

VerificationKind = Literal["confirming", "resolving"]

_EMPHASIS = r"[*_\s]*"
_JUDGEMENT = re.compile(rf"Judge?ment{_EMPHASIS}:{_EMPHASIS}(confirms|re-?solves)\b", re.IGNORECASE)


class TrialVerifier(Protocol):
    """Verifies solutions; it is not shown the right answer."""

    async def verify(
        self,
        problem: Problem,
        solution: str,
        kind: VerificationKind,
        *,
        rng: np.random.Generator,
        sample: int,
    ) -> str:
        """A verification that ends with a verdict. sample: the solution's number among those of the
        problem, so that equal solutions get verifications of their own. Raises Unusable."""
        ...


class TrialJudge(Protocol):
    """Judges verifications that are to confirm an answer."""

    async def confirms(self, problem: Problem, solution: str, verification: str) -> bool:
        """Whether it tests the answer, and does not just solve the problem again. Raises
        Unusable."""
        ...


@dataclass(frozen=True, slots=True)
class TrialAgents:
    """Agents of the roles."""

    verifier: TrialVerifier
    judge: TrialJudge


# --- scripted ------------------------------------------------------------------------------------


class ScriptedVerifier(TrialVerifier, Protocol):
    """A verifier of a built-in domain.

    kinds: the verifications that it can write. dialect: in which it gives verdicts.
    """

    kinds: ClassVar[tuple[VerificationKind, ...]]
    dialect: ClassVar[str]

    def __init__(self, skill: float) -> None: ...


@dataclass(frozen=True, slots=True)
class ChainVerifier:
    """Implements `ScriptedVerifier` for chains: walks back from the answer, or forward again.

    skill: share of verifications without a slip. A slip is one wrong result, from which the
    calculation goes on rightly to the wrong verdict.
    """

    kinds: ClassVar[tuple[VerificationKind, ...]] = ("confirming", "resolving")
    dialect: ClassVar[str] = WORDS.name
    skill: float = 1.0

    async def verify(
        self,
        problem: Problem,
        solution: str,
        kind: VerificationKind,
        *,
        rng: np.random.Generator,
        sample: int,
    ) -> str:
        chain, answer = parse_chain(problem.question), _answer_of(solution)
        if not answer.isdecimal() or int(answer) >= MODULUS:
            raise Unusable("verifier_no_number", solution)
        given, write = int(answer), confirming_text if kind == "confirming" else resolving_text
        text = write(chain, given)
        if rng.random() < self.skill:
            return text
        # What a wrong answer is taken for right by, and the other way round.
        right = int(chain.answer)
        other = right if given != right else (given + int(rng.integers(1, MODULUS))) % MODULUS
        if kind == "confirming":
            believed = confirming_text(chain, other)
        else:
            ending = given if given != right else other
            believed = resolving_text(Chain(_start_to(chain, ending), chain.operations), given)
        return _slip(text, believed, at=int(rng.integers(len(chain.operations))))


@dataclass(frozen=True, slots=True)
class ArithmeticVerifier:
    """Implements `ScriptedVerifier` for sums: adds the chosen numbers up, as `check_text` does.

    skill: share of verifications without a slip, a wrong sum at the end. Finding the numbers again
    would be a guess, so that there is no re-solving.
    """

    kinds: ClassVar[tuple[VerificationKind, ...]] = ("confirming",)
    dialect: ClassVar[str] = WORDS.name
    skill: float = 1.0

    async def verify(
        self,
        problem: Problem,
        solution: str,
        kind: VerificationKind,
        *,
        rng: np.random.Generator,
        sample: int,
    ) -> str:
        puzzle = parse_puzzle(problem.question)
        choice = parse_answer(_answer_of(solution), puzzle)
        if choice is None:
            raise Unusable("verifier_no_choice", solution)
        text = check_text(choice, puzzle)
        if rng.random() < self.skill:
            return text
        is_right = puzzle.add(choice) == puzzle.total
        *words, _, _ = text.split()
        ending = [str(puzzle.total + 1), "over"] if is_right else [str(puzzle.total), "right"]
        return " ".join([*words, *ending])


@dataclass(frozen=True, slots=True)
class WordVerifier:
    """Implements `ScriptedVerifier` for word problems: goes back from the answer, or solves again.

    skill: share of verifications without a slip. A slip is a wrong last result, which leads to the
    wrong verdict; an answer from which nobody can go back is always judged rightly.
    """

    kinds: ClassVar[tuple[VerificationKind, ...]] = ("confirming", "resolving")
    dialect: ClassVar[str] = PAPER.name
    skill: float = 1.0

    async def verify(
        self,
        problem: Problem,
        solution: str,
        kind: VerificationKind,
        *,
        rng: np.random.Generator,
        sample: int,
    ) -> str:
        story, answer = parse_story(problem.question), _answer_of(solution)
        if not answer.isdecimal():
            raise Unusable("verifier_no_number", solution)
        slips, given = rng.random() >= self.skill, int(answer)
        if kind == "confirming":
            return word_problems.confirming_text(story, given, slips=slips)
        return word_problems.resolving_text(story, given, slips=slips)


@dataclass(frozen=True, slots=True)
class ScriptedJudge:
    """Implements `TrialJudge` for the built-in domains, whose verifications say what they do."""

    async def confirms(self, problem: Problem, solution: str, verification: str) -> bool:
        return not verification.startswith((RESOLVING, word_problems.RESOLVING))


SCRIPTED_VERIFIERS: Mapping[str, type[ScriptedVerifier]] = MappingProxyType(
    {"arithmetic": ArithmeticVerifier, "chains": ChainVerifier, "word_problems": WordVerifier}
)


def _answer_of(solution: str) -> str:
    answer = extract_answer(solution)
    assert answer is not None, solution  # samples without one are no trials
    return answer


def _start_to(chain: Chain, ending: int) -> int:
    """The number from which a chain's operations lead to `ending`."""
    value = ending
    for operation in reversed(chain.operations):
        value = operation.inverse.apply(value)
    return value


def _slip(text: str, other: str, *, at: int) -> str:
    """The steps of `text` before step `at`, and those of `other` after it; the step itself has the
    question of the one and the result of the other."""
    separator = f" {STEP_END} "
    steps, others = text.split(separator), other.split(separator)
    question, equals, _ = steps[at].partition("= ")
    _, _, result = others[at].partition("= ")
    return separator.join([*steps[:at], f"{question}{equals}{result}", *others[at + 1 :]])


# --- language models -----------------------------------------------------------------------------


class LanguageVerifier:
    """Implements `TrialVerifier`."""

    def __init__(self, chat: RecordedChat) -> None:
        self._chat = chat

    async def verify(
        self,
        problem: Problem,
        solution: str,
        kind: VerificationKind,
        *,
        rng: np.random.Generator,
        sample: int,
    ) -> str:
        prompt = render(f"verifier_{kind}", problem=problem.question, solution=solution)
        return read_whole_verification(await self._chat.ask(prompt, sample=sample))


class LanguageJudge:
    """Implements `TrialJudge`."""

    def __init__(self, chat: RecordedChat) -> None:
        self._chat = chat

    async def confirms(self, problem: Problem, solution: str, verification: str) -> bool:
        prompt = render(
            "judge_confirming",
            problem=problem.question,
            solution=solution,
            verification=verification,
        )
        return read_judgement(await self._chat.ask(prompt))


def read_whole_verification(reply: ChatReply) -> str:
    """Read a verification: the whole reply. Raises Unusable."""
    text = usable_text(reply, "verifier").strip()
    if reply.finish == "length":
        raise Unusable("verifier_cut_off", text)
    if not text:
        raise Unusable("verifier_empty", reply.text)
    return text


def read_judgement(reply: ChatReply) -> bool:
    """Read "Judgement: confirms" or "Judgement: re-solves", the last one. Raises Unusable."""
    text = text_of(reply, "judge")
    found = _JUDGEMENT.findall(text)
    if not found:
        raise Unusable("judge_no_judgement", text)
    return found[-1].lower() == "confirms"
