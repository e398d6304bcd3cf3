# SPDX-License-Identifier: Apache-2.0
"""The eval verb: greedy accuracy of a model folder, without a run folder of its own.

With `keep` it leaves one: its report and its line in a comparison are those of a run. The stage
"start" of a run is the same evaluation, of the model that it begins with. Whole problems are asked
as `data.template` and `data.format` have it; where the stage srl is in `stages`, held-out step
problems are asked too, as its section has it.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack

from rich.console import Console

from satori_fast.config import Config, ConfigError
from satori_fast.evaluation.evaluate import EvaluationResult
from satori_fast.profiling.metrics import progress
from satori_fast.profiling.spans import StepTimes
from satori_fast.rollout.restarting import Restarting
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.run import build_run
from satori_fast.stages.run_folder import EVALUATION, RunFolder
from satori_fast.stages.setup import join_ranks
from satori_fast.stages.srl import step_validator, validation_metrics
from satori_fast.stages.step_data import load_step_data


def start(context: Context, folder: RunFolder, books: Books) -> StageOutcome:
    """Evaluate the model that the run begins with; it is left as it is."""
    return evaluated(context, books)[0]


def evaluated(context: Context, books: Books) -> tuple[StageOutcome, Restarting]:
    """The current policy, evaluated, as the outcome of a stage with one step; and its engine."""
    engine = context.engine(context.model_folders.policy(context.policy_folder))
    books.start_steps(1)
    evaluator = context.evaluator(books)
    console = Console(stderr=True, quiet=not context.parallel.is_main)
    number = len(evaluator.problems)
    with progress("evaluate", number, unit="response", console=console) as bar:
        result = evaluator.evaluate(engine, finished=lambda _: bar.advance())
    times = StepTimes() + books.record(0, evaluator.record(0, result))
    return StageOutcome({}, result, times), engine


def evaluate_model(
    config: Config, *, as_json: bool = False, keep: bool = False
) -> EvaluationResult:
    """Evaluate `config.model` on the held-out problems and print the result.

    as_json: as one line of JSON, every metric by its name. keep: leave a run folder of the config's
    name with one stage, "eval", for the report to show beside other runs. ConfigError where an
    agent would have to write the solutions of the step problems first.
    """
    if "srl" in config.stages and config.srl.parser == "rewrite":
        raise ConfigError(
            'srl.parser = "rewrite" would have every solution written again: set srl.expert to '
            'demonstrations_srl.jsonl of the run folder, srl.mapping = "coat" and srl.parser = '
            '"numbered", or take srl out of stages'
        )
    state = join_ranks(config)
    with ExitStack() as opened:
        if not keep:
            # All ranks work in the folder of the first one.
            own_folder = opened.enter_context(tempfile.TemporaryDirectory())
            config = config.model_copy(update={"output_dir": state.all_gather(own_folder)[0]})
        run = opened.enter_context(build_run(config))
        plans = plan_stages(config)
        plan = next((each for each in plans if each.kind == "srl"), plans[0])
        context = run.context(plan)
        run.books.begin_stage(EVALUATION)
        outcome, engine = evaluated(context, run.books)
        assert outcome.evaluation is not None
        result = outcome.evaluation
        metrics = result.metrics()
        if plan.kind == "srl":
            data = load_step_data(context, run.folder)
            answers = step_validator(context, data.validation, run.books).answers(engine)
            metrics |= validation_metrics(answers, engine.renderer)
        if keep:
            run.finish_stage(EVALUATION, outcome)
            run.finalize()
    if not state.is_main:
        return result
    if as_json:
        figures = {"standard_error": result.standard_error, "num_problems": result.num_problems}
        line = json.dumps({**metrics, **figures})
        Console(soft_wrap=True).print(line, markup=False, highlight=False)
        return result
    console = Console()
    console.print(
        f"accuracy {result.accuracy:.1%} +- {result.standard_error:.1%} on "
        f"{result.num_problems} problems, greedy",
        highlight=False,
    )
    for name, value in metrics.items():
        console.print(f"{name} {value:.4g}", highlight=False)
    return result
