# SPDX-License-Identifier: Apache-2.0
"""Trials of graded samples: how many, which, that every verdict is true, and what is dropped."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from satori_fast.data.chains import ChainProblems, domain_words, parse_chain
from satori_fast.data.formats.trials import TRIALS, WORDS, Trial
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer, build_trajectory
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.grading import extract_answer
from satori_fast.synthesis.agents import Unusable
from satori_fast.synthesis.outcomes import Outcome
from satori_fast.synthesis.trial_agents import (
    ChainVerifier,
    ScriptedJudge,
    TrialAgents,
    VerificationKind,
)
from satori_fast.synthesis.trials import (
    GradedSamples,
    TrialOptions,
    make_trials,
    trials_asked_for,
)
from satori_fast.types import Finish, Problem, Trajectory

WORDS_KNOWN = list(dict.fromkeys([*domain_words(), *WORDS.words]))
RENDERER = PromptRenderer(
    build_word_tokenizer(WORDS_KNOWN, ()), PLAIN_TEMPLATE, 64, format=TRIALS.in_dialect("words")
)
PROBLEM = Problem("chain", "start 37 plus 25 minus 8 swap plus 9", "54")
ALL = (1.0, 1.0, 1.0, 1.0)
SCRIPTED = TrialAgents(ChainVerifier(), ScriptedJudge())


def boxed(*answers: int | str) -> list[str]:
    return [f"37 + 25 = 62 ; \\boxed{{ {answer} }}" for answer in answers]


def graded(
    texts: Iterable[str], problem: Problem = PROBLEM, finish: Finish = "stop"
) -> GradedSamples:
    samples: list[tuple[Trajectory, bool]] = []
    for text in texts:
        ids = np.asarray(RENDERER.encode(text) + [RENDERER.eos_id] * (finish == "stop"))
        trajectory = build_trajectory(problem, ids, renderer=RENDERER, group_id=0, finish=finish)
        samples.append((trajectory, extract_answer(text) == problem.answer))
    return GradedSamples(problem, samples)


def outcomes(
    problems: Sequence[GradedSamples],
    agents: TrialAgents = SCRIPTED,
    *,
    num_concurrent: int = 1,
    **options: Any,
) -> list[Outcome]:
    settings = TrialOptions(WORDS, **{"keep": ALL, **options})

    async def all_of_them() -> list[Outcome]:
        stream = make_trials(problems, agents, settings, num_concurrent=num_concurrent)
        return [outcome async for outcome in stream]

    return asyncio.run(all_of_them())


def trials_of(outcome: Outcome) -> list[Trial]:
    (made,) = outcome.demonstrations
    trials = WORDS.split_trials(made.response)
    assert made.trajectory_type == str(len(trials))
    return trials


def answers_of(trials: Iterable[Trial]) -> list[str | None]:
    return [extract_answer(trial.solution) for trial in trials]


# --- how many ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        # w = 0 .. 4 of five samples, all wrong answers different: 1, 2, 3, 3, 4 trials.
        ([54, 54, 54, 54, 54], 1),
        ([54, 54, 54, 54, 1], 2),
        ([54, 54, 54, 1, 2], 3),
        ([54, 54, 1, 2, 3], 3),
        ([54, 1, 2, 3, 4], 4),
        # Fewer different wrong answers give fewer trials.
        ([54, 54, 54, 1, 1], 2),
        ([54, 54, 1, 1, 1], 2),
        ([54, 1, 1, 2, 2], 3),
        ([54, 1, 1, 1, 1], 2),
    ],
)
def test_number_of_trials(answers: list[int], expected: int) -> None:
    (outcome,) = outcomes([graded(boxed(*answers))])
    trials = trials_of(outcome)
    assert len(trials) == expected
    *wrong, right = answers_of(trials)
    assert right == "54" and "54" not in wrong and len(set(wrong)) == len(wrong)
    assert set(wrong) <= {str(answer) for answer in answers}
    assert all(trial.solution in boxed(*answers) for trial in trials)  # real samples
    assert [WORDS.verdict(trial.verification) for trial in trials] == [False] * len(wrong) + [True]


def test_wrong_samples_that_can_be_no_trial_count_as_wrong() -> None:
    # Four of five are wrong, but two have no answer: three trials, not two.
    (outcome,) = outcomes([graded([*boxed(54, 1, 2), "37 + 25 = 62", "37"])])
    assert len(trials_of(outcome)) == 3
    assert outcome.counts["dropped/sample_without_answer"] == 2
    assert (outcome.counts["samples/right"], outcome.counts["samples/wrong"]) == (1, 4)


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_limit_of_trials(limit: int) -> None:
    (outcome,) = outcomes([graded(boxed(54, 1, 2, 3, 4))], max_trials=limit)
    assert len(trials_of(outcome)) == limit
    assert [trials_asked_for(9, max_trials) for max_trials in (1, 2, 3, 4)] == [1, 2, 3, 4]


def many(*answers: int) -> list[GradedSamples]:
    return [graded(boxed(*answers), Problem(str(i), PROBLEM.question, "54")) for i in range(400)]


@pytest.mark.parametrize(
    ("answers", "keep", "asks_nobody"),
    [
        ((54, 54, 54, 54, 54), (0.25, 1.0, 1.0, 1.0), True),
        ((54, 54, 54, 54, 1), (1.0, 0.25, 1.0, 1.0), True),
        ((54, 54, 54, 1, 2), (1.0, 1.0, 0.25, 1.0), False),
        ((54, 1, 2, 3, 4), (1.0, 1.0, 1.0, 0.25), False),
    ],
)
def test_shares_kept(answers: tuple[int, ...], keep: tuple[float, ...], asks_nobody: bool) -> None:
    asked: list[str] = []

    class Watched(ChainVerifier):
        async def verify(self, problem: Problem, *rest: Any, **more: Any) -> str:
            asked.append(problem.problem_id)
            return await ChainVerifier.verify(self, problem, *rest, **more)

    agents = TrialAgents(Watched(), ScriptedJudge())
    made = outcomes(many(*answers), agents, keep=keep)
    num_kept = sum(len(outcome.demonstrations) for outcome in made)
    assert 70 < num_kept < 130  # of 400: 100, standard deviation 8.7
    dropped = Counter[str]()
    for outcome in made:
        dropped.update(outcome.counts)
    assert dropped["dropped/problem_not_kept"] == 400 - num_kept
    assert len(set(asked)) == (num_kept if asks_nobody else 400)


def test_what_falls_short_is_kept() -> None:
    made = outcomes(many(54, 1, 1, 1, 1)[:50], keep=(0.0, 0.0, 0.0, 0.0))
    assert all(len(trials_of(outcome)) == 2 for outcome in made)


# --- what is dropped -----------------------------------------------------------------------------


class Scripted:
    """Verifies by a function of the answer, and keeps what it was asked."""

    def __init__(self, say: dict[str, list[str]]) -> None:
        self.say, self.asked = say, list[tuple[str, str, int]]()

    async def verify(
        self,
        problem: Problem,
        solution: str,
        kind: VerificationKind,
        *,
        rng: np.random.Generator,
        sample: int,
    ) -> str:
        answer = extract_answer(solution)
        assert answer is not None
        self.asked.append((answer, kind, sample))
        said = self.say[answer].pop(0)
        if said == "unusable":
            raise Unusable("verifier_refused", "no")
        return said


class Strict:
    """Finds that what says "again" solves the problem once more."""

    async def confirms(self, problem: Problem, solution: str, verification: str) -> bool:
        return "anew" not in verification


def dropped_of(outcome: Outcome) -> dict[str, int]:
    return {
        name.removeprefix("dropped/"): number
        for name, number in outcome.counts.items()
        if name.startswith("dropped/")
    }


def test_a_problem_without_a_right_sample_is_dropped() -> None:
    (outcome,) = outcomes([graded(boxed(1, 2, 3, 4, 5))])
    assert not outcome.demonstrations and dropped_of(outcome) == {"problem_unsolved": 1}
    assert outcome.faults == {"problem_unsolved": PROBLEM.question}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("so it is wrong", "verification_false"),
        ("who can say", "verification_undecided"),
        ("", "verification_undecided"),
        ("anew it is right", "verification_solves_again"),
        ("no wait it is right", "verification_with_separator"),
        ("again it is right", "verification_with_separator"),
        ("unusable", "verifier_refused"),
    ],
)
def test_the_next_sample_is_tried(said: str, reason: str) -> None:
    verifier = Scripted({"54": [said, "it is right"]})
    (outcome,) = outcomes([graded(boxed(*[54] * 5))], TrialAgents(verifier, Strict()))
    assert trials_of(outcome) == [Trial(boxed(54)[0], "it is right")]
    assert dropped_of(outcome) == {reason: 1}
    assert outcome.faults[reason] == ("no" if said == "unusable" else said)
    assert len({sample for *_, sample in verifier.asked}) == 2


def test_without_a_true_verification_there_is_no_trajectory() -> None:
    verifier = Scripted({"54": ["it is wrong"] * 5})
    (outcome,) = outcomes([graded(boxed(*[54] * 5))], TrialAgents(verifier, Strict()))
    assert not outcome.demonstrations
    assert dropped_of(outcome) == {"verification_false": 5, "problem_unverified": 1}
    # A wrong answer that nobody finds wrong.
    verifier = Scripted({"54": ["it is right"], "1": ["it is right"]})
    (outcome,) = outcomes([graded(boxed(54, 54, 54, 54, 1))], TrialAgents(verifier, Strict()))
    assert not outcome.demonstrations
    assert dropped_of(outcome) == {"verification_false": 1, "problem_unverified": 1}


def test_an_answer_with_a_false_verification_gets_another_chance() -> None:
    verifier = Scripted({"54": ["right"], "1": ["right", "wrong", "wrong"]})
    (outcome,) = outcomes([graded(boxed(54, 54, 1, 1, 1))], TrialAgents(verifier, Strict()))
    assert answers_of(trials_of(outcome)) == ["1", "54"]
    assert dropped_of(outcome) == {"verification_false": 1}


def test_samples_that_are_no_trials() -> None:
    texts = [*boxed(54), "\\boxed{ 1 } wait wrong again \\boxed{ 54 }"]
    (outcome,) = outcomes([graded(texts)])
    assert dropped_of(outcome) == {"sample_with_separator": 1}
    (outcome,) = outcomes([graded(boxed(54, 1), finish="length")])
    assert dropped_of(outcome) == {"sample_cut_off": 2, "problem_unsolved": 1}


def test_only_confirming_verifications_are_judged() -> None:
    verifier = Scripted({"54": ["anew it is right"]})
    agents = TrialAgents(verifier, Strict())
    (outcome,) = outcomes([graded(boxed(54))], agents, confirming_share=0.0)
    assert len(trials_of(outcome)) == 1 and verifier.asked[0][1] == "resolving"


# --- with the scripted agents --------------------------------------------------------------------


def sampled(num_problems: int) -> list[GradedSamples]:
    """Problems with five samples each, about half of them right."""
    rng = np.random.default_rng(0)
    found: list[GradedSamples] = []
    for problem in ChainProblems(num_problems, levels=[4, 5], split="train", seed=0):
        right = int(parse_chain(problem.question).answer)
        near = [right if rng.random() < 0.5 else int(rng.integers(100)) for _ in range(5)]
        found.append(graded(boxed(*near), problem))
    return found


def test_verdicts_are_true_and_both_kinds_are_written() -> None:
    openings = Counter[str]()
    counts = Counter[str]()
    for outcome in outcomes(
        sampled(80), TrialAgents(ChainVerifier(0.7), ScriptedJudge()), confirming_share=0.5
    ):
        counts.update(outcome.counts)
        for demonstration in outcome.demonstrations:
            for trial in WORDS.split_trials(demonstration.response):
                is_right = extract_answer(trial.solution) == outcome.problem.answer
                assert WORDS.verdict(trial.verification) is is_right
                openings[trial.verification.split()[0]] += 1
    assert counts["dropped/verification_false"] > 20
    assert set(openings) == {"back", "forward"} and min(openings.values()) > 40


def test_any_problem_can_be_the_first_and_many_are_at_work() -> None:
    problems = sampled(30)
    agents = TrialAgents(ChainVerifier(0.8), ScriptedJudge())
    options: dict[str, Any] = {"confirming_share": 0.5, "keep": (0.3, 0.5, 0.5, 0.5), "seed": 3}
    whole = outcomes(problems, agents, **options)
    assert outcomes(problems[11:], agents, **options) == whole[11:]
    assert outcomes(problems, agents, num_concurrent=7, **options) == whole
    others = outcomes(problems, agents, **{**options, "seed": 4})
    assert [o.demonstrations for o in others] != [o.demonstrations for o in whole]
