# SPDX-License-Identifier: Apache-2.0
"""Format tuning: packed supervised fine-tuning on demonstrations (Satori, appendix D.2).

Behaviour cloning: every response token counts, wrong tries included, or only the segments that a
mask leaves; prompts do not. With a KL coefficient the policy stays near the model it starts from.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from satori_fast.algorithms.losses import AnchoredImitation, imitation_loss
from satori_fast.backbone.model import PolicyModel
from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.step import Learner, update_one, with_start_hidden
from satori_fast.config import Config, ConfigError, ImitationConfig, SourceConfig
from satori_fast.data.domains import DOMAINS
from satori_fast.data.masks import ImitatedSegments, trained_segments
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.data.problem_split import question_key
from satori_fast.data.prompts import PromptRenderer, encode_demonstration
from satori_fast.data.sources import load_demonstrations
from satori_fast.data.steps import step_demonstrations, whole_demonstrations
from satori_fast.experience.demonstrations import DemonstrationSource
from satori_fast.experience.source import ExperienceSource, Span
from satori_fast.stages.alarms import warn_of_large_batch
from satori_fast.stages.books import Books, evenly_spread
from satori_fast.stages.context import Context
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.run_folder import RunFolder
from satori_fast.stages.step_loop import StepLoop
from satori_fast.stages.synthesize import demonstrations_path
from satori_fast.stages.trainer import StepResult
from satori_fast.storage import wait_for_file
from satori_fast.synthesis.trained_page import write_trained_page
from satori_fast.types import Demonstration, PackedBatch, Problem, Trajectory

logger = logging.getLogger(__name__)

_NUM_SHOWN = 60  # trajectories on the page of what is trained


@dataclass(frozen=True, slots=True)
class Imitation:
    """Segments of demonstrations that are imitated, and the pull back to the starting model.

    segments:       which are trained (`data.masks`).
    start:          the model that training started from, frozen; None without a KL to it.
    kl_coefficient: weight of that KL.
    """

    segments: ImitatedSegments = "all"
    start: Learner | None = None
    kl_coefficient: float = 0.0

    def pack(self, trajectories: Sequence[Trajectory], packing: PackingSpec) -> list[PackedBatch]:
        """Microbatches of this rank, on its device, with a loss on the trained tokens."""
        trained = None
        if self.segments != "all":
            trained = [trained_segments(trajectory, self.segments) for trajectory in trajectories]
        batches = pack(trajectories, None, packing, "token", trained=trained)
        return [batch.to(parallel_state().device) for batch in batches]

    def update(
        self, policy: Learner, batches: Sequence[PackedBatch], span: Span
    ) -> dict[str, float]:
        """One optimizer step; what happened."""
        if self.start is None:
            with span("update"):
                return update_one(policy, batches, imitation_loss)
        with span("logprob"):
            batches = with_start_hidden(batches, self.start)
        assert isinstance(self.start.module, PolicyModel)
        loss = AnchoredImitation(self.kl_coefficient, self.start.module.head_weight)
        with span("update"):
            return update_one(policy, batches, loss)


def supervised_step(
    policy: Learner,
    source: ExperienceSource,
    step: int,
    *,
    packing: PackingSpec,
    span: Span,
    imitation: Imitation,
) -> StepResult:
    """One optimizer step on the next demonstrations."""
    experience = source.next(step)
    with span("pack"):
        batches = imitation.pack(experience.trajectories, packing)
    stats = imitation.update(policy, batches, span)
    return StepResult(experience, batches, (), stats, {"policy": policy}, start=imitation.start)


def supervised(context: Context, folder: RunFolder, books: Books) -> StageOutcome:
    """Imitate the demonstrations for `supervised.num_epochs`; evaluate and export."""
    written = demonstrations_path(folder.path)
    # One process looks for files.
    found = wait_for_file(written) if folder.from_main(written.exists) else None
    sources = demonstration_sources(context.config, found)
    wanted = context.config.supervised.num_demonstrations
    if context.config.supervised.step_share is not None:
        trajectories = warm_up_trajectories(context, wanted)
    else:
        own = {each.source for each in context.config.data.pool}
        trajectories = encoded(
            [d for each in sources for d in _demonstrations(each, context.problems)],
            context.renderer,
            source=" + ".join(each.source for each in sources),
            problems=context.problems,
            heldout=context.heldout,
            max_seqlen=context.config.rollout.max_seqlen,
            own_data=own.issuperset(each.source for each in sources),
        )
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


def warm_up_trajectories(context: Context, wanted: int | None) -> list[Trajectory]:
    """Solutions of the first problems by the expert of a built-in domain, step after step, and
    single steps of the next ones, `supervised.step_share` of them, encoded."""
    config, steps = context.config, context.renderer.steps
    domain = DOMAINS[config.data.source]
    assert steps is not None and config.supervised.step_share is not None  # checked
    number = min(wanted or len(context.problems), len(context.problems))
    whole = number - round(config.supervised.step_share * number)
    seed = context.seeds.of(context.stage, "steps")
    dialect, problems = steps.format.dialect, context.problems
    slips = config.supervised.slip_share
    solved = domain.solved(problems[:number])
    if slips:
        solved = domain.slipped(problems[:number], slips, seed=seed)
    demonstrations = [
        *whole_demonstrations(islice(solved, whole), dialect),
        *step_demonstrations(
            solved,
            dialect,
            seed=seed,
            tell_title=config.srl.tell_title,
        ),
    ]
    return encoded(
        demonstrations,
        context.renderer,
        source=config.data.source,
        problems=context.problems,
        heldout=context.heldout,
        max_seqlen=config.rollout.max_seqlen,
    )


def imitate(
    context: Context,
    folder: RunFolder,
    books: Books,
    trajectories: Sequence[Trajectory],
    *,
    config: ImitationConfig,
    start: Path,
    first_metrics: Mapping[str, float] | None = None,
) -> StageOutcome:
    """Train the model of folder `start` on `trajectories`; evaluate and export it.

    With a mask, trained_STAGE.html of the run folder shows samples of what it leaves.
    first_metrics: further metrics of the first step, of how `trajectories` were made.
    """
    stage, seeds, models = context.stage, context.seeds, context.model_folders
    warn_of_large_batch(stage, config.batch_size, len(trajectories), num_epochs=config.num_epochs)
    num_steps = math.ceil(len(trajectories) * config.num_epochs / config.batch_size)
    policy = models.policy(start, config.optimizer, num_steps=num_steps)
    imitation = Imitation(
        config.loss, models.policy(start) if config.kl_coefficient else None, config.kl_coefficient
    )
    if config.loss != "all":
        folder.on_main(lambda: show_trained(context, folder.path, trajectories, config.loss))
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
            result = supervised_step(
                policy, source, step, packing=packing, span=span, imitation=imitation
            )
            metrics = books.training(result)
            if step == 0 and first_metrics:
                metrics |= first_metrics
            if loop.is_due(0):
                evaluation = evaluator.evaluate(context.engine(policy))
                metrics |= evaluator.record(step, evaluation)
            loop.finish_step(metrics, source.state_dict(), shown={"loss": metrics["update/loss"]})
    exported = folder.exported(stage)
    models.export(policy, exported)
    evaluation = evaluation or evaluator.evaluate(context.engine(policy))
    return StageOutcome({"policy": exported}, evaluation, loop.done.times)


def show_trained(
    context: Context, folder: Path, trajectories: Sequence[Trajectory], loss: ImitatedSegments
) -> None:
    """Write trained_STAGE.html: samples, with what a mask leaves of them."""
    shown = evenly_spread(trajectories, _NUM_SHOWN)
    write_trained_page(
        folder / f"trained_{context.stage}.html",
        [(trajectory, trained_segments(trajectory, loss)) for trajectory in shown],
        total=len(trajectories),
        colours=context.renderer.format.colours,
        title=f"{context.config.name}: {context.stage}",
    )


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
    return encoded(
        _demonstrations(SourceConfig(source=source, mapping=mapping), problems),
        renderer,
        source=source,
        problems=problems,
        heldout=heldout,
        max_seqlen=max_seqlen,
        own_data=own_data,
    )


def _demonstrations(source: SourceConfig, problems: Sequence[Problem]) -> list[Demonstration]:
    """What a file or a data set demonstrates; of a built-in domain, its expert on `problems`."""
    if (domain := DOMAINS.get(source.source)) is not None:
        return domain.demonstrations(problems)
    return load_demonstrations(source.source, source.read_as)[0]


def encoded(
    demonstrations: Sequence[Demonstration],
    renderer: PromptRenderer,
    *,
    source: str,
    problems: Sequence[Problem],
    heldout: Sequence[Problem],
    max_seqlen: int,
    own_data: bool = False,
) -> list[Trajectory]:
    """Demonstrations as trajectories; see `load_trajectories` for what is left out."""
    evaluated = {question_key(problem.question) for problem in heldout}
    training = {question_key(problem.question) for problem in problems}

    def is_allowed(demonstration: Demonstration) -> bool:
        key = question_key(demonstration.problem.question)
        return key not in evaluated and (key in training or not own_data)

    allowed = list(filter(is_allowed, demonstrations))
    fitting = [
        encode_demonstration(demonstration, renderer, group_id=number)
        for number, demonstration in enumerate(allowed)
        if renderer.fits(demonstration.problem)
    ]
    kept = [trajectory for trajectory in fitting if len(trajectory.tokens) <= max_seqlen]
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


def demonstration_sources(config: Config, written: Path | None) -> tuple[SourceConfig, ...]:
    """The demonstrations of format tuning: a file, the data sets of the training problems, or the
    domain whose expert writes them.

    written: those of the run's own synthesis, if there are any.
    """
    data = config.data
    if config.supervised.source is not None:
        mapping = config.supervised.mapping
        return (SourceConfig(source=config.supervised.source, mapping=mapping),)
    if written is not None:
        return (SourceConfig(source=str(written), mapping="coat"),)
    if data.source in DOMAINS and DOMAINS[data.source].solution is None:
        raise ConfigError(
            "supervised has no demonstrations: add synthesize to stages before it, or set "
            "supervised.source"
        )
    return data.pool
