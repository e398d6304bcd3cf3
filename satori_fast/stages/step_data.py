# SPDX-License-Identifier: Apache-2.0
"""The step problems of the stage srl: made once by the main process, and kept in the run folder.

Experts are a built-in domain, a file of solutions, or trajectories of a software agent. The folder
`steps` has what is trained on and what is validated on, `steps.json` what was counted on the way.
How a solution becomes step problems is `data.steps` and `data.agent_steps`; solutions that an agent
writes as steps first are `rewriting`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from satori_fast.config import ConfigError, SrlConfig
from satori_fast.data.agent_steps import AgentStepOptions, AgentStepReport, load_agent_steps
from satori_fast.data.collection import SourceReport
from satori_fast.data.cursor import is_heldout
from satori_fast.data.domains import DOMAINS, Domain
from satori_fast.data.formats.steps import StepDialect
from satori_fast.data.problem_file import keep_problems, read_problems
from satori_fast.data.problem_split import fitting, question_key
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.sources import load_demonstrations, source_digest
from satori_fast.data.steps import (
    Asked,
    ExpertStep,
    StepReport,
    expert_problems,
    parse_steps,
    step_problems,
)
from satori_fast.data.tokenizer import check_known
from satori_fast.grading import GradingPool
from satori_fast.stages.books import evenly_spread
from satori_fast.stages.context import Context
from satori_fast.stages.rewriting import rewrite, rewritten_path
from satori_fast.stages.run_folder import RunFolder
from satori_fast.stages.setup import problems_key
from satori_fast.storage import read_sealed, wait_for_file, write_sealed
from satori_fast.types import Demonstration, Problem

logger = logging.getLogger(__name__)


# Settings of the rewriter that decide what it writes; the others say where it is and what it costs.
_WRITTEN_BY = {"kind", "model", "temperature", "top_p", "max_new_tokens", "max_seqlen", "dtype"}


@dataclass(frozen=True, slots=True)
class StepData:
    """Step problems to train on and to validate on, and what was counted when they were made."""

    training: Sequence[Problem]
    validation: Sequence[Problem]
    figures: Mapping[str, float]


def load_step_data(context: Context, folder: RunFolder) -> StepData:
    """The step problems of a run; read from the run folder where they are there."""
    tokenizer = context.models["tokenizer"]
    # "tokenizer_distill" -> "steps_distill", as the run's problems.
    place = folder.path / tokenizer.name.replace("tokenizer", "steps", 1)
    report, rewrites = place.with_suffix(".json"), context.config.srl.parser == "rewrite"
    files = context.parallel.from_main(
        lambda: keep_problems(place, _key(context), lambda: _make(context, report)),
        # An agent may take days: the others wait as long as this process shows signs of life.
        limit_s=math.inf if rewrites else None,
    )
    if rewrites:
        folder.keep(rewritten_path(folder.path, context.stage))
    training, validation = read_problems(place, files)
    return StepData(training, validation, read_sealed(wait_for_file(report)))


def _key(context: Context) -> dict[str, Any]:
    """All that the step problems depend on."""
    config = context.config
    read = {
        "expert",
        "mapping",
        "num_solutions",
        "parser",
        "unit",
        "last_step",
        "tell_title",
        "agent",
    }
    read |= {"template", "system", "num_validation"}
    settings = config.srl.model_dump(mode="json", include=read)
    key = problems_key(config, context.models["tokenizer"])
    key |= {f"srl.{name}": value for name, value in settings.items()}
    key |= {"seed": config.seed, "data.levels": list(config.data.levels)}
    if config.srl.parser == "rewrite":
        written_by = config.srl.rewriter.model_dump(mode="json", include=_WRITTEN_BY)
        key |= {f"srl.rewriter.{name}": value for name, value in written_by.items()}
    if config.srl.expert is not None:
        key[f"contents of {config.srl.expert}"] = source_digest(config.srl.expert)
    return key


def _make(context: Context, report: Path) -> tuple[Sequence[Problem], Sequence[Problem]]:
    """(training, validation) problems, made anew; what was counted goes into `report`."""
    config = context.config.srl
    if config.expert is None:
        training, heldout, figures = _by_domain(context)
    elif config.parser == "agent":
        training, heldout, figures = _by_agents(context, config.expert)
    else:
        training, heldout, figures = _by_solutions(context, config.expert, report.parent)
    if not heldout:
        raise ConfigError(
            "no step problem is held out to validate on: raise data.heldout_fraction, or give more "
            "expert solutions"
        )
    steps = partial(fitting, renderer=context.renderer)
    training, heldout = steps(training, what="step"), steps(heldout, what="held-out step")
    if config.expert is not None and context.config.tokenizer.kind == "words":
        _check_words([*training, *heldout], context.renderer)
    validation = evenly_spread(heldout, config.num_validation)
    figures |= {"num_step_problems": len(training), "num_validation": len(validation)}
    write_sealed(report, figures)
    return training, validation


def _check_words(problems: Iterable[Problem], renderer: PromptRenderer) -> None:
    """ConfigError for a word of a prompt or a target that a tokenizer of words does not know."""
    for problem in problems:
        assert problem.prefix is not None
        asked = renderer.format_of(problem).asked(problem)
        try:
            check_known(renderer.tokenizer, f"{asked} {problem.prefix.target}")
        except ValueError as error:
            raise ConfigError(
                f'srl.expert: {problem.problem_id}: {error}: take experts of data.source = "chains"'
                ', or a tokenizer.kind that knows every text, "model" or "bpe"'
            ) from None


Made = tuple[Sequence[Problem], Sequence[Problem], dict[str, float]]


def _by_domain(context: Context) -> Made:
    domain = DOMAINS[context.config.data.source]
    problems = context.problems[: context.config.srl.num_solutions]
    training, heldout = (_steps_of(context, domain, each) for each in (problems, context.heldout))
    return training, heldout, {"num_solutions": float(len(problems))}


def _steps_of(context: Context, domain: Domain, problems: Iterable[Problem]) -> list[Problem]:
    config, steps = context.config.srl, context.renderer.steps
    assert steps is not None
    return [
        made
        for problem, solution in domain.solved(problems)
        for made in step_problems(problem, solution, steps.format.dialect, asked=asked_of(config))
    ]


def _by_agents(context: Context, expert: str) -> Made:
    problems, report = agent_steps(context.config.srl, expert)
    rows, actions = report.rows, report.actions
    # Trajectories left out whole, and actions left out of the others.
    discarded = rows.reasons + actions.reasons
    figures = _figures(rows.num_rows, rows.num_used, discarded)
    figures |= {
        "num_actions": float(actions.num_rows),
        "num_shortened": float(report.num_shortened),
    }
    return *_split(context, problems), figures


def _by_solutions(context: Context, expert: str, folder: Path) -> Made:
    config, steps = context.config.srl, context.renderer.steps
    assert steps is not None
    demonstrations, read_rows = expert_solutions(config, expert)
    right = right_solutions(demonstrations, context.grader.pool)
    spent: dict[str, float] = {}
    if config.parser == "rewrite":
        given = [each for each in demonstrations if id(each) in right]
        rewriting = asyncio.run(rewrite(context, folder, given))
        read, spent = rewriting.steps, rewriting.figures()
    else:
        read = step_reader(config)
    problems, report = solution_steps(
        config,
        demonstrations,
        steps.format.dialect,
        read=read,
        agrees=lambda each: id(each) in right,
    )
    if report.discarded:
        logger.warning("%s: discarded %s", expert, report.in_words())
    return *_split(context, problems), report_figures(report, read_rows) | spent


def step_reader(config: SrlConfig) -> Callable[[Demonstration], Sequence[ExpertStep]]:
    """Reader of the steps of a solution by a rule; it raises NoSteps."""
    parser = config.parser
    assert parser not in ("rewrite", "agent")
    return lambda demonstration: parse_steps(demonstration.response, parser)


def expert_solutions(
    config: SrlConfig, expert: str, *, limit: int | None = None
) -> tuple[Sequence[Demonstration], SourceReport]:
    """The solutions of a file, before any is read as steps, without those that it says are wrong,
    and what was left out.

    limit: at most so many, the first ones. ValueError where there is none.
    """
    limits = [number for number in (limit, config.num_solutions) if number is not None]
    return load_demonstrations(
        expert, config.mapping, limit=min(limits, default=None), only_right=True
    )


def agent_steps(
    config: SrlConfig, expert: str, *, limit: int | None = None
) -> tuple[list[Problem], AgentStepReport]:
    """The step problems of a file of trajectories. limit: of trajectories, else as the config has
    it; ValueError where there is no step."""
    options = AgentStepOptions(**config.agent.model_dump(exclude={"split"}))
    return load_agent_steps(
        expert, options, split=config.agent.split, limit=limit or config.num_solutions
    )


def solution_steps(
    config: SrlConfig,
    solutions: Iterable[Demonstration],
    dialect: StepDialect,
    *,
    read: Callable[[Demonstration], Sequence[ExpertStep]],
    agrees: Callable[[Demonstration], bool] = lambda solution: True,
) -> tuple[list[Problem], StepReport]:
    """The step problems of solutions as the config wants them; see `expert_problems`."""
    return expert_problems(
        solutions,
        dialect,
        read=read,
        form=config.parser,
        agrees=agrees,
        asked=asked_of(config),
    )


def asked_of(config: SrlConfig) -> Asked:
    """The problems that the section makes of every solution."""
    return Asked(config.unit, config.last_step, config.tell_title)


def right_solutions(demonstrations: Sequence[Demonstration], pool: GradingPool) -> set[int]:
    """`id` of each solution that ends with the reference answer, or has none to differ from."""
    graded = [each for each in demonstrations if each.problem.answer is not None]
    pairs = [(each.response, each.problem.answer or "") for each in graded]
    verdicts = pool.grade_many(pairs)
    wrong = {id(e) for e, verdict in zip(graded, verdicts, strict=True) if not verdict.correct}
    return {id(each) for each in demonstrations} - wrong


def report_figures(report: StepReport, rows: SourceReport) -> dict[str, float]:
    """Counts of solutions for the summary. rows: what was left out before they were read."""
    discarded = rows.reasons + report.discarded
    return _figures(report.num_solutions + rows.num_skipped, report.num_used, discarded)


def _figures(num_solutions: int, num_used: int, discarded: Mapping[str, int]) -> dict[str, float]:
    counted = {"num_solutions": num_solutions, "num_used": num_used}
    counted |= {f"discarded_{reason.replace(' ', '_')}": n for reason, n in discarded.items()}
    return {name: float(number) for name, number in counted.items()}


def _split(context: Context, problems: Iterable[Problem]) -> tuple[list[Problem], list[Problem]]:
    """(training, held-out) problems, all steps of a question on one side. Questions that the run
    evaluates on are held out, and so are others by their hash."""
    evaluated = {question_key(problem.question) for problem in context.heldout}
    fraction = context.config.data.heldout_fraction
    halves: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in problems:
        key = question_key(problem.question)
        halves[key in evaluated or is_heldout(key, fraction)].append(problem)
    return halves
