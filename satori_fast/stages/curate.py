# SPDX-License-Identifier: Apache-2.0
"""A better pool of training problems: valid questions, answers that an agent confirms, no question
twice in nearly the same words.

The main process decides, once. problems.jsonl has what is kept, for the later stages of the run
(`Context.curated`) and as data.source of other runs, with data.mapping = "coat"; curation.json what
was left out, by reason, each with an example, rows that could not be read included. The folder
`curate` has what a killed run resumes from (`agent_work`). The rules are `data.curation`,
repetitions `data.near_duplicates`, the agent `synthesis.label_agents`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from satori_fast.config import ConfigError
from satori_fast.data.curation import LeftOut, valid_problems
from satori_fast.data.near_duplicates import distinct_questions
from satori_fast.data.problem_file import problem_to_row, read_skipped
from satori_fast.profiling.spans import StepTimes
from satori_fast.stages.agent_work import (
    AgentRecords,
    has_language_models,
    print_stats,
    put_to_work,
)
from satori_fast.stages.agents import AgentModels, label_agent_configs, problem_labeller
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.run_folder import CURATED, RunFolder
from satori_fast.storage import read_sealed, wait_for_file, write_sealed, write_sealed_records
from satori_fast.synthesis.label_agents import label_problems
from satori_fast.synthesis.outcomes import Outcome
from satori_fast.synthesis.stats import SynthesisStats
from satori_fast.types import Problem

logger = logging.getLogger(__name__)


def report_path(folder: Path) -> Path:
    """Counts and examples of what the curation of a run left out."""
    return folder / "curation.json"


def curate(context: Context, folder: RunFolder, books: Books) -> StageOutcome:
    """Choose the training problems of the stages to come, in the main process alone."""
    report = report_path(folder.path)
    books.spans.start_step()
    with books.spans.span("curate"):
        # It may take days: the others wait as long as this process shows signs of life.
        context.parallel.from_main(
            lambda: asyncio.run(_curate(context, folder.path)), limit_s=math.inf
        )
        folder.keep(folder.path / CURATED)
        folder.keep(report)
    figures: dict[str, float] = read_sealed(wait_for_file(report))["figures"]
    metrics = {f"{context.stage}/{name}": number for name, number in figures.items()}
    times = StepTimes() + books.record(0, metrics)
    return StageOutcome(models={}, evaluation=None, times=times, figures=figures)


async def _curate(context: Context, folder: Path) -> None:
    """Work, and write the problems that are kept and the report."""
    given, left_out = context.problems, LeftOut()
    kept = valid_problems(given, left_out)
    _check_left(kept, given, left_out)
    counted: dict[str, float] = {}
    if label_agent_configs(context.config.curate):
        kept, counted = await _confirmed(context, folder, kept, left_out)
        _check_left(kept, given, left_out)
    if threshold := context.config.curate.near_duplicates:
        kept = distinct_questions(kept, threshold, left_out)
    # Rows of the data sets that are no problems, as an answer that the grader cannot read.
    skipped = read_skipped(folder / "data")
    figures: dict[str, float] = {
        "rows_skipped": float(sum(each["count"] for each in skipped.values())),
        "num_problems": float(len(given)),
        "num_kept": float(len(kept)),
        **{f"left_out_{reason}": float(count) for reason, count in left_out.counts.most_common()},
        **counted,
    }
    logger.info(
        "%d of %d problems are kept; left out: %s",
        len(kept),
        len(given),
        left_out.in_words() or "none",
    )
    write_sealed_records(folder / CURATED, map(problem_to_row, kept))
    report: dict[str, Any] = {
        "figures": figures,
        "rows_skipped": skipped,
        "left_out": left_out.by_reason(),
    }
    write_sealed(report_path(folder), report)


async def _confirmed(
    context: Context, folder: Path, problems: Sequence[Problem], left_out: LeftOut
) -> tuple[list[Problem], dict[str, float]]:
    """The problems whose answer the labeller confirms, and what was counted; what replies of
    earlier sessions say is not asked again."""
    config = context.config.curate
    configs = label_agent_configs(config)

    def work(models: AgentModels, records: AgentRecords) -> AsyncGenerator[Outcome, None]:
        return label_problems(
            problems[records.num_done :],
            problem_labeller(models, source=context.config.data.source),
            num_labels=config.num_labels,
            agreement=config.agreement,
            pool=context.grader.pool,
            num_concurrent=config.num_concurrent if has_language_models(configs) else 1,
        )

    records = await put_to_work(
        context, folder, problems, configs, section="curate", types=(), work=work
    )
    if has_language_models(configs):
        print_stats(records.stats, context.console)
    kept: list[Problem] = []
    for outcome in records.finished.outcomes:
        for reason, detail in outcome.faults.items():
            left_out.add(reason, outcome.problem, detail=detail)
        if not outcome.faults:
            kept.append(outcome.problem)
    return kept, _counted(records.stats)


def _counted(stats: SynthesisStats) -> dict[str, float]:
    """Figures of the labels, and of what they took."""
    labels = {
        name.replace("/", "_"): float(count)
        for name, count in sorted(stats.counts.items())
        if name.startswith("labels/")
    }
    return labels | {
        f"{role}_{name}": float(number)
        for role, numbers in stats.spent().items()
        for name, number in numbers.items()
    }


def _check_left(kept: Sequence[Problem], given: Sequence[Problem], left_out: LeftOut) -> None:
    if not kept:
        raise ConfigError(
            f"curate leaves none of {len(given)} problems: {left_out.in_words()}; look at the "
            "examples, and at data.source, its mapping and curate.labeller"
        )
