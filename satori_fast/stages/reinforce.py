# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learning from whole problems and restarts: rollout, reward, pack, logprob, update.

The loop is `reinforce_step`; everything above it is set-up. Which algorithm runs is a row of
`algorithms.recipe.RECIPES`; where problems come from is a `ProblemMixture` of whole problems and a
restart buffer (`restarts`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from satori_fast.algorithms.advantages import estimate_advantages
from satori_fast.algorithms.credit import CreditRule
from satori_fast.algorithms.importance import weigh_sequences
from satori_fast.algorithms.recipe import Recipe, effective_recipe, unused_keys
from satori_fast.backbone.step import Learner, annotate, update
from satori_fast.config import ReinforceConfig, RestartConfig, RewardConfig
from satori_fast.data.mixture import ProblemMixture
from satori_fast.data.packing import pack
from satori_fast.rewards.compose import RewardTerms, drop_uninformative_groups, score
from satori_fast.rollout.engine import Engine
from satori_fast.rollout.partial import PartialRollouts
from satori_fast.stages.alarms import UninformativeSteps, bonus_cancels, warn_of_idle_settings
from satori_fast.stages.mismatch import check_logprobs
from satori_fast.stages.restarts import problem_mixture
from satori_fast.stages.run import Run, StageOutcome
from satori_fast.stages.scoring import RewardModel, critic_for, load_reward_model
from satori_fast.stages.setup import learner_for
from satori_fast.stages.step_loop import StepLoop
from satori_fast.stages.step_metrics import (
    advantage_metrics,
    grading_metrics,
    importance_metrics,
    rollout_metrics,
    update_metrics,
)
from satori_fast.stages.workload import count_decoding, count_scoring, count_training
from satori_fast.types import PackedBatch, RolloutResult, Trajectory


@dataclass
class Actors:
    """What the loop works with: models, engine, problems, and the recipe with its coefficients."""

    config: ReinforceConfig
    recipe: Recipe
    credit: CreditRule
    policy: Learner
    critic: Learner | None
    reference: Learner | None
    engine: Engine
    problems: ProblemMixture
    rewards: RewardTerms
    reward_model: RewardModel | None  # None where the preference reward is off
    partial: PartialRollouts | None  # rollouts that go on from step to step, if the config has any
    uninformative: UninformativeSteps
    restart_step: int = 0  # step whose restart buffer serves now

    @property
    def learners(self) -> dict[str, Learner]:
        trained = {"policy": self.policy, "critic": self.critic}
        return {name: learner for name, learner in trained.items() if learner is not None}

    def trained(self, step: int) -> dict[str, Learner]:
        """Those that learn in this step: the critic alone while it warms up."""
        if self.critic is None or step >= self.config.critic_warmup_steps:
            return self.learners
        return {"critic": self.critic}

    def informative(self, step: int, scored: list[Trajectory]) -> list[Trajectory]:
        """Drop groups without signal, unless the recipe learns from all; no signal at all is an
        alarm."""
        kept = scored
        if self.recipe.min_group_std is not None:
            kept = drop_uninformative_groups(scored, self.recipe.min_group_std)
        self.uninformative.look_at(step, scored, kept)
        return kept

    @property
    def scorers(self) -> list[Learner]:
        return [m for m in (self.policy, self.reference, self.critic) if m is not None]

    def data_state(self) -> dict[str, Any]:
        """JSON-able: where the data stands, rollouts under way included."""
        partial = None if self.partial is None else self.partial.state_dict()
        return {
            "problems": self.problems.state_dict(),
            "partial": partial,
            "restart_step": self.restart_step,
            "credit": self.credit.state_dict(),
        }

    def load_data_state(self, run: Run, state: Mapping[str, Any]) -> None:
        if state["restart_step"] != self.restart_step:
            self.refresh_restarts(run, state["restart_step"])
        self.problems.load_state_dict(state["problems"])
        if self.partial is not None:
            self.partial.load_state_dict(state["partial"])
        self.credit.load_state_dict(state["credit"])

    def refresh_restarts(self, run: Run, step: int) -> None:
        """Draw from the restart buffer of `step`, built from the policy of now if it is new."""
        self.problems = problem_mixture(run, self.engine, step=step)
        self.restart_step = step


def reinforce_step(run: Run, actors: Actors, step: int) -> dict[str, float]:
    """One step on `actors.config.problems_per_step` problems; metrics without times."""
    config, recipe = actors.config, actors.recipe
    pending = 0 if actors.partial is None else actors.partial.num_pending
    problems = actors.problems.take(max(0, config.problems_per_step - pending))
    seed = run.seed(run.stage, "rollout", step)
    sampling = run.sampling(num_samples=config.samples_per_problem, seed=seed)
    passes_before = actors.engine.num_passes
    with run.spans.span("rollout"):
        rollout = run.collect(actors.engine, problems, sampling, partial=actors.partial)
        if run.config.rollout.sleep:
            actors.engine.sleep()
    preferences = None
    if actors.reward_model is not None:
        preferences = actors.reward_model.rewards(run, rollout.trajectories)
    with run.spans.span("reward"):
        scored = score(rollout.trajectories, actors.rewards, run.grader, preferences=preferences)
        kept = actors.informative(step, scored)
    with run.spans.span("pack"):
        packing = run.packing(config.num_minibatches, run.seed(run.stage, "minibatches", step))
        batches = pack(kept, actors.credit.assign(kept), packing, recipe.weighting)
        batches = [batch.to(run.parallel.device) for batch in batches]
    with run.spans.span("logprob"):
        batches = annotate(
            batches,
            actors.policy,
            actors.reference,
            actors.critic,
            temperature=recipe.loss.temperature,
        )
        compare_logprobs(run, batches, kept, version=rollout.policy_version)
        advantages = estimate_advantages(batches, recipe.advantage, run.parallel.all_reduce_sum)
        advantages, reweighted = weigh_sequences(batches, advantages, recipe.loss)
    trained = actors.trained(step)
    with run.spans.span("update"):
        stats = update(
            actors.policy,
            actors.critic,
            batches,
            advantages,
            recipe.loss,
            policy_enabled="policy" in trained,
        )
    with run.spans.span("sync"):
        actors.engine.wake()
        report = run.engines.push(run, actors.engine, actors.policy, version=step + 1)
    count_tokens(run, rollout, kept)
    count_decoding(run, actors.policy, actors.engine.num_passes - passes_before)
    count_scoring(run, "logprob", actors.scorers, kept)
    count_training(run, trained.values(), kept)
    run.record_samples(step, evenly_spread(scored, config.num_logged_samples))
    return {
        **rollout_metrics(rollout, scored, kept),
        **advantage_metrics(batches, advantages, kept, run.parallel.all_reduce_sum),
        **update_metrics(stats),
        **importance_metrics(run.parallel.all_reduce_sum(reweighted)),
        **grading_metrics(run.grader.reasons),
        **run.engines.metrics(),
        "sync/bytes": float(report.num_bytes),
    }


def reinforce(run: Run) -> StageOutcome:
    """Train the current model for `reinforce.num_steps` steps; evaluate and export it."""
    config = run.config.reinforce
    actors = build_actors(run)
    done = run.resume_stage(actors.learners)
    if done.data is not None:
        actors.load_data_state(run, done.data)
        actors.engine = run.engine(actors.policy, version=done.step)
    evaluation = None
    with StepLoop(
        run,
        actors.learners,
        config.num_steps,
        done,
        checkpoint_every=config.checkpoint_every,
        export_every=config.export_every,
    ) as loop:
        for step in loop:
            if refresh_due(config.restarts, step):
                actors.refresh_restarts(run, step)
            metrics = reinforce_step(run, actors, step)
            if loop.is_due(config.evaluate_every):
                evaluation = run.evaluate(actors.engine)
                metrics |= run.record_evaluation(step, evaluation)
            shown = {"accuracy": metrics.get("rollout/accuracy", math.nan)}
            loop.finish_step(metrics, actors.data_state(), shown=shown)
    run.export(actors.policy, run.exported_model)
    evaluation = evaluation or run.evaluate(actors.engine)
    return StageOutcome({"policy": run.exported_model}, evaluation, loop.done.times)


# -- set-up -----------------------------------------------------------------------------------


def build_actors(run: Run) -> Actors:
    config, limit = run.config.reinforce, run.config.rollout.max_step_tokens
    recipe = effective_recipe(
        config.recipe,
        temperature=run.config.rollout.temperature,
        **config.recipe_overrides(),
    )
    warn_of_idle_settings(
        run.stage,
        unused_keys(recipe, config.changed_keys()),
        bonus_cancels=bonus_cancels(
            recipe.credit(), run.config.reward, has_restarts=config.restarts.enabled
        ),
    )
    reward_model = load_reward_model(run)
    policy = learner_for(run, "policy", config.optimizer, num_steps=num_updates(config))
    critic = reference = None
    if "critic" in recipe.needs:
        critic = critic_for(run, num_updates(config))
    if "reference" in recipe.needs:
        reference = learner_for(run, "policy", None)
    engine = run.engine(policy)
    return Actors(
        config=config,
        recipe=recipe,
        credit=recipe.credit(),
        policy=policy,
        critic=critic,
        reference=reference,
        engine=engine,
        problems=problem_mixture(run, engine, step=0),
        rewards=reward_terms(run.config.reward),
        reward_model=reward_model,
        partial=PartialRollouts(limit) if limit is not None else None,
        uninformative=UninformativeSteps(run.stage, config.max_uninformative_steps),
    )


def reward_terms(config: RewardConfig) -> RewardTerms:
    return RewardTerms(
        rule=config.rule_weight,
        reflection_bonus=config.reflection_bonus,
        preference=config.preference_weight,
    )


def refresh_due(config: RestartConfig, step: int) -> bool:
    every = config.refresh_every if config.enabled else 0
    return every > 0 and step > 0 and step % every == 0


def num_updates(config: ReinforceConfig) -> int:
    return config.num_steps * config.num_minibatches


def compare_logprobs(
    run: Run, batches: Sequence[PackedBatch], kept: Sequence[Trajectory], *, version: int
) -> None:
    """`check_logprobs` with the settings of the run."""
    check_logprobs(
        batches,
        kept,
        version=version,
        limit=run.config.rollout.max_logprob_diff,
        parallel=run.parallel,
        tokenizer=run.renderer.tokenizer,
    )


def evenly_spread(scored: list[Trajectory], num: int) -> list[Trajectory]:
    """So many of them, from all over the step."""
    every = max(1, len(scored) // max(1, num))
    return scored[::every][:num]


def count_tokens(run: Run, rollout: RolloutResult, kept: Sequence[Trajectory]) -> None:
    trained = sum(len(t.tokens) for t in kept)
    run.spans.count("rollout", rollout.num_generated_tokens)
    run.spans.count("logprob", trained)
    run.spans.count("update", trained)
    run.spans.count("step", rollout.num_prompt_tokens + rollout.num_generated_tokens)
