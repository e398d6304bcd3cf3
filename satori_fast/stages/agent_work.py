# SPDX-License-Identifier: Apache-2.0
"""Work of agents inside a stage: what they replied and what came of it, on disk as it comes.

A stage of agents has a folder in the run folder with what a resumed run starts from:
`replies.jsonl`, what language models answered, and `finished.jsonl`, what came of each finished
problem. What agents do is `synthesis`; who they are is `agents`; which stage does what is
`synthesize` and `initialise`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from satori_fast.config import AgentConfig
from satori_fast.data.problem_file import problem_to_row
from satori_fast.profiling.metrics import ProgressReporter, progress
from satori_fast.stages.agents import AgentModels
from satori_fast.stages.context import Context
from satori_fast.storage import write_sealed_records
from satori_fast.synthesis.journal import Journal, OutcomeFile
from satori_fast.synthesis.outcomes import Outcome
from satori_fast.synthesis.stats import SynthesisStats
from satori_fast.types import Demonstration, Problem

_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class AgentRecords:
    """Records on disk of a stage of agents. journal: None where all agents are scripted."""

    journal: Journal | None
    finished: OutcomeFile
    stats: SynthesisStats

    @property
    def num_done(self) -> int:
        """Problems that are finished: the first ones."""
        return len(self.finished.outcomes)

    @property
    def demonstrations(self) -> list[Demonstration]:
        """Demonstrations made so far, in the order of the problems."""
        return [d for outcome in self.finished.outcomes for d in outcome.demonstrations]


def has_language_models(configs: Mapping[str, AgentConfig]) -> bool:
    """Whether any role is a language model, whose replies are worth keeping."""
    return any(agent.kind not in ("scripted", "scalar") for agent in configs.values())


@contextlib.contextmanager
def open_records(
    folder: Path,
    problems: Sequence[Problem],
    configs: Mapping[str, AgentConfig],
    *,
    types: Sequence[str],
    stage: str,
) -> Iterator[AgentRecords]:
    """The records of a stage of agents in `folder`, with those of earlier sessions.

    configs: of the roles. types: of trajectories. stage: the name before its metrics.
    """
    with contextlib.ExitStack() as stack:
        prices = {
            role: (agent.prompt_price, agent.completion_price)
            for role, agent in configs.items()
            if agent.kind not in ("scripted", "scalar")
        }
        journal = None
        if prices:
            journal = Journal(folder / "replies.jsonl")
            stack.enter_context(contextlib.closing(journal))
        finished = OutcomeFile(folder / "finished.jsonl", problems)
        stack.enter_context(contextlib.closing(finished))
        stats = SynthesisStats(prices, journal, types=types, stage=stage)
        for outcome in finished.outcomes:
            stats.add(outcome)
        yield AgentRecords(journal, finished, stats)


async def put_to_work(
    context: Context,
    folder: Path,
    problems: Sequence[Problem],
    configs: Mapping[str, AgentConfig],
    *,
    section: str,
    types: Sequence[str],
    work: Callable[[AgentModels, AgentRecords], AsyncGenerator[Outcome, None]],
    records_folder: str | None = None,
) -> AgentRecords:
    """Have agents work on the problems of a stage that earlier sessions are not done with, and
    record what comes of each as it comes; for the main process alone.

    folder: of the run. configs: of the roles, by role; section: of the config that has them.
    types: of trajectories. work: yields what becomes of problems from the first that is not done
    on, in order. records_folder: where records lie in `folder`, None for the stage's name.
    """
    stage, seeds = context.stage, context.seeds
    place = folder / (records_folder or stage)
    with open_records(place, problems, configs, types=types, stage=stage) as records:
        models = AgentModels(
            section,
            configs,
            records.journal,
            folder=folder,
            seed=lambda role: seeds.of(stage, role),
        )
        num_done = records.num_done
        bar = progress(
            stage, len(problems), unit="problem", completed=num_done, console=context.console
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(models.close)
            stream = await stack.enter_async_context(contextlib.aclosing(work(models, records)))
            reporter = stack.enter_context(bar)
            await stack.enter_async_context(_running(_tick(reporter, records.stats)))
            async for outcome in stream:
                records.finished.append(outcome)
                records.stats.add(outcome)
                reporter.advance(1, records.stats.headline())
    return records


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
    """Print tables of what was made, if anything could be, dropped and, by language models,
    spent."""
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
        if not table.rows and table is not dropped:
            continue
        for column in table.columns[1:]:
            column.justify = "right"
        console.print(table)


def write_demonstrations(path: Path, demonstrations: Sequence[Demonstration]) -> None:
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
