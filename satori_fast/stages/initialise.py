# SPDX-License-Identifier: Apache-2.0
"""Behaviour initialisation (S2R, section 3.2): the policy learns to verify and to try again.

It solves training problems, agents verify its solutions, and trajectories of trials are made of
both (`synthesis.trials`). The policy imitates them: its verifications and its last solutions, not
what it did wrong, and near the model that it was.

The folder `initialise` of the run folder has what a resumed run starts from (`agent_work`), beside
solutions/initialise.jsonl; `initialise.html` shows samples and what was dropped.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import numpy as np

from satori_fast.config import ConfigError, InitialiseConfig, SolutionsConfig
from satori_fast.data.formats import ResponseFormat
from satori_fast.data.formats.trials import Trials
from satori_fast.stages.agent_work import (
    AgentRecords,
    has_language_models,
    print_stats,
    put_to_work,
    write_demonstrations,
)
from satori_fast.stages.agents import AgentModels, trial_agent_configs, trial_agents
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.run_folder import RunFolder
from satori_fast.stages.solutions import SolutionFile
from satori_fast.stages.supervised import imitate, load_trajectories
from satori_fast.storage import read_sealed, wait_for_file, write_sealed
from satori_fast.synthesis.outcomes import Outcome
from satori_fast.synthesis.page import Action, write_page
from satori_fast.synthesis.stats import SynthesisStats
from satori_fast.synthesis.trials import (
    TRIAL_TYPES,
    GradedSamples,
    TrialOptions,
    make_trials,
)
from satori_fast.types import SegmentKind, Trajectory

_MEANINGS = {
    "1": "right at once",
    "2": "one wrong answer before the right one",
    "3": "two wrong answers before the right one",
    "4": "three wrong answers before the right one",
}


def initialise(context: Context, folder: RunFolder, books: Books) -> StageOutcome:
    """Solve, write trials, and imitate them from the policy as it is."""
    config, stage = context.config.initialise, context.stage
    path = folder.path / f"demonstrations_{stage}.jsonl"
    metrics_path = path.with_suffix(".json")
    if not folder.from_main(path.exists):
        # No name keeps the model that samples: its memory is the one's that learns.
        solutions = context.solver(folder, books).solutions(
            context.engine(context.model_folders.policy(context.policy_folder)),
            name=stage,
            size=SolutionsConfig(
                num_problems=config.num_problems,
                num_samples=config.num_samples,
                temperature=config.temperature,
            ),
        )
        with books.spans.span("initialise"):
            # It may take days: the others wait as long as this process shows signs of life.
            context.parallel.from_main(
                lambda: asyncio.run(_write_trials(context, folder.path, solutions, path)),
                limit_s=math.inf,
            )
        folder.keep(path)
    made: dict[str, float] = read_sealed(wait_for_file(metrics_path))
    trajectories = load_trajectories(
        str(wait_for_file(path)),
        "coat",
        context.renderer,
        problems=context.problems,
        heldout=context.heldout,
        max_seqlen=context.config.rollout.max_seqlen,
    )
    outcome = imitate(
        context,
        folder,
        books,
        trajectories,
        config=config,
        start=context.policy_folder,
        first_metrics=made,
    )
    figures = {"num_demonstrations": len(trajectories), "mean_trials": mean_trials(trajectories)}
    return StageOutcome(outcome.models, outcome.evaluation, outcome.times, figures)


def mean_trials(trajectories: Sequence[Trajectory]) -> float:
    """Solutions per trajectory."""
    return float(
        np.mean([sum(s.kind is SegmentKind.SOLVE for s in t.segments) for t in trajectories])
    )


async def _write_trials(
    context: Context, folder: Path, solutions: SolutionFile, path: Path
) -> None:
    """Work, and leave the demonstrations in `path`, with their figures beside it."""
    config, seeds, stage = context.config.initialise, context.seeds, context.stage
    graded = graded_samples(solutions)
    configs = trial_agent_configs(config)
    asks = has_language_models(configs)
    problems = [each.problem for each in graded]
    options = trial_options(config, context.renderer.format, seed=seeds.of(stage, "trials"))

    def work(models: AgentModels, records: AgentRecords) -> AsyncGenerator[Outcome, None]:
        return make_trials(
            graded[records.num_done :],
            trial_agents(config, models, source=context.config.data.source),
            options,
            num_concurrent=config.num_concurrent if asks else 1,
        )

    records = await put_to_work(
        context, folder, problems, configs, section="initialise", types=TRIAL_TYPES, work=work
    )
    made, stats = records.demonstrations, records.stats
    dialect = options.dialect
    write_page(
        folder / f"{stage}.html",
        made,
        stats,
        title=f"{context.config.name}: {stage}",
        meanings=_MEANINGS,
        actions=lambda text: [Action(str(k), piece.strip()) for k, piece in dialect.actions(text)],
    )
    print_stats(stats, context.console)
    if not made:
        raise ConfigError(_nothing_made(stats, len(problems)))
    write_sealed(path.with_suffix(".json"), stats.metrics())
    write_demonstrations(path, made)


def graded_samples(solutions: SolutionFile) -> list[GradedSamples]:
    """The samples of each problem, in the order of the file."""
    return [GradedSamples(solved[0][0].problem, solved) for solved in solutions]


def trial_options(config: InitialiseConfig, format: ResponseFormat, *, seed: int) -> TrialOptions:
    """Options of the trials by the section `initialise`. format: of the run's responses."""
    assert isinstance(format, Trials)  # checked with the config
    return TrialOptions(
        dialect=format.dialect,
        max_trials=config.max_trials,
        keep=config.keep,
        confirming_share=config.confirming_share,
        seed=seed,
    )


def _nothing_made(stats: SynthesisStats, num_problems: int) -> str:
    dropped = ", ".join(f"{reason} {number}" for reason, number in stats.dropped().items())
    return (
        f"initialise made no trajectory of {num_problems} problems (dropped: {dropped}): raise "
        "initialise.num_problems, start from a model that solves some of them, or look at "
        "initialise.html for what was dropped"
    )
