# SPDX-License-Identifier: Apache-2.0
"""Demonstrations for format tuning, written to demonstrations.jsonl of the run folder.

The folder `synthesis` beside it has what a resumed run starts from (`agent_work`).
`synthesis.html` shows samples.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

from satori_fast.config import SynthesizeConfig
from satori_fast.profiling.spans import StepTimes
from satori_fast.stages.agent_work import (
    AgentRecords,
    has_language_models,
    print_stats,
    put_to_work,
    write_demonstrations,
)
from satori_fast.stages.agents import AgentModels, agent_configs, synthesis_agents
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.run_folder import RunFolder
from satori_fast.synthesis.outcomes import DROPPED, Outcome
from satori_fast.synthesis.page import write_page
from satori_fast.synthesis.pipeline import (
    TRAJECTORY_TYPES,
    UNCHECKED,
    SynthesisOptions,
    distinct_problems,
    synthesize,
)
from satori_fast.types import Problem

Metrics = Mapping[str, float]


def demonstrations_path(folder: Path) -> Path:
    """The demonstrations that the synthesis of a run leaves."""
    return folder / "demonstrations.jsonl"


def synthesize_demonstrations(context: Context, folder: RunFolder, books: Books) -> StageOutcome:
    """Run the three agents over the first training problems, in the main process alone."""
    books.spans.start_step()
    with books.spans.span("synthesize"):
        # It may take days: the others wait as long as this process shows signs of life.
        metrics = context.parallel.from_main(
            lambda: asyncio.run(_synthesize(context, folder.path)), limit_s=math.inf
        )
        folder.keep(demonstrations_path(folder.path))
    return StageOutcome(models={}, evaluation=None, times=StepTimes() + books.record(0, metrics))


async def _synthesize(context: Context, folder: Path) -> Metrics:
    """Work, write what it came to, and return its metrics."""
    config, seeds, stage = context.config, context.seeds, context.stage
    given: Sequence[Problem] = context.problems[: config.synthesize.num_problems]
    configs = agent_configs(config.synthesize)
    asks = has_language_models(configs)
    problems = distinct_problems(given) if asks else given

    def work(models: AgentModels, records: AgentRecords) -> AsyncGenerator[Outcome, None]:
        records.stats.counts[DROPPED + "same_question"] = len(given) - len(problems)
        return synthesize(
            problems[records.num_done :],
            synthesis_agents(
                config.synthesize,
                models,
                source=config.data.source,
                pool=context.grader.pool,
                parallel=context.parallel,
            ),
            synthesis_options(config.synthesize, seed=seeds.of(stage)),
            num_concurrent=config.synthesize.num_concurrent if asks else 1,
        )

    records = await put_to_work(
        context,
        folder,
        problems,
        configs,
        section="synthesize",
        types=TRAJECTORY_TYPES + ((UNCHECKED,) if config.synthesize.unchecked_share else ()),
        work=work,
        records_folder="synthesis",
    )
    stats = records.stats
    made = records.demonstrations
    write_demonstrations(demonstrations_path(folder), made)
    page = folder / "synthesis.html"
    write_page(page, made, stats, title=f"{config.name}: synthesis")
    if asks:
        print_stats(stats, context.console)
    return stats.metrics()


def synthesis_options(config: SynthesizeConfig, *, seed: int) -> SynthesisOptions:
    """Options of the pipeline by the section `synthesize`."""
    return SynthesisOptions(
        num_solutions=config.num_solutions,
        num_kept=config.num_kept,
        max_rounds=config.max_rounds,
        critic_share=config.critic_share,
        confirm_share=config.confirm_share,
        unchecked_share=config.unchecked_share,
        seed=seed,
    )
