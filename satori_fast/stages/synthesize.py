# SPDX-License-Identifier: Apache-2.0
"""Demonstrations for format tuning, written to demonstrations.jsonl of the run folder.

The folder `synthesis` beside it has what a resumed run starts from: `replies.jsonl`, what language
models answered, and `finished.jsonl`, what came of each finished problem. `synthesis.html` shows
samples.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from satori_fast.config import SynthesizeConfig
from satori_fast.data.problem_file import problem_to_row
from satori_fast.profiling.metrics import ProgressReporter, progress
from satori_fast.profiling.spans import StepTimes
from satori_fast.stages.agents import Agents, agent_configs
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.run_folder import RunFolder
from satori_fast.storage import write_sealed_records
from satori_fast.synthesis.journal import Journal, OutcomeFile
from satori_fast.synthesis.page import write_page
from satori_fast.synthesis.pipeline import (
    DROPPED,
    Outcome,
    SynthesisOptions,
    distinct_problems,
    synthesize,
)
from satori_fast.synthesis.stats import SynthesisStats
from satori_fast.types import Demonstration, Problem

_TICK_S = 1.0

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
    config = context.config
    given: Sequence[Problem] = context.problems[: config.synthesize.num_problems]
    problems, journal = given, None
    prices = {
        role: (agent.prompt_price, agent.completion_price)
        for role, agent in agent_configs(config.synthesize).items()
        if agent.kind not in ("scripted", "scalar")
    }
    with contextlib.ExitStack() as stack:
        if prices:
            problems = distinct_problems(given)
            journal = Journal(folder / "synthesis" / "replies.jsonl")
            stack.enter_context(contextlib.closing(journal))
        finished = OutcomeFile(folder / "synthesis" / "finished.jsonl", problems)
        stack.enter_context(contextlib.closing(finished))
        stats = SynthesisStats(prices, journal)
        stats.counts[DROPPED + "same_question"] = len(given) - len(problems)
        bar = progress(
            context.stage, len(problems), completed=len(finished.outcomes), console=context.console
        )
        agents = Agents(
            config.synthesize,
            journal,
            pool=context.grader.pool,
            folder=folder,
            parallel=context.parallel,
            seed=lambda role: context.seeds.of(context.stage, role),
        )
        options = synthesis_options(config.synthesize, seed=context.seeds.of(context.stage))
        num_concurrent = 1 if journal is None else config.synthesize.num_concurrent
        async with contextlib.AsyncExitStack() as open_agents:
            open_agents.push_async_callback(agents.close)
            num_done = len(finished.outcomes)
            stream = synthesize(
                problems[num_done:], agents.agents, options, num_concurrent=num_concurrent
            )
            await _work(stream, bar, finished, stats)
    made = [d for outcome in finished.outcomes for d in outcome.demonstrations]
    write_demonstrations(demonstrations_path(folder), made)
    write_page(folder / "synthesis.html", made, stats, title=config.name)
    if prices:
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
        seed=seed,
    )


async def _work(
    stream: AsyncGenerator[Outcome, None],
    bar: contextlib.AbstractContextManager[ProgressReporter],
    finished: OutcomeFile,
    stats: SynthesisStats,
) -> None:
    """Add what comes of each problem that is not finished yet."""
    for outcome in finished.outcomes:
        stats.add(outcome)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(contextlib.aclosing(stream))
        reporter = stack.enter_context(bar)
        await stack.enter_async_context(_running(_tick(reporter, stats)))
        async for outcome in stream:
            finished.append(outcome)
            stats.add(outcome)
            reporter.advance(1, stats.headline())


async def _tick(reporter: ProgressReporter, stats: SynthesisStats) -> None:
    """Keep the numbers beside the bar fresh while no problem is finished."""
    while True:
        await asyncio.sleep(_TICK_S)
        reporter.advance(0, stats.headline())


@contextlib.asynccontextmanager
async def _running(endless: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """`endless` beside the body, and no longer."""
    task = asyncio.create_task(endless)
    try:
        yield
    finally:
        task.cancel()


def print_stats(stats: SynthesisStats, console: Console) -> None:
    """Tables of what was made, dropped and spent."""
    made = Table("type", "trajectories", "demonstrations", box=SIMPLE_HEAD)
    for kind, number in stats.demonstrations.items():
        made.add_row(kind, f"{stats.counts[f'trajectories/{kind}']:,}", f"{number:,}")
    dropped = Table("dropped", "times", box=SIMPLE_HEAD)
    for reason, number in stats.dropped().items():
        dropped.add_row(reason, f"{number:,}")
    columns = ("role", "requests", "retries", "prompt tokens", "reply tokens", "cost")
    spent = Table(*columns, box=SIMPLE_HEAD)
    for role, numbers in stats.spent().items():
        *counts, cost = numbers.values()
        spent.add_row(role, *(f"{number:,}" for number in counts), f"{cost:,.2f}")
    for table in (made, dropped, spent):
        for column in table.columns[1:]:
            column.justify = "right"
        console.print(table)


def write_demonstrations(path: Path, demonstrations: list[Demonstration]) -> None:
    """Write one JSON object a line; `data.sources` reads it back with mapping "coat"."""
    write_sealed_records(
        path,
        (
            {
                **problem_to_row(d.problem),
                "response": d.response,
                "trajectory_type": d.trajectory_type,
            }
            for d in demonstrations
        ),
    )
