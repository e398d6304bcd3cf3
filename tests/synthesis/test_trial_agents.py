# SPDX-License-Identifier: Apache-2.0
"""Verifiers and the judge: scripted ones against the domains' own rules, language models played."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satori_fast.data.arithmetic import ArithmeticProblems, name_answer, parse_puzzle
from satori_fast.data.chains import ChainProblems, parse_chain
from satori_fast.data.formats.trials import PAPER, WORDS
from satori_fast.data.word_problems import WordProblems
from satori_fast.synthesis.agents import Unusable
from satori_fast.synthesis.chat import ChatReply
from satori_fast.synthesis.filters import leaks
from satori_fast.synthesis.language_agents import render
from satori_fast.synthesis.trial_agents import (
    SCRIPTED_VERIFIERS,
    ArithmeticVerifier,
    ChainVerifier,
    LanguageJudge,
    LanguageVerifier,
    ScriptedJudge,
    TrialVerifier,
    VerificationKind,
    WordVerifier,
    read_judgement,
    read_whole_verification,
)
from satori_fast.types import Problem
from tests.synthesis.test_language_agents import PROBLEM, Listening, played

CHAIN = Problem("chain", "start 37 plus 25 minus 8 swap plus 9", "54")
CHAINS = list(ChainProblems(40, levels=[4, 7], split="train", seed=0))
KINDS: tuple[VerificationKind, ...] = ("confirming", "resolving")


def verified(
    verifier: TrialVerifier,
    problem: Problem,
    answer: str,
    kind: VerificationKind = "confirming",
    seed: int = 0,
) -> str:
    rng = np.random.default_rng(seed)
    solution = f"37 + 25 = 62 ; \\boxed{{ {answer} }}"
    return asyncio.run(verifier.verify(problem, solution, kind, rng=rng, sample=0))


def reason_of(action: Callable[[], Any]) -> str:
    with pytest.raises(Unusable) as caught:
        action()
    return caught.value.reason


# --- scripted ------------------------------------------------------------------------------------


def test_a_chain_is_walked_back_or_forward_again() -> None:
    verifier = ChainVerifier()
    assert verified(verifier, CHAIN, "54") == (
        "back 54 - 9 = 45 ; swap 45 = 54 ; 54 + 8 = 62 ; 62 - 25 = 37 ; start 37 right"
    )
    assert verified(verifier, CHAIN, "12", "resolving") == (
        "forward 37 + 25 = 62 ; 62 - 8 = 54 ; swap 54 = 45 ; 45 + 9 = 54 ; box 12 wrong"
    )


def result_of(step: str) -> int:
    """The step computed here: `45 + 9 = ...` and `swap 7 = ...`, digits exchanged as text."""
    asked = step.split(" = ")[0].split()
    if asked[0] == "swap":
        return int(f"{int(asked[1]):02}"[::-1])
    sign = 1 if asked[1] == "+" else -1
    return (int(asked[0]) + sign * int(asked[2])) % 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_slip_is_one_wrong_result_and_spoils_the_verdict(kind: VerificationKind) -> None:
    places: set[int] = set()
    for seed, problem in enumerate(CHAINS):
        assert problem.answer is not None
        for answer in (problem.answer, str((int(problem.answer) + 1 + seed) % 100)):
            text = verified(ChainVerifier(skill=0.0), problem, answer, kind, seed)
            assert WORDS.verdict(text) is (answer != problem.answer)
            word, _, rest = text.partition(" ")
            assert word == {"confirming": "back", "resolving": "forward"}[kind]
            *steps, _ = rest.split(" ; ")
            wrong = [i for i, step in enumerate(steps) if result_of(step) != int(step.split()[-1])]
            assert len(steps) == len(parse_chain(problem.question).operations) and len(wrong) == 1
            places.add(wrong[0])
            # The calculation goes on from the wrong number.
            for before, step in pairwise(steps):
                assert before.split()[-1] == step.removeprefix("swap ").split()[0]
    assert places == set(range(7))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skill", [0.0, 1.0])
def test_word_problems_are_verified_in_the_papers_words(
    kind: VerificationKind, skill: float
) -> None:
    assert WordVerifier.dialect == PAPER.name and ChainVerifier.dialect == WORDS.name
    opening = {"confirming": "I go back from ", "resolving": "I solve it again: "}[kind]
    for seed, problem in enumerate(WordProblems(40, levels=[1, 3], split="train", seed=0)):
        assert problem.answer is not None
        for answer in (problem.answer, str(int(problem.answer) + 1 + seed)):
            text = verified(WordVerifier(skill), problem, answer, kind, seed)
            assert text.startswith(opening)
            judge = ScriptedJudge().confirms(problem, "", text)
            assert asyncio.run(judge) == (kind == "confirming")
            # Where nobody can go back from an answer, it is judged rightly whatever the skill.
            ended = "below zero" in text or "no whole number" in text
            is_true = PAPER.verdict(text) is (answer == problem.answer)
            assert is_true == (skill == 1.0 or ended)
    assert reason_of(lambda: verified(WordVerifier(), problem, "2.5")) == "verifier_no_number"


def test_share_of_slips() -> None:
    truths = [
        WORDS.verdict(verified(ChainVerifier(0.7), CHAIN, "54", seed=seed)) for seed in range(400)
    ]
    assert 0.6 < truths.count(True) / len(truths) < 0.8


@pytest.mark.parametrize("answer", ["105", "5 4", "x", "-3"])
def test_an_answer_that_no_chain_has(answer: str) -> None:
    assert reason_of(lambda: verified(ChainVerifier(), CHAIN, answer)) == "verifier_no_number"


def test_sums_are_checked_and_slips_spoil_the_verdict() -> None:
    for problem in ArithmeticProblems(20, levels=[2], split="train", seed=0):
        puzzle = parse_puzzle(problem.question)
        for choice in [puzzle.solutions[0], (0, 1, 2)]:
            is_right = sum(puzzle.numbers[i] for i in choice) == puzzle.total
            name = name_answer(choice)
            text = verified(ArithmeticVerifier(), problem, name)
            assert WORDS.verdict(text) is is_right
            spoiled = verified(ArithmeticVerifier(0.0), problem, name)
            assert WORDS.verdict(spoiled) is not is_right
            assert spoiled.split()[:-2] == text.split()[:-2]
        assert reason_of(lambda p=problem: verified(ArithmeticVerifier(), p, "p p q")) == (
            "verifier_no_choice"
        )


def test_every_built_in_domain_has_a_verifier_that_says_what_it_can() -> None:
    kinds = {name: verifier.kinds for name, verifier in SCRIPTED_VERIFIERS.items()}
    assert kinds == {"arithmetic": ("confirming",), "chains": KINDS, "word_problems": KINDS}


def test_the_scripted_judge_sees_what_solves_again() -> None:
    confirmed = [
        asyncio.run(ScriptedJudge().confirms(CHAIN, "", verified(ChainVerifier(), CHAIN, "7", k)))
        for k in KINDS
    ]
    assert confirmed == [True, False]


# --- language models -----------------------------------------------------------------------------


def test_the_verifier_is_asked_for_its_kind_and_not_shown_the_answer(tmp_path: Path) -> None:
    said = "Putting 4 back gives 2 + 2 = 4. Therefore, the answer is correct."
    model = Listening(f"{said}\n", "Again. Therefore, the answer is incorrect.")

    async def play(chat: Any, rng: np.random.Generator) -> list[str]:
        verifier = LanguageVerifier(chat)
        return [
            await verifier.verify(PROBLEM, "So \\boxed{9}", kind, rng=rng, sample=sample)
            for sample, kind in enumerate(KINDS)
        ]

    assert played(tmp_path, model, play) == [said, "Again. Therefore, the answer is incorrect."]
    confirming, resolving = (request.prompt for request in model.requests)
    assert "without re-solving" in confirming and "solving the problem again" in resolving
    assert [request.sample for request in model.requests] == [0, 1]
    for prompt in (confirming, resolving):
        assert "Problem: What is {{ 2 }} + 2 < 5?" in prompt and "So \\boxed{9}" in prompt
        assert not re.search(r"\b4\b", prompt)


def test_equal_solutions_get_verifications_of_their_own(tmp_path: Path) -> None:
    model = Listening("One.", "Two.")

    async def play(chat: Any, rng: np.random.Generator) -> list[str]:
        verifier = LanguageVerifier(chat)
        return [
            await verifier.verify(PROBLEM, "\\boxed{4}", "confirming", rng=rng, sample=sample)
            for sample in (3, 5, 3)
        ]

    assert played(tmp_path, model, play) == ["One.", "Two.", "One."]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (ChatReply(" \n"), "verifier_empty"),
        (ChatReply("Put it back.\nTherefore, the ans", "length"), "verifier_cut_off"),
        (ChatReply("too long", "refused"), "verifier_refused"),
        (ChatReply("It is the reference answer."), "verifier_leak"),
        (ChatReply("It is <|im_end|> right."), "verifier_special_token"),
        (ChatReply("\u7b54\u6848\u662f\u5bf9\u7684"), "verifier_not_english"),
    ],
)
def test_bad_verifications(reply: ChatReply, reason: str) -> None:
    assert reason_of(lambda: read_whole_verification(reply)) == reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Judgement: confirms", True),
        ("It tests the bound.\n**Judgement:** confirms.", True),
        ("judgment: re-solves", False),
        ("Judgement: resolves", False),
        ("Judgement: confirms\nNo. Judgement: re-solves", False),
    ],
)
def test_judgements_are_read(text: str, expected: bool) -> None:
    assert read_judgement(ChatReply(text)) is expected


@pytest.mark.parametrize("text", ["", "It confirms.", "Judgement: yes", "Judgement: confirmsation"])
def test_bad_judgements(text: str) -> None:
    assert reason_of(lambda: read_judgement(ChatReply(text))) == "judge_no_judgement"


def test_the_judge_reads_all_of_it(tmp_path: Path) -> None:
    model = Listening("Judgement: re-solves")
    found = played(
        tmp_path, model, lambda chat, rng: LanguageJudge(chat).confirms(PROBLEM, "two", "three")
    )
    assert found is False
    for text in ("What is {{ 2 }} + 2 < 5?", "Solution:\ntwo", "Verification:\nthree"):
        assert text in model.requests[0].prompt


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_ask_for_verdicts_that_the_format_reads(kind: str) -> None:
    text = render(f"verifier_{kind}", problem="p", solution="s")
    sentences = re.findall(r"^Therefore, .*$", text, re.MULTILINE)
    assert [PAPER.verdict(sentence) for sentence in sentences] == [True, False, None]
    assert leaks(text) and "in English only" in text  # it says what not to say
