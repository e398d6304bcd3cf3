# SPDX-License-Identifier: Apache-2.0
"""Format tuning: packed supervised fine-tuning on demonstrations (Satori, appendix D.2).

Plain behaviour cloning: every response token counts, wrong tries included; prompts do not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from satori_fast.algorithms.losses import imitation_loss
from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.step import Learner, update_one
from satori_fast.config import Config, ConfigError, ImitationConfig
from satori_fast.data.domains import DOMAINS
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.data.problem_split import question_key
from satori_fast.data.prompts import PromptRenderer, encode_demonstration
from satori_fast.data.sources import load_demonstrations
from satori_fast.experience.demonstrations import DemonstrationSource
from satori_fast.experience.source import ExperienceSource, Span
from satori_fast.stages.alarms import warn_of_large_batch
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.run_folder import RunFolder
from satori_fast.stages.step_loop import StepLoop
from satori_fast.stages.synthesize import demonstrations_path
from satori_fast.stages.trainer import StepResult
from satori_fast.storage import wait_for_file
from satori_fast.types import Demonstration, Problem, Trajectory

logger = logging.getLogger(__name__)


def supervised_step(
    policy: Learner, source: ExperienceSource, step: int, *, packing: PackingSpec, span: Span
) -> StepResult:
    """One optimizer step on the next demonstrations."""
    experience = source.next(step)
    with span("pack"):
        batches = pack(experience.trajectories, None, packing, "token")
        batches = [batch.to(parallel_state().device) for batch in batches]
    with span("update"):
        stats = update_one(policy, batches, imitation_loss)
    return StepResult(experience, batches, (), stats, {"policy": policy})


def supervised(context: Context, folder: RunFolder, books: Books) -> StageOutcome:
    """Imitate the demonstrations for `supervised.num_epochs`; evaluate and export."""
    written = demonstrations_path(folder.path)
    # One process looks for files.
    found = wait_for_file(written) if folder.from_main(written.exists) else None
    source, mapping = demonstration_source(context.config, found)
    trajectories = load_trajectories(
        source,
        mapping,
        context.renderer,
        problems=context.problems,
        heldout=context.heldout,
        max_seqlen=context.config.rollout.max_seqlen,
        own_data=source == context.config.data.source,
    )
    wanted = context.config.supervised.num_demonstrations
    if wanted is not None and wanted > len(trajectories):
        logger.warning(
            "supervised.num_demonstrations = %d, and there are %d: all are imitated",
            wanted,
            len(trajectories),
        )
    return imitate(
        context,
        folder,
        books,
        trajectories[:wanted],
        config=context.config.supervised,
        start=context.policy_folder,
    )


def imitate(
    context: Context,
    folder: RunFolder,
    books: Books,
    trajectories: Sequence[Trajectory],
    *,
    config: ImitationConfig,
    start: Path,
) -> StageOutcome:
    """Train the model of folder `start` on `trajectories`; evaluate and export it."""
    stage, seeds, models = context.stage, context.seeds, context.model_folders
    warn_of_large_batch(stage, config.batch_size, len(trajectories), num_epochs=config.num_epochs)
    num_steps = math.ceil(len(trajectories) * config.num_epochs / config.batch_size)
    policy = models.policy(start, config.optimizer, num_steps=num_steps)
    source = DemonstrationSource(
        trajectories, batch_size=config.batch_size, seed=seeds.of(stage, "order")
    )
    evaluator, evaluation = context.evaluator(books), None
    loop = StepLoop(
        stage,
        {"policy": policy},
        num_steps,
        folder,
        books,
        checkpoint_every=config.checkpoint_every,
        export_every=config.export_every,
        export=models.export,
    )
    if (data := loop.resume()) is not None:
        source.load_state_dict(data)
    with loop:
        for step in loop:
            packing = context.packing(seed=seeds.of(stage, "minibatches", step))
            span = books.spans.span
            result = supervised_step(policy, source, step, packing=packing, span=span)
            metrics = books.training(result)
            if loop.is_due(0):
                evaluation = evaluator.evaluate(context.engine(policy))
                metrics |= evaluator.record(step, evaluation)
            loop.finish_step(metrics, source.state_dict(), shown={"loss": metrics["update/loss"]})
    exported = folder.exported(stage)
    models.export(policy, exported)
    evaluation = evaluation or evaluator.evaluate(context.engine(policy))
    return StageOutcome({"policy": exported}, evaluation, loop.done.times)


def load_trajectories(
    source: str,
    mapping: str | None,
    renderer: PromptRenderer,
    *,
    problems: Sequence[Problem],
    heldout: Sequence[Problem],
    max_seqlen: int,
    own_data: bool = False,
) -> list[Trajectory]:
    """Demonstrations of a file, of a data set or by the expert of a built-in domain, encoded.

    Left out, and said so: solutions of `heldout` problems, those too long for the context and, with
    `own_data` (the source is the run's own data set), all but those of its training `problems`.
    """
    if (domain := DOMAINS.get(source)) is not None:
        demonstrations = domain.demonstrations(problems)
    else:
        demonstrations, _ = load_demonstrations(source, mapping)
    evaluated = {question_key(problem.question) for problem in heldout}
    training = {question_key(problem.question) for problem in problems}

    def is_allowed(demonstration: Demonstration) -> bool:
        key = question_key(demonstration.problem.question)
        return key not in evaluated and (key in training or not own_data)

    allowed = list(filter(is_allowed, demonstrations))
    encoded = [
        encode_demonstration(demonstration, renderer, group_id=number)
        for number, demonstration in enumerate(allowed)
        if renderer.fits(demonstration.problem)
    ]
    kept = [trajectory for trajectory in encoded if len(trajectory.tokens) <= max_seqlen]
    if len(kept) < len(demonstrations):
        logger.warning(
            "of %d demonstrations %d are for problems not trained on, %d exceed rollout.max_seqlen "
            "= %d or the prompt limit: left out",
            len(demonstrations),
            len(demonstrations) - len(allowed),
            len(allowed) - len(kept),
            max_seqlen,
        )
    if not kept:
        raise ConfigError(
            f"{source} leaves no demonstration within rollout.max_seqlen = {max_seqlen}"
        )
    return kept


def demonstration_source(config: Config, written: Path | None) -> tuple[str, str | None]:
    """Path of the demonstrations of format tuning (or the name of the domain whose expert writes
    them), and their field mapping.

    written: those of the run's own synthesis, if there are any.
    """
    data = config.data
    if config.supervised.source is not None:
        return config.supervised.source, config.supervised.mapping
    if written is not None:
        return str(written), "coat"
    if data.source in DOMAINS and DOMAINS[data.source].solution is None:
        raise ConfigError(
            "supervised has no demonstrations: add synthesize to stages before it, or set "
            "supervised.source"
        )
    return data.source, data.mapping
