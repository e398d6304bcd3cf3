# SPDX-License-Identifier: Apache-2.0
"""The entry of a stage in summary.json: its times, its figures, and what its evaluation found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from satori_fast.data.formats import FORMATS
from satori_fast.evaluation.evaluate import EvaluationResult, evaluate
from satori_fast.grading import GradingPool
from satori_fast.profiling.spans import StepTimes
from satori_fast.stages.outcome import StageOutcome, stage_entry
from satori_fast.types import Problem
from tests.rewards.test_process import RENDERER as TRIALS_RENDERER
from tests.rollout.scripted_engine import ScriptedEngine
from tests.rollout.test_engine import RENDERER

ANSWERS = {"sum 1": ["\\boxed{ 2 } <|reflect|> \\boxed{ 1 }"], "sum 2": ["\\boxed{ 1 }"]}
PROBLEMS = [Problem(question, question, "1") for question in ANSWERS]


def result() -> EvaluationResult:
    engine = ScriptedEngine(RENDERER, ANSWERS)
    return evaluate(engine, PROBLEMS, max_new_tokens=50, pool=GradingPool(0))


def test_a_stage_that_trains_nothing_has_its_times_and_figures() -> None:
    times = StepTimes(wall_s=3.0, spans_s={"synthesize": 2.0})
    setup = StepTimes(wall_s=1.0, spans_s={"load": 0.5})
    outcome = StageOutcome({}, None, times, {"num_pairs": 5.0})
    assert stage_entry("synthesize", outcome, setup) == {
        "stage": "synthesize",
        "wall_s": 4.0,
        "tokens_per_s": {},
        "seconds": {"synthesize": 2.0, "load": 0.5},
        "num_pairs": 5.0,
    }


def test_an_evaluation_is_in_the_entry() -> None:
    evaluation = result()
    entry = stage_entry("reinforce", StageOutcome({}, evaluation, StepTimes()), StepTimes())
    assert entry["accuracy"] == 1.0 and entry["num_problems"] == 2
    assert (entry["wrong_to_right"], entry["right_to_wrong"], entry["wrong_to_wrong"]) == (
        0.5,
        0.0,
        0.0,
    )
    assert entry["reflections_per_answer"] == 0.5 and entry["error_recall"] == 1.0
    assert entry["mean_response_tokens"] == pytest.approx(
        sum(t.num_response_tokens for t in evaluation.rollout.trajectories) / 2
    )


def test_a_format_without_reflections_says_nothing_of_them() -> None:
    plain = replace(result(), format=FORMATS["plain"], format_metrics={})
    entry = stage_entry("reinforce", StageOutcome({}, plain, StepTimes()), StepTimes())
    assert entry["wrong_to_right"] is None and entry["reflections_per_answer"] is None


def test_shares_of_a_format_with_verifications_are_those_of_its_verdicts() -> None:
    texts = [r"\boxed{ q } wait wrong again \boxed{ p } wait right", r"\boxed{ q } wait right"]
    script = {f"p {n}": [text] for n, text in enumerate(texts)}
    problems = [Problem(question, question, "p") for question in script]
    engine = ScriptedEngine(TRIALS_RENDERER, script)
    judged = evaluate(engine, problems, max_new_tokens=50, pool=GradingPool(0))
    entry = stage_entry("reinforce", StageOutcome({}, judged, StepTimes()), StepTimes())
    # Of two that began wrong one ends right; of three verdicts two are true.
    assert (entry["wrong_to_right"], entry["right_to_wrong"]) == (0.5, None)
    assert (entry["error_recall"], entry["verification_accuracy"]) == (0.5, pytest.approx(2 / 3))
    assert entry["wrong_to_wrong"] is None and entry["right_kept"] is None
