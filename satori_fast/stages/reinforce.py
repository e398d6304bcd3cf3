# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learning: a source of experience, and a trainer that learns from it.

The loop is `reinforce_step`; everything below it is set-up. The algorithm is a row of
`algorithms.recipe.RECIPES`; sampled or stored, whole or in parts, refilled or not is the source's
affair (`experience`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from satori_fast.algorithms.recipe import Recipe, effective_recipe, unused_keys
from satori_fast.backbone.parallel import ParallelState
from satori_fast.backbone.step import Learner
from satori_fast.config import Config, ConfigError, ReinforceConfig, RewardConfig, RolloutConfig
from satori_fast.data.packing import PackingSpec
from satori_fast.data.prompts import PromptRenderer
from satori_fast.evaluation.evaluate import EvaluationResult
from satori_fast.experience.online import OnlineSource
from satori_fast.experience.partial import PartialSource
from satori_fast.experience.source import Cut, ExperienceSource, Judge
from satori_fast.experience.stored import StoredSource, read_rollouts
from satori_fast.grading import Grader, answer_finder
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rewards.ahead import ScoredAhead
from satori_fast.rewards.terms import Reward, score
from satori_fast.rewards.worker import FunctionWorker
from satori_fast.rollout.engine import SamplingParams
from satori_fast.rollout.restarting import Restarting
from satori_fast.stages.alarms import UninformativeSteps, bonus_cancels, warn_of_idle_settings
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.evaluator import Validation, Validator
from satori_fast.stages.grader import SharedGrader
from satori_fast.stages.mismatch import check_logprobs
from satori_fast.stages.models import ModelFolders
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.restarts import (
    RestartBuffers,
    StageProblems,
    answered_questions,
    mixed_questions,
    read_answered,
)
from satori_fast.stages.rewards import build_rewards, cut_policy, length_penalty
from satori_fast.stages.run_folder import RunFolder, StageProgress
from satori_fast.stages.scoring import load_critic, load_reward_model
from satori_fast.stages.step_loop import StepLoop
from satori_fast.stages.trainer import StepResult, Trainer, scored_share
from satori_fast.types import PackedBatch, Problem, Trajectory

logger = logging.getLogger(__name__)


def reinforce_step(learner: Trainer, source: ExperienceSource, step: int) -> StepResult:
    """One step: experience, its log-probs and values, its advantages, an update, a sync."""
    learner.rest()
    experience, late = source.next(step), learner.scores_late(step)
    scored: list[PackedBatch] = []

    def compare(batches: list[PackedBatch]) -> None:
        scored.extend(batches)
        check_logprobs(
            batches,
            experience,
            limit=learner.max_logprob_diff,
            parallel=learner.parallel,
            tokenizer=learner.tokenizer,
        )

    with learner.span("pack"):
        batches = learner.pack(experience, step)
    with learner.span("logprob"):
        batches = learner.annotate(batches, late=late)
    if not late:
        compare(batches)
    with learner.span("advantage"):
        advantages, weighted = learner.advantages(batches)
    with learner.span("update"):
        stats = learner.update(batches, advantages, step, scored=compare if late else None)
    learner.rest()
    with learner.span("sync"):
        synced = source.sync(learner.policy, version=step + 1)
    return StepResult(
        experience,
        scored,
        advantages,
        {**stats, **weighted},
        learner.trained(step),
        synced,
        scored=scored_share(batches),
    )


def reinforce(context: Context, folder: RunFolder, books: Books) -> StageOutcome:
    """Train the current model for `reinforce.num_steps` steps; evaluate and export it."""
    # It counts its verdicts alone.
    grader = SharedGrader(context.grader.pool, context.parallel.copies())
    rewards = load_rewards(
        context.config.reward,
        context.model_folders,
        trained=context.models.get("reward"),
        grader=grader,
        functions=context.functions,
        packing=context.packing(),
        parallel=context.parallel,
        spans=books.spans,
    )
    config, start = context.config, context.policy_folder.name
    rewards += length_penalty(config.reinforce, config.rollout.max_new_tokens)
    outcome = train(
        context,
        folder,
        books,
        problems=context.problems,
        rewards=rewards,
        figures=grader.take_figures,
        validator=context.evaluator(books),
    )
    if not config.restarts_enabled and config.solutions.questions == "all":
        return outcome  # nothing was sampled first
    answered = read_answered(folder, name=start)
    return replace(outcome, figures={**answered.figures(), **outcome.figures})


def train(
    context: Context,
    folder: RunFolder,
    books: Books,
    *,
    problems: Sequence[Problem],
    rewards: Sequence[Reward],
    validator: Validator,
    figures: Callable[[], Mapping[str, float]] | None = None,
    section: str = "reinforce",
) -> StageOutcome:
    """Reinforce the current model on `problems` by the section `reinforce` of the stage's config.

    figures: takes what the rewards counted since the last time, under metric names.
    section: of the run's config, for messages: where these settings were made.
    """
    config = context.config.reinforce
    trainer = build_trainer(context, books)
    warn_of_settings(context.config, trainer.recipe, stage=context.stage, section=section)
    engine = context.engine(trainer.policy)
    cut = cut_policy(config, trainer.recipe)
    judge = build_judge(trainer.recipe, rewards, books.spans, figures=figures, cut=cut)
    source = build_source(context, folder, books, engine, judge=judge, problems=problems)
    best = BestModel(config.keep == "best", folder.exported(f"{context.stage}-best"))
    validation: Validation | None = None
    alarm = build_alarm(context, books, trainer.recipe, section=section)
    loop = build_loop(context, folder, books, trainer)
    if (data := loop.resume()) is not None:
        source.load_state_dict(data)
        best.load_state_dict(data)
        engine.sync(trainer.policy, version=loop.done.step)
    with loop:
        for step in loop:
            result = reinforce_step(trainer, source, step)
            alarm.look_at(step, result.experience)
            metrics = books.reinforcement(
                step, result, trainer, num_samples=config.num_logged_samples
            )
            if loop.is_due(config.evaluate_every):
                validation = validator.validate(engine, trainer.policy, step=step)
                metrics |= validation.metrics
                if best.is_better(step, validation.value):
                    context.model_folders.export(trainer.policy, best.folder)
            shown = {"reward": metrics.get("reward/total", math.nan)}
            if "rollout/accuracy" in metrics:
                shown = {"accuracy": metrics["rollout/accuracy"]}
            loop.finish_step(metrics, source.state_dict() | best.state_dict(), shown=shown)
    evaluation = None if validation is None else validation.evaluation
    return leave_model(
        context,
        folder,
        books,
        engine=engine,
        policy=trainer.policy,
        best=best,
        evaluation=evaluation,
        done=loop.done,
    )


def leave_model(
    context: Context,
    folder: RunFolder,
    books: Books,
    *,
    engine: Restarting,
    policy: Learner,
    best: BestModel,
    evaluation: EvaluationResult | None,
    done: StageProgress,
) -> StageOutcome:
    """Export what the stage leaves under its name: the weights of now, or the best ones.

    policy, evaluation: the weights of the last step, and what they were worth where that is known.
    """
    version = done.step
    if best.is_kept_before(done.step - 1):
        policy, evaluation, version = context.model_folders.policy(best.folder), None, version + 1
        # An embedded engine reads the parameters of the one policy that it was made for.
        engine = context.engine(policy, version=version)
    exported = folder.exported(context.stage)
    context.model_folders.export(policy, exported)
    if evaluation is None:
        evaluator = context.evaluator(books)
        evaluation = evaluator.evaluate_policy(engine, policy, version=version)
    return StageOutcome({"policy": exported}, evaluation, done.times, best.figures())


@dataclass
class BestModel:
    """The weights of a stage that validated best, left in a folder of their own as they come.

    is_kept: whether they are what the stage leaves. A resumed stage goes on from the value in its
    checkpoint, and leaves the same weights again.
    """

    is_kept: bool
    folder: Path
    step: int = -1
    value: float = -math.inf

    def is_better(self, step: int, value: float) -> bool:
        """Whether the weights after this step are to be left; the earliest of equals are."""
        if not self.is_kept or not value > self.value:
            return False
        self.step, self.value = step, value
        return True

    def is_kept_before(self, last_step: int) -> bool:
        """Whether other weights than those of the last step are what the stage leaves."""
        return self.is_kept and -1 < self.step < last_step

    def figures(self) -> dict[str, float]:
        """Entries of the summary."""
        return {"best_step": float(self.step), "best_value": self.value} if self.is_kept else {}

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"best": [self.step, self.value]} if self.step >= 0 else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.step, self.value = state.get("best", (self.step, self.value))


