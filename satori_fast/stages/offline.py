# SPDX-License-Identifier: Apache-2.0
"""Offline reinforcement learning on samples of the starting model (S2R, arXiv 2502.12853, appendix
F): they are graded, filtered, cut, balanced and credited once, then learnt from for some epochs.

The model that sampled, the old policy of the ratio and the reference of the KL are one and the
same, so that the stored log-probs are those of all three and no reference is loaded. Its KL to
itself is 0: the one inside the advantage is that of the policy of now, anew in each optimizer step.
Sampling anew in every step is `reinforce`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from satori_fast.algorithms.baselines import offline_credits, outcome_credits
from satori_fast.algorithms.recipe import Recipe, effective_recipe
from satori_fast.config import Config, ConfigError, OfflineConfig, SolutionsConfig
from satori_fast.data.packing import PackingSpec
from satori_fast.experience.offline import REASONS, OfflineSource, Selection, SelectionRules, select
from satori_fast.experience.source import ExperienceSource
from satori_fast.experience.stored import read_rollouts
from satori_fast.rewards.outcome import OutcomeReward
from satori_fast.rewards.process import RIGHT, WRONG, ProcessReward
from satori_fast.rewards.terms import score
from satori_fast.rollout.weight_sync import weights_fingerprint
from satori_fast.stages.alarms import warn_of_large_batch
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.grader import SharedGrader
from satori_fast.stages.mismatch import check_logprobs
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.run_folder import RunFolder
from satori_fast.stages.step_loop import StepLoop
from satori_fast.stages.step_metrics import advantage_metrics, update_metrics
from satori_fast.stages.trainer import StepResult, Trainer
from satori_fast.types import PackedBatch, StoredRollouts, Trajectory

logger = logging.getLogger(__name__)


def offline_step(trainer: Trainer, source: ExperienceSource, step: int) -> StepResult:
    """One optimizer step on the next responses of the set."""
    experience = source.next(step)
    with trainer.span("pack"):
        batches = [_with_stored(batch) for batch in trainer.pack(experience, step)]
    if step == 0:  # the policy is the one that sampled them, or the file is not what it says
        check_logprobs(
            trainer.annotate(batches),
            experience,
            limit=trainer.max_logprob_diff,
            parallel=trainer.parallel,
            tokenizer=trainer.tokenizer,
        )
    with trainer.span("advantage"):
        advantages, _ = trainer.advantages(batches)
    with trainer.span("update"):
        stats = trainer.update(batches, advantages, step)
    # Old and stored log-probs are the same here: their difference says nothing.
    stats = {name: x for name, x in stats.items() if not name.startswith("update/rollout_")}
    return StepResult(experience, batches, advantages, stats, trainer.trained(step))


def offline(context: Context, folder: RunFolder, books: Books) -> StageOutcome:
    """Learn from samples of the current model for `offline.num_epochs`; evaluate and export it."""
    config, stage, models = context.config.offline, context.stage, context.model_folders
    rollouts = starting_rollouts(context, folder, books)
    selection = selected(rollouts.groups, context, books)
    source = credited(selection, config, seed=context.seeds.of(stage, "order"))
    num_kept = len(selection.trajectories)
    warn_of_large_batch(stage, config.batch_size, num_kept, num_epochs=config.num_epochs)
    num_steps = math.ceil(num_kept * config.num_epochs / config.batch_size)
    trainer = build_trainer(context, books, num_steps=num_steps)
    loop = StepLoop(
        stage,
        trainer.learners,
        num_steps,
        folder,
        books,
        checkpoint_every=config.checkpoint_every,
        export_every=config.export_every,
        export=models.export,
    )
    if (data := loop.resume()) is not None:
        source.load_state_dict(data)
    evaluator, evaluation = context.evaluator(books), None
    with loop:
        for step in loop:
            result = offline_step(trainer, source, step)
            metrics = _metrics(result, trainer, books)
            if loop.is_due(0):
                evaluation = evaluator.evaluate(context.engine(trainer.policy))
                metrics |= evaluator.record(step, evaluation)
            loop.finish_step(metrics, source.state_dict(), shown={"loss": metrics["update/loss"]})
    exported = folder.exported(stage)
    models.export(trainer.policy, exported)
    evaluation = evaluation or evaluator.evaluate(context.engine(trainer.policy))
    return StageOutcome({"policy": exported}, evaluation, loop.done.times, selection.figures())


# -- set-up -----------------------------------------------------------------------------------


def starting_rollouts(context: Context, folder: RunFolder, books: Books) -> StoredRollouts:
    """Samples of the current model with their log-probs: those of `offline.rollouts`, or its own,
    made here. ConfigError where they are of another kind, or another model's."""
    config = context.config.offline
    temperature = sampling_temperature(context.config)
    # No name outside keeps this policy: its memory is the trained one's once the samples are there.
    policy = context.model_folders.policy(context.policy_folder)
    if config.rollouts is None:
        size = SolutionsConfig(
            num_problems=config.num_problems,
            num_samples=config.num_samples,
            temperature=temperature,
            keep_logprobs=True,
        )
        solver = context.solver(folder, books)
        path = solver.solutions(context.engine(policy), name=context.stage, size=size).path
    else:
        path = Path(config.rollouts).expanduser()
    try:
        rollouts = read_rollouts(path, context.renderer, temperature=temperature)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{context.stage}: {error}") from None
    own = weights_fingerprint(policy.served_weights())
    if rollouts.fingerprint != own:
        raise ConfigError(
            f"{context.stage}: {path}, line 1: a model with fingerprint {rollouts.fingerprint} "
            f"sampled it, and {context.policy_folder} has {own}: start from that model, or take "
            "offline.rollouts out"
        )
    return rollouts


