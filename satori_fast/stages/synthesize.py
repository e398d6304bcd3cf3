# SPDX-License-Identifier: Apache-2.0
"""Demonstrations for format tuning, written to demonstrations.jsonl of the run folder."""

from __future__ import annotations

import json
from pathlib import Path

from satori_fast.config import ConfigError
from satori_fast.profiling.metrics import progress
from satori_fast.profiling.spans import StepTimes
from satori_fast.stages.run import Run, StageOutcome
from satori_fast.stages.setup import ARITHMETIC
from satori_fast.synthesis.agents import CheckingCritic, RepetitionRewardModel, SlippingGenerator
from satori_fast.synthesis.pipeline import SynthesisAgents, count_types, synthesize
from satori_fast.types import Demonstration


def demonstrations_path(run: Run) -> Path:
    return run.folder / "demonstrations.jsonl"


def synthesize_demonstrations(run: Run) -> StageOutcome:
    """Run the three agents over the first training problems."""
    config = run.config.synthesize
    if run.config.data.source != ARITHMETIC:
        raise ConfigError(
            f"the scripted agents know the built-in domain only, not {run.config.data.source!r}: "
            "take synthesize out of stages and set supervised.source"
        )
    agents = SynthesisAgents(
        SlippingGenerator(config.generator_skill), CheckingCritic(), RepetitionRewardModel()
    )
    problems = run.problems[: config.num_problems]
    made: list[Demonstration] = []
    run.spans.start_step()
    with (
        run.spans.span("synthesize"),
        progress(run.stage, len(problems), console=run.console) as bar,
    ):
        for problem in problems:
            made += synthesize(
                [problem],
                agents,
                num_solutions=config.num_solutions,
                num_kept=config.num_kept,
                max_rounds=config.max_rounds,
                critic_share=config.critic_share,
                confirm_share=config.confirm_share,
                seed=run.seed(run.stage),
            )
            bar.advance()
    run.parallel.on_main(lambda: write_demonstrations(demonstrations_path(run), made))
    counts = {f"synthesize/type_{kind}": float(n) for kind, n in count_types(made).items()}
    times = run.record(0, {"synthesize/demonstrations": float(len(made)), **counts})
    return StageOutcome(models={}, evaluation=None, times=StepTimes() + times)


def write_demonstrations(path: Path, demonstrations: list[Demonstration]) -> None:
    """One JSON object a line; `data.sources` reads it back with mapping "coat"."""
    lines = [
        json.dumps(
            {
                "problem_id": d.problem.problem_id,
                "question": d.problem.question,
                "answer": d.problem.answer,
                "response": d.response,
                "trajectory_type": d.trajectory_type,
            }
        )
        + "\n"
        for d in demonstrations
    ]
    partial = path.with_suffix(".jsonl.partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)