# -- set-up -----------------------------------------------------------------------------------


def load_rewards(
    config: RewardConfig,
    models: ModelFolders,
    *,
    trained: Path | None,
    grader: Grader,
    functions: FunctionWorker,
    packing: PackingSpec,
    parallel: ParallelState,
    spans: SpanRecorder,
) -> list[Reward]:
    """The sources of reward that the config asks for, the reward model loaded; `trained` is the one
    that the preference stage left."""
    reward_model = load_reward_model(
        config, models, trained=trained, packing=packing, parallel=parallel, spans=spans
    )
    return build_rewards(
        config,
        grader=grader,
        worker=functions,
        format=models.renderer.format,
        reward_model=reward_model,
        share=parallel.from_main,
        spans=spans,
    )


def build_trainer(context: Context, books: Books) -> Trainer:
    """Policy, critic and reference of a stage, as its recipe needs them."""
    config, models = context.config.reinforce, context.model_folders
    recipe = effective_recipe(
        config.recipe,
        temperature=context.config.rollout.temperature,
        **config.recipe_overrides(),
    )
    start, num_steps = context.policy_folder, num_updates(config)
    policy = models.policy(start, config.optimizer, num_steps=num_steps)
    critic = reference = None
    if "critic" in recipe.needs:
        critic = load_critic(
            config,
            models,
            policy=start,
            reward_model=context.config.reward.model or context.models.get("reward"),
            num_steps=num_steps,
        )
    if "reference" in recipe.needs:
        reference = models.policy(start)

    def packing(step: int) -> PackingSpec:
        seed = context.seeds.of(context.stage, "minibatches", step)
        return context.packing(config.num_minibatches, seed=seed)

    return Trainer(
        recipe,
        policy,
        critic,
        reference,
        context.parallel,
        packing,
        books.spans.span,
        context.renderer.tokenizer,
        max_logprob_diff=context.config.rollout.max_logprob_diff,
        critic_warmup_steps=config.critic_warmup_steps,
    )