def sampling_temperature(config: Config) -> float:
    """The temperature of the samples, and so that of the log-probs."""
    return config.offline.temperature or config.rollout.temperature


def selected(groups: Sequence[Sequence[Trajectory]], context: Context, books: Books) -> Selection:
    """Grade samples and choose what is learnt from.

    ConfigError, with the accuracies of all problems, where nothing is left.
    """
    config, stage = context.config.offline, context.stage
    grader = SharedGrader(context.grader.pool, context.parallel.copies())
    # S2R's own rewards: what the section reward says is for reinforcement.
    rewards = [OutcomeReward(grader, 1.0, 0.0, right=RIGHT, wrong=WRONG), ProcessReward(grader)]
    with books.spans.span("reward"):
        scored = iter(score([t for group in groups for t in group], rewards))
    graded = [[next(scored) for _ in group] for group in groups]
    rules = SelectionRules(
        config.min_accuracy, config.max_accuracy, config.max_actions, config.balance
    )
    selection = select(graded, rules, seed=context.seeds.of(stage, "balance"))
    dropped = ", ".join(f"{selection.dropped[r]} {r}" for r in REASONS if selection.dropped[r])
    if not selection.trajectories:
        raise ConfigError(
            f"{stage}: no response is left to learn from within offline.min_accuracy = "
            f"{config.min_accuracy:g} and max_accuracy = {config.max_accuracy:g}; problems by "
            f"their share of right responses: {selection.accuracies_in_words()}; responses left "
            f"out: {dropped}"
        )
    logger.info(
        "%s: %d responses, %d of them cut; left out: %s; problems by their share of right "
        "responses: %s",
        stage,
        len(selection.trajectories),
        selection.num_cut,
        dropped or "none",
        selection.accuracies_in_words(),
    )
    return selection


def credited(selection: Selection, config: OfflineConfig, *, seed: int) -> OfflineSource:
    """The set with the credit of all its actions or responses, in an order that `seed` gives."""
    trajectories, accuracies = selection.trajectories, selection.accuracies
    least = config.baseline_min_count
    if config.level == "process":
        credits = offline_credits(
            trajectories, accuracies, baseline=config.baseline, min_count=least
        )
    else:
        credits = outcome_credits(trajectories, accuracies, min_count=least)
    return OfflineSource(trajectories, credits, batch_size=config.batch_size, seed=seed)


def offline_recipe(config: OfflineConfig, *, temperature: float) -> Recipe:
    """The row of the online level, with the KL of the policy of now in place of the old one's.

    Its credit rule is not used: credit is given once, to the whole set.
    """
    row = effective_recipe(
        f"s2r_{config.level}",
        temperature=temperature,
        kl_coefficient=0.0,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        ratio=config.ratio,
        ratio_mean=config.ratio_mean,
    )
    unit = row.advantage.kl_unit
    loss = replace(row.loss, advantage_kl=config.kl_coefficient, advantage_kl_unit=unit)
    return replace(row, loss=loss)


def build_trainer(context: Context, books: Books, *, num_steps: int) -> Trainer:
    """The policy and its recipe; there is no other model."""
    config, stage = context.config.offline, context.stage
    models = context.model_folders

    def packing(step: int) -> PackingSpec:
        return context.packing(seed=context.seeds.of(stage, "minibatches", step))

    return Trainer(
        offline_recipe(config, temperature=sampling_temperature(context.config)),
        models.policy(context.policy_folder, config.optimizer, num_steps=num_steps),
        None,
        None,
        context.parallel,
        packing,
        books.spans.span,
        context.renderer.tokenizer,
        max_logprob_diff=context.config.rollout.max_logprob_diff,
    )


def _with_stored(batch: PackedBatch) -> PackedBatch:
    """Old policy and reference are the model that sampled."""
    stored = batch.rollout_logprobs
    return batch.annotated(old_logprobs=stored, ref_logprobs=stored)


def _metrics(result: StepResult, trainer: Trainer, books: Books) -> dict[str, float]:
    """Count a step; its metrics without times."""
    return {
        **update_metrics(books.training(result)),
        **advantage_metrics(
            result.batches,
            result.advantages,
            result.experience.trajectories,
            trainer.parallel.all_reduce_sum,
        ),
    }
