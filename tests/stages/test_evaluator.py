# SPDX-License-Identifier: Apache-2.0
"""Evaluation inside a run: of the policy of now, by its settings, and recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.profiling.metrics import read_metrics
from satori_fast.rollout.restarting import Restarting
from satori_fast.stages.evaluator import Evaluator
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.run import Run, build_run
from satori_fast.types import Problem
from tests.rollout.scripted_engine import ScriptedEngine
from tests.rollout.test_engine import RENDERER
from tests.rollout.test_restarting import NoWeights
from tests.stages.test_run import tiny_config

ANSWERS = {"sum 1": ["\\boxed{ 1 }"], "sum 2": ["\\boxed{ 1 }"], "sum 3": ["\\boxed{ 3 } p p p"]}
HELDOUT = [Problem(question, question, question[-1]) for question in ANSWERS]


def evaluator_of(run: Run) -> Evaluator:
    """The run's, on problems that `ANSWERS` answers."""
    context = run.context(plan_stages(run.config)[-1])
    return replace(context.evaluator(run.books), problems=HELDOUT)


def served() -> tuple[Restarting, ScriptedEngine]:
    engine = ScriptedEngine(RENDERER, ANSWERS)
    return Restarting(engine, initialize_parallel(seed=0), max_restarts=0), engine


def test_heldout_problems_are_asked_greedily_within_the_limit(tmp_path: Path) -> None:
    with build_run(tiny_config(tmp_path)) as run:
        restarting, engine = served()
        result = evaluator_of(run).evaluate(restarting)
        assert result.correct == (True, False, True)
        assert engine.sampling is not None and engine.sampling.temperature == 0
        assert {request.max_new_tokens for request in engine.requests} == {24}
        times = run.books.spans.end_step()
        assert times.tokens["evaluate"] == result.rollout.num_generated_tokens > 0
    options = ("--name", "short", "--evaluation.max_new_tokens", "4")
    with build_run(tiny_config(tmp_path, *options)) as run:
        restarting, engine = served()
        result = evaluator_of(run).evaluate(restarting)
        assert {request.max_new_tokens for request in engine.requests} == {4}
        assert result.truncated > 0


def test_the_engine_is_synced_where_it_has_other_weights(tmp_path: Path) -> None:
    with build_run(tiny_config(tmp_path)) as run:
        evaluator = evaluator_of(run)
        restarting, engine = served()
        evaluator.evaluate_policy(restarting, NoWeights(), version=0)
        assert restarting.policy_version == 0
        evaluator.evaluate_policy(restarting, NoWeights(), version=5)
        assert restarting.policy_version == engine.policy_version == 5


def test_samples_are_written_with_their_verdicts(tmp_path: Path) -> None:
    options = ("--evaluation.num_logged_samples", "2")
    with build_run(tiny_config(tmp_path, *options)) as run:
        evaluator = evaluator_of(run)
        run.books.begin_stage("reinforce")
        result = evaluator.evaluate(served()[0])
        assert evaluator.record(7, result) == result.metrics()
    samples = read_metrics(tmp_path / "tiny" / "samples.jsonl")
    assert [(s["stage"], s["step"], s["question"]) for s in samples] == [
        ("reinforce", 7, "sum 1"),
        ("reinforce", 7, "sum 2"),
    ]
    assert [s["correct"] for s in samples] == [True, False]


def test_slips_are_counted_where_the_domain_knows_the_format(tmp_path: Path) -> None:
    chains = ("--data.source", "chains", "--data.levels", "[4]")
    for number, (options, is_counted) in enumerate(
        [(chains, True), ((*chains, "--data.format", "plain"), False), ((), False)]
    ):
        name = ("--name", f"run-{number}", "--stages", '["reinforce"]')
        with build_run(tiny_config(tmp_path, *name, *options)) as run:
            context = run.context(plan_stages(run.config)[-1])
            assert (context.evaluator(run.books).counts is not None) is is_counted
