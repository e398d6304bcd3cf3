# SPDX-License-Identifier: Apache-2.0
"""Format tuning: packed supervised fine-tuning on demonstrations (Satori, appendix D.2).

Plain behaviour cloning: every response token counts, wrong tries included; prompts do not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from satori_fast.algorithms.advantages import estimate_advantages
from satori_fast.algorithms.credit import assign_credit
from satori_fast.algorithms.recipe import RECIPES
from satori_fast.backbone.step import Learner, update
from satori_fast.config import Config, ConfigError, ImitationConfig
from satori_fast.data.cursor import ProblemCursor
from satori_fast.data.packing import pack
from satori_fast.data.problem_split import question_key
from satori_fast.data.prompts import encode_demonstration
from satori_fast.data.sources import load_demonstrations
from satori_fast.stages.alarms import warn_of_large_batch
from satori_fast.stages.run import Run, StageOutcome
from satori_fast.stages.setup import ARITHMETIC, learner_for
from satori_fast.stages.step_loop import StepLoop
from satori_fast.stages.synthesize import demonstrations_path
from satori_fast.stages.workload import count_training
from satori_fast.storage import wait_for_file
from satori_fast.types import Demonstration, Trajectory

logger = logging.getLogger(__name__)


def supervised_step(
    run: Run, policy: Learner, trajectories: Sequence[Trajectory], step: int
) -> dict[str, float]:
    """One optimizer step on `trajectories`; metrics without times."""
    recipe = RECIPES["sft"]
    with run.spans.span("pack"):
        packing = run.packing(1, run.seed(run.stage, "minibatches", step))
        credits = assign_credit(trajectories, recipe.credit)
        batches = [
            batch.to(run.parallel.device)
            for batch in pack(trajectories, credits, packing, recipe.weighting)
        ]
        advantages = estimate_advantages(batches, recipe.advantage, run.parallel.all_reduce_sum)
    with run.spans.span("update"):
        stats = update(policy, None, batches, advantages, recipe.loss)
    num_tokens = sum(len(t.tokens) for t in trajectories)
    run.spans.count("update", num_tokens)
    run.spans.count("step", num_tokens)
    count_training(run, (policy,), trajectories)
    return stats


def supervised(run: Run) -> StageOutcome:
    """Imitate the demonstrations for `supervised.num_epochs`; evaluate and export."""
    written = demonstrations_path(run)
    # One process looks for files.
    found = wait_for_file(written) if run.parallel.from_main(written.exists) else None
    trajectories = load_trajectories(run, *demonstration_source(run.config, found))
    return imitate(run, trajectories, run.config.supervised, start=run.model_folder)


def imitate(
    run: Run, trajectories: Sequence[Trajectory], config: ImitationConfig, *, start: Path
) -> StageOutcome:
    """Train the model of folder `start` on `trajectories`; evaluate and export it."""
    warn_of_large_batch(
        run.stage, config.batch_size, len(trajectories), num_epochs=config.num_epochs
    )
    cursor = ProblemCursor(trajectories, seed=run.seed(run.stage, "order"))
    num_steps = math.ceil(len(trajectories) * config.num_epochs / config.batch_size)
    policy = learner_for(run, "policy", config.optimizer, num_steps=num_steps, weights=start)
    learners = {"policy": policy}
    done = run.resume_stage(learners)
    if done.data is not None:
        cursor.load_state_dict(done.data)
    evaluation = None
    with StepLoop(
        run,
        learners,
        num_steps,
        done,
        checkpoint_every=config.checkpoint_every,
        export_every=config.export_every,
    ) as loop:
        for step in loop:
            metrics = supervised_step(run, policy, cursor.take(config.batch_size), step)
            if loop.is_due(0):
                evaluation = run.evaluate(run.engine(policy))
                metrics |= run.record_evaluation(step, evaluation)
            shown = {"loss": metrics["update/loss"]}
            loop.finish_step(metrics, cursor.state_dict(), shown=shown)
    run.export(policy, run.exported_model)
    evaluation = evaluation or run.evaluate(run.engine(policy))
    return StageOutcome({"policy": run.exported_model}, evaluation, loop.done.times)


def load_trajectories(run: Run, source: str, mapping: str | None) -> list[Trajectory]:
    """Demonstrations of a file or data set, encoded.

    Left out, and said so: solutions of problems that this run evaluates on (from the run's own data
    set: of all but its training problems), and those too long for the context.
    """
    demonstrations, _ = load_demonstrations(source, mapping)
    heldout = {question_key(problem.question) for problem in run.heldout}
    training = {question_key(problem.question) for problem in run.problems}
    own_data = source == run.config.data.source

    def is_allowed(demonstration: Demonstration) -> bool:
        key = question_key(demonstration.problem.question)
        return key not in heldout and (key in training or not own_data)

    allowed = list(filter(is_allowed, demonstrations))
    longest = run.config.rollout.max_seqlen
    encoded = [
        encode_demonstration(demonstration, run.renderer, group_id=number)
        for number, demonstration in enumerate(allowed)
        if run.renderer.fits(demonstration.problem)
    ]
    kept = [trajectory for trajectory in encoded if len(trajectory.tokens) <= longest]
    if len(kept) < len(demonstrations):
        logger.warning(
            "of %d demonstrations %d are for problems not trained on, %d exceed rollout.max_seqlen "
            "= %d or the prompt limit: left out",
            len(demonstrations),
            len(demonstrations) - len(allowed),
            len(allowed) - len(kept),
            longest,
        )
    if not kept:
        raise ConfigError(f"{source} leaves no demonstration within rollout.max_seqlen = {longest}")
    return kept


def demonstration_source(config: Config, written: Path | None) -> tuple[str, str | None]:
    """Where the demonstrations of format tuning are, and their field mapping.

    written: those of the run's own synthesis, if there are any.
    """
    data = config.data
    if config.supervised.source is not None:
        return config.supervised.source, config.supervised.mapping
    if written is not None:
        return str(written), "coat"
    if data.source == ARITHMETIC:
        raise ConfigError(
            "supervised has no demonstrations: add synthesize to stages before it, or set "
            "supervised.source"
        )
    return data.source, data.mapping
