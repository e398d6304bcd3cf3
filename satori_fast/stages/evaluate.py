# SPDX-License-Identifier: Apache-2.0
"""The eval verb: greedy accuracy of a model folder, without a run folder of its own.

Whole problems are asked as `data.template` and `data.format` have it; where the stage srl is in
`stages`, held-out step problems are asked too, as its section has it.
"""

from __future__ import annotations

import json
import tempfile

from rich.console import Console

from satori_fast.config import Config, ConfigError
from satori_fast.evaluation.evaluate import EvaluationResult
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.run import build_run
from satori_fast.stages.setup import join_ranks
from satori_fast.stages.srl import step_validator, validation_metrics
from satori_fast.stages.step_data import load_step_data


def evaluate_model(config: Config, *, as_json: bool = False) -> EvaluationResult:
    """Evaluate `config.model` on the held-out problems and print the result.

    as_json: as one line of JSON, every metric by its name. ConfigError where an agent would have to
    write the solutions of the step problems first.
    """
    if "srl" in config.stages and config.srl.parser == "rewrite":
        raise ConfigError(
            'srl.parser = "rewrite" would have every solution written again: set srl.expert to '
            'demonstrations_srl.jsonl of the run folder, srl.mapping = "coat" and srl.parser = '
            '"numbered", or take srl out of stages'
        )
    state = join_ranks(config)
    # All ranks work in the folder of the first one.
    with tempfile.TemporaryDirectory() as own_folder:
        folder = state.all_gather(own_folder)[0]
        with build_run(config.model_copy(update={"output_dir": folder})) as run:
            plans = plan_stages(config)
            plan = next((each for each in plans if each.kind == "srl"), plans[0])
            context = run.context(plan)
            engine = context.engine(context.model_folders.policy(context.policy_folder))
            result = context.evaluator(run.books).evaluate(engine)
            metrics = result.metrics()
            if plan.kind == "srl":
                data = load_step_data(context, run.folder)
                answers = step_validator(context, data.validation, run.books).answers(engine)
                metrics |= validation_metrics(answers, engine.renderer)
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
