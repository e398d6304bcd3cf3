# SPDX-License-Identifier: Apache-2.0
"""Accuracy and self-correction of responses written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest

from satori_fast.data.arithmetic import domain_words
from satori_fast.data.formats.coat import COAT
from satori_fast.data.formats.plain import PLAIN
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.evaluation.analysis import Attempt, SelfCorrection, self_correction
from satori_fast.evaluation.evaluate import (
    EvaluationResult,
    attempts_of,
    evaluate,
    graded,
)
from satori_fast.grading import GradingPool, answer_finder
from satori_fast.rollout.engine import SamplingParams, collect
from satori_fast.types import Prefix, Problem
from tests.evaluation.test_verification import GROUP
from tests.rewards.test_process import RENDERER as TRIALS_RENDERER
from tests.rollout.scripted_engine import ScriptedEngine

RENDERER = PromptRenderer(build_word_tokenizer(domain_words()), PLAIN_TEMPLATE, 64)
THEN = "<|reflect|> over <|explore|> less <|continue|>"


def box(answer: int) -> str:
    return f"\\boxed{{ {answer} }}"


# The right answer is 4.
RESPONSES = {
    "no reflection, right": box(4),
    "no reflection, wrong": box(5),
    "no answer": "p q",
    "wrong to right": f"{box(5)} {THEN} {box(4)}",
    "wrong to wrong to right": f"{box(5)} {THEN} {box(6)} {THEN} {box(4)}",
    "right to wrong": f"{box(4)} {THEN} {box(5)}",
    "wrong to wrong": f"{box(5)} {THEN} {box(6)}",
    "wrong, unchanged": f"{box(5)} {THEN} {box(5)}",
    "wrong, there and back": f"{box(5)} {THEN} {box(6)} {THEN} {box(5)}",
    "right, unchanged": f"{box(4)} {THEN} {box(4)}",
    "right, left and found again": f"{box(4)} {THEN} {box(5)} {THEN} {box(4)}",
    "right, confirmed": f"{box(4)} <|reflect|> right",
    "wrong, confirmed": f"{box(5)} <|reflect|> right",
    "no answer before the reflection, right": f"p q {THEN} {box(4)}",
    "no answer before the reflection, wrong": f"p q {THEN} {box(5)}",
    "first answer after a reflection, then mended": f"p {THEN} {box(5)} {THEN} {box(4)}",
    "two boxes before the reflection": f"{box(4)} {box(5)} {THEN} {box(4)}",
}
NONE, MENDED = SelfCorrection(0, 0, 0, 0, 0), SelfCorrection(1, 0, 0, 0, 0)
SPOILT, STILL_WRONG = SelfCorrection(0, 1, 0, 0, 0), SelfCorrection(0, 0, 1, 0, 0)
RIGHT_KEPT, WRONG_KEPT = SelfCorrection(0, 0, 0, 1, 0), SelfCorrection(0, 0, 0, 0, 1)
TABLE = {
    "wrong to right": MENDED,
    "wrong to wrong to right": MENDED,
    "right to wrong": SPOILT,
    "wrong to wrong": STILL_WRONG,
    "first answer after a reflection, then mended": MENDED,
    "two boxes before the reflection": MENDED,
    "wrong, unchanged": WRONG_KEPT,
    "wrong, there and back": WRONG_KEPT,
    "wrong, confirmed": WRONG_KEPT,
    "right, unchanged": RIGHT_KEPT,
    "right, left and found again": RIGHT_KEPT,
    "right, confirmed": RIGHT_KEPT,
}
RIGHT = {
    "no reflection, right",
    "wrong to right",
    "wrong to wrong to right",
    "right, unchanged",
    "right, left and found again",
    "right, confirmed",
    "no answer before the reflection, right",
    "first answer after a reflection, then mended",
    "two boxes before the reflection",
}


@pytest.fixture
def pool() -> Iterator[GradingPool]:
    with GradingPool(num_workers=0) as opened:
        yield opened


def evaluated(
    responses: Mapping[str, str], pool: GradingPool, *, max_new_tokens: int = 100
) -> EvaluationResult:
    """Evaluate responses to numbered problems, all with the answer 4."""
    problems = [Problem(name, f"sum {i}", "4") for i, name in enumerate(responses)]
    script = {f"sum {i}": [text] for i, text in enumerate(responses.values())}
    engine = ScriptedEngine(RENDERER, script, policy_version=3)
    return evaluate(engine, problems, max_new_tokens=max_new_tokens, pool=pool)


@pytest.mark.parametrize("name", RESPONSES)
def test_self_correction_of_each_kind(name: str, pool: GradingPool) -> None:
    result = evaluated({name: RESPONSES[name]}, pool)
    assert result.self_correction == TABLE.get(name, NONE)
    assert result.correct == (name in RIGHT,)


def test_all_together(pool: GradingPool) -> None:
    result = evaluated(RESPONSES, pool)
    assert result.num_problems == len(RESPONSES) == 17
    assert result.correct == tuple(name in RIGHT for name in RESPONSES)
    assert result.accuracy == pytest.approx(len(RIGHT) / 17)
    assert result.standard_error == pytest.approx((9 / 17 * 8 / 17 / 17) ** 0.5)
    assert result.self_correction == SelfCorrection(4, 1, 1, 3, 3)
    # 11 reflections on wrong answers, where "unchanged" and "confirmed" left one alone; 4 on right
    # ones, of which two changed it.
    quality = result.verdict_quality
    assert (quality.num_changed, quality.num_on_wrong) == (9, 11)
    assert (quality.num_kept, quality.num_on_right) == (2, 4)
    num_reflections = sum(text.count("<|reflect|>") for text in RESPONSES.values())
    assert result.reflections_per_answer == pytest.approx(num_reflections / 17)
    assert result.truncated == 0
    assert result.rollout.policy_version == 3


def test_metrics_are_shares_of_all_problems(pool: GradingPool) -> None:
    metrics = evaluated(RESPONSES, pool).metrics()
    assert metrics["eval/accuracy"] == pytest.approx(9 / 17)
    assert metrics["eval/wrong_to_right"] == pytest.approx(4 / 17)
    assert metrics["eval/right_to_wrong"] == pytest.approx(1 / 17)
    assert metrics["eval/wrong_to_wrong"] == pytest.approx(1 / 17)
    assert metrics["eval/error_recall"] == pytest.approx(9 / 11)
    assert metrics["eval/right_kept"] == pytest.approx(2 / 4)
    assert all(isinstance(value, float) for value in metrics.values())
    assert "eval/right_kept" not in evaluated({"wrong": box(5)}, pool).metrics()


def test_the_analysis_is_of_the_same_answers(pool: GradingPool) -> None:
    analysis = evaluated(RESPONSES, pool).analysis(earlier=[{"no answer": False}])
    assert analysis["changes"]["num_reflected"] == 12
    assert sum(group["count"] for group in analysis["by_length"]) == 17
    assert [(g["label"], g["count"]) for g in analysis["by_earlier"]] == [("none", 1)]
    assert analysis["correct"] == {name: name in RIGHT for name in RESPONSES}


def test_attempts_are_the_answers_that_stood_before_reflections_and_at_the_end(
    pool: GradingPool,
) -> None:
    attempts = dict(zip(RESPONSES, evaluated(RESPONSES, pool).attempts, strict=True))
    assert attempts["no answer"] == ()
    assert attempts["no reflection, wrong"] == (Attempt("5", False),)
    assert attempts["wrong to wrong to right"] == (
        Attempt("5", False),
        Attempt("6", False),
        Attempt("4", True),
    )
    assert attempts["no answer before the reflection, right"] == (Attempt("4", True),)
    assert attempts["wrong, confirmed"] == (Attempt("5", False), Attempt("5", False))


def test_reflections_in_the_middle_make_no_attempts(pool: GradingPool) -> None:
    # One box and two reflections before it; then two boxes, with a reflection between and one on
    # the way to the second.
    once = f"1<|reflect|> no<|explore|> 2<|reflect|> yes<|continue|> {box(4)}"
    twice = f"1<|continue|> {box(5)}<|reflect|> no<|explore|> 2<|reflect|> yes<|continue|> {box(4)}"
    result = evaluated({"once": once, "twice": twice}, pool)
    assert result.attempts == (
        (Attempt("4", True),),
        (Attempt("5", False), Attempt("4", True)),
    )
    assert result.self_correction == MENDED
    quality = result.verdict_quality
    assert (quality.num_on_wrong, quality.num_changed, quality.num_on_right) == (1, 1, 0)
    assert result.reflections_per_answer == 2


def test_a_domain_counts_beside_the_format(pool: GradingPool) -> None:
    problems = [Problem(str(i), f"sum {i}", "4") for i in range(3)]
    script = {f"sum {i}": [box(4)] for i in range(3)}

    def counts(question: str, response: str) -> dict[str, float]:
        number = float(question[-1])
        assert response == box(4)
        return {"number": number} | ({"rare": 7.0} if number == 2 else {})

    engine = ScriptedEngine(RENDERER, script)
    result = evaluate(engine, problems, max_new_tokens=9, pool=pool, counts=counts)
    # Over those that have it: 0, 1 and 2, and one 7.
    assert result.format_metrics == {"reflections_per_answer": 0.0, "number": 1.0, "rare": 7.0}
    assert result.metrics()["eval/rare"] == 7.0


def test_lengths_and_truncation(pool: GradingPool) -> None:
    # "\\boxed{ 4 }" is three tokens, the end of the text a fourth.
    result = evaluated({"short": box(4), "long": f"p q {box(4)}"}, pool, max_new_tokens=4)
    assert result.mean_response_tokens == 4
    assert result.truncated == 0.5
    assert result.correct == (True, False)


def test_evaluation_is_greedy_with_one_response(pool: GradingPool) -> None:
    engine = ScriptedEngine(RENDERER, {"sum 4": [box(4)]})
    problem = Problem("one", "sum 4", "4")
    evaluate(engine, [problem, problem], max_new_tokens=9, pool=pool)
    assert len(engine.requests) == 2
    assert engine.sampling is not None
    assert engine.sampling.temperature == 0
    assert engine.sampling.num_samples == 1
    assert [r.max_new_tokens for r in engine.requests] == [9, 9]


def test_a_restart_is_judged_with_its_prefix(pool: GradingPool) -> None:
    prefix = Prefix(f"{box(5)}<|reflect|>", "restart", correct=False)
    problem = Problem("one", "sum 4", "4", prefix)
    script = {f"sum 4 {box(5)} <|reflect|>": [f"over <|explore|> less <|continue|> {box(4)}"]}
    rollout = collect(ScriptedEngine(RENDERER, script), [problem], SamplingParams())
    correct = graded(rollout.trajectories, pool)
    assert correct == [True]
    assert self_correction(attempts_of(rollout.trajectories, correct, pool, format=COAT)) == MENDED


def test_nothing_to_evaluate(pool: GradingPool) -> None:
    with pytest.raises(ValueError, match="evaluation has no problem"):
        evaluate(ScriptedEngine(RENDERER, {}), [], max_new_tokens=9, pool=pool)


def test_problem_without_an_answer(pool: GradingPool) -> None:
    engine = ScriptedEngine(RENDERER, {"sum 4": [box(4)]})
    with pytest.raises(ValueError, match="problem 'one' has no answer to grade against"):
        evaluate(engine, [Problem("one", "sum 4", None)], max_new_tokens=9, pool=pool)


def test_a_format_without_attempts_leaves_their_metrics_out(pool: GradingPool) -> None:
    renderer = replace(RENDERER, format=PLAIN)
    script = {"sum 0": [f"{box(5)} <|reflect|> over {box(4)}"], "sum 1": [box(5)]}
    problems = [Problem(str(i), f"sum {i}", "4") for i in range(2)]
    result = evaluate(ScriptedEngine(renderer, script), problems, max_new_tokens=60, pool=pool)
    assert result.correct == (True, False)
    assert result.reflections_per_answer is None and result.format_metrics == {}
    assert set(result.metrics()) == {
        "eval/accuracy",
        "eval/mean_response_tokens",
        "eval/truncated",
        "eval/no_answer",
    }
    analysis = result.analysis()
    assert analysis["by_reflections"] == [] and analysis["changes"]["num_reflected"] == 0
    assert analysis["verification"] is None


def test_answers_are_found_where_the_run_looks_for_them() -> None:
    renderer = replace(RENDERER, format=PLAIN)
    script = {"sum 0": ["left 4"], "sum 1": [f"{box(4)} left 5"], "sum 2": ["over"]}
    problems = [Problem(str(i), f"sum {i}", "4") for i in range(3)]
    with GradingPool(0, finder=answer_finder("last_number")) as numbers:
        engine = ScriptedEngine(renderer, script)
        result = evaluate(engine, problems, max_new_tokens=60, pool=numbers)
    assert result.correct == (True, False, False)
    assert [[a.answer for a in own] for own in result.attempts] == [["4"], ["5"], []]
    assert result.no_answer == pytest.approx(1 / 3)


def evaluated_trials(pool: GradingPool) -> EvaluationResult:
    """The worked group as answers to four problems, two on each level."""
    questions = [f"p {n}" for n in range(1, 5)]
    problems = [Problem(q, q, "p q", level=str(1 + n // 2)) for n, q in enumerate(questions)]
    script = {q: [text] for q, text in zip(questions, GROUP, strict=True)}
    engine = ScriptedEngine(TRIALS_RENDERER, script)
    return evaluate(engine, problems, max_new_tokens=60, pool=pool, right=1.0)


def test_verifications_are_judged_by_their_verdicts(pool: GradingPool) -> None:
    result = evaluated_trials(pool)
    assert result.correct == (True, True, False, False)
    metrics = result.metrics()
    assert {name: metrics[f"eval/{name}"] for name in ("error_recall", "correct_precision")} == {
        "error_recall": 0.5,
        "correct_precision": 0.5,
    }
    assert metrics["eval/wrong_to_right"] == pytest.approx(1 / 3)
    assert (metrics["eval/right_to_wrong"], metrics["eval/trials"]) == (0.0, 1.5)
    assert metrics["eval/verifications"] == 6.0
    assert not {"eval/right_kept", "eval/wrong_to_wrong"} & metrics.keys()


def test_the_analysis_has_trials_by_difficulty(pool: GradingPool) -> None:
    earlier = [{"p 1": True, "p 2": True, "p 3": True, "p 4": False}]
    analysis = evaluated_trials(pool).analysis(earlier)
    block = analysis["verification"]
    assert block["verification_accuracy"] == pytest.approx(4 / 6) and block["trials"] == 1.5
    # Rewards of the second level: -1 -1; -1 +1 -1 -1.
    assert [
        (g["label"], g["trials"], g["num_verifications"], g["verification_accuracy"])
        for g in block["by_level"]
    ] == [("1", 1.5, 3, 1.0), ("2", 1.5, 3, pytest.approx(1 / 3))]
    assert [(g["label"], g["num_responses"], g["trials"]) for g in block["by_earlier"]] == [
        ("none", 1, 2.0),
        ("all", 3, pytest.approx(4 / 3)),
    ]
    # Nothing else is called a verdict; answers that were changed stay counted.
    assert analysis["verdicts"]["error_recall"] is None
    assert (analysis["changes"]["wrong_to_right"], analysis["changes"]["num_reflected"]) == (1, 2)


def test_samples_have_the_rewards_of_answers_and_of_actions(pool: GradingPool) -> None:
    first, _, third = evaluated_trials(pool).samples(3)
    assert first.reward is not None and third.reward is not None
    assert (first.reward.terms, third.reward.terms) == ({"rule": 1.0}, {"rule": -1.0})
    assert first.reward.segments is not None
    assert first.reward.segments.tolist() == [-1, 1, 1, 1]
    (plain,) = evaluated({"right": box(4)}, pool).samples(1)
    assert plain.reward is not None
    assert (plain.reward.terms, plain.reward.actions) == ({"rule": 0.0}, None)
