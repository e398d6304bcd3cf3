# SPDX-License-Identifier: Apache-2.0
"""The eval verb: greedy accuracy of a model folder, without a run folder of its own."""

from __future__ import annotations

import tempfile

from rich.console import Console

from satori_fast.config import Config
from satori_fast.evaluation.evaluate import EvaluationResult
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.run import build_run
from satori_fast.stages.setup import join_ranks


def evaluate_model(config: Config) -> EvaluationResult:
    """Evaluate `config.model` on the held-out problems and print the result."""
    state = join_ranks(config)
    # All ranks work in the folder of the first one.
    with tempfile.TemporaryDirectory() as own_folder:
        folder = state.all_gather(own_folder)[0]
        with build_run(config.model_copy(update={"output_dir": folder})) as run:
            context = run.context(plan_stages(config)[0])
            policy = context.model_folders.policy(context.policy_folder)
            result = context.evaluator(run.books).evaluate(context.engine(policy))
    if not state.is_main:
        return result
    console = Console()
    console.print(
        f"accuracy {result.accuracy:.1%} +- {result.standard_error:.1%} on "
        f"{result.num_problems} problems, greedy",
        highlight=False,
    )
    for name, value in result.metrics().items():
        console.print(f"{name} {value:.4g}", highlight=False)
    return result