def build_alarm(
    context: Context, books: Books, recipe: Recipe, *, section: str
) -> UninformativeSteps:
    """The alarm about steps with nothing to learn from. section: where a user sets its limit."""
    return UninformativeSteps(
        context.stage,
        context.config.reinforce,
        recipe.min_group_std,
        section=section,
        answer=answer_finder(context.config.reward.answer).shown,
        tell=books.alarm,
    )


def build_loop(context: Context, folder: RunFolder, books: Books, trainer: Trainer) -> StepLoop:
    """The loop over the steps of a stage."""
    config = context.config.reinforce
    return StepLoop(
        context.stage,
        trainer.learners,
        config.num_steps,
        folder,
        books,
        checkpoint_every=config.checkpoint_every,
        export_every=config.export_every,
        export=context.model_folders.export,
    )


def build_judge(
    recipe: Recipe,
    rewards: Sequence[Reward],
    spans: SpanRecorder,
    *,
    figures: Callable[[], Mapping[str, float]] | None,
    cut: Cut,
) -> Judge:
    """The judge of samples under a recipe: it scores, filters and credits them."""
    ahead = [reward for reward in rewards if isinstance(reward, ScoredAhead)]

    def begin(trajectory: Trajectory) -> None:
        for reward in ahead:
            reward.begin(trajectory)

    return Judge(
        partial(score, rewards=rewards),
        recipe.credit(),
        recipe.min_group_std,
        spans.span,
        figures=figures,
        begin=begin if ahead else None,
        cut=cut,
    )


def build_source(
    context: Context,
    folder: RunFolder,
    books: Books,
    engine: Restarting,
    *,
    judge: Judge,
    problems: Sequence[Problem],
) -> ExperienceSource:
    """The source of experience that a config asks for."""
    config, rollout, seeds = context.config.reinforce, context.config.rollout, context.seeds
    if config.source == "stored":
        return stored_source(
            config, rollout, context.renderer, judge, seed=seeds.of(context.stage, "problems")
        )
    buffers = None
    solver, start = context.solver(folder, books), context.policy_folder.name
    mixed = context.config.solutions.questions == "mixed"
    if mixed or context.config.restarts_enabled:
        answered = answered_questions(solver, engine, name=start)
        problems = mixed_questions(problems, answered, name=start) if mixed else problems
    if context.config.restarts_enabled:
        buffers = RestartBuffers(config.restarts, solver, context.stage, start)
    seed = seeds.of(context.stage, "problems")
    feed = StageProblems(problems, buffers, engine, seed=seed)

    def sampling(step: int) -> SamplingParams:
        seed = seeds.of(context.stage, "rollout", step)
        return context.sampling(num_samples=config.samples_per_problem, seed=seed)

    if rollout.max_step_tokens is not None:
        return PartialSource(
            engine,
            feed,
            judge,
            max_step_tokens=rollout.max_step_tokens,
            sampling=sampling,
            problems_per_step=config.problems_per_step,
            sleep=rollout.sleep,
        )
    return OnlineSource(
        engine,
        feed,
        judge,
        sampling=sampling,
        problems_per_step=config.problems_per_step,
        max_rounds=config.max_sampling_rounds,
        sleep=rollout.sleep,
    )


def stored_source(
    config: ReinforceConfig,
    rollout: RolloutConfig,
    renderer: PromptRenderer,
    judge: Judge,
    *,
    seed: int,
) -> StoredSource:
    """The rollouts of `reinforce.rollouts`. ConfigError where they are not of this run's kind.

    Another model may have sampled them: the ratio is to the policy of each step, not to the file,
    and `reinforce.importance` weighs the difference.
    """
    assert config.rollouts is not None
    try:
        path = Path(config.rollouts)
        rollouts = read_rollouts(path, renderer, temperature=rollout.temperature)
    except (ValueError, OSError) as error:
        raise ConfigError(f"reinforce.rollouts: {error}") from None
    return StoredSource(rollouts, judge, problems_per_step=config.problems_per_step, seed=seed)


def warn_of_settings(config: Config, recipe: Recipe, *, stage: str, section: str) -> None:
    """Say which settings of reinforcement have no effect under a recipe."""
    reinforce = config.reinforce
    warn_of_idle_settings(
        stage,
        [f"{section}.{key}" for key in unused_keys(recipe, reinforce.changed_keys())],
        bonus_cancels=bonus_cancels(
            recipe.credit(), config.reward, has_restarts=config.restarts_enabled
        ),
    )


def num_updates(config: ReinforceConfig) -> int:
    """Optimizer steps of the policy in a stage."""
    return config.num_steps * config.num_minibatches
