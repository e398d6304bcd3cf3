# SPDX-License-Identifier: Apache-2.0
"""Supervised reinforcement learning (SRL, arXiv 2510.25992): the policy is asked for one step of an
expert's solution at a time, and rewarded by how much its step resembles the expert's.

It is reinforcement on other problems, with another reward and another validation; the loop is
`reinforce.train`. Where step problems come from is `step_data`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from satori_fast.data.prompts import PromptRenderer
from satori_fast.evaluation.evaluate import mean_metrics
from satori_fast.rewards.similarity import exact_share, similarity_of
from satori_fast.rewards.terms import Reward, score
from satori_fast.rollout.engine import SamplingParams, collect
from satori_fast.rollout.restarting import Restarting, ServedWeights
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.evaluator import Evaluator, Validation
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.reinforce import train
from satori_fast.stages.rewards import build_step_rewards
from satori_fast.stages.run_folder import RunFolder
from satori_fast.stages.step_data import load_step_data
from satori_fast.types import Problem, Trajectory


def srl(context: Context, folder: RunFolder, books: Books) -> StageOutcome:
    """Train the current model for `srl.num_steps` steps; evaluate and export it."""
    data = load_step_data(context, folder)
    config = context.config
    rewards = build_step_rewards(config.srl, context.renderer, spans=books.spans)
    validator = step_validator(context, data.validation, books)
    outcome = train(
        context,
        folder,
        books,
        problems=data.training,
        rewards=rewards,
        validator=validator,
        section=config.srl.SECTION,
    )
    return replace(outcome, figures={**data.figures, **outcome.figures})


def step_validator(context: Context, problems: Sequence[Problem], books: Books) -> StepValidator:
    """Measure of a policy by step problems, as the section `srl` has it."""
    config = context.config
    return StepValidator(
        problems,
        build_step_rewards(config.srl, context.renderer),
        context.evaluator(books),
        books,
        max_new_tokens=config.rollout.max_new_tokens,
        last_step=config.srl.num_steps - 1,
    )


@dataclass(frozen=True)
class StepValidator:
    """Mean similarity of greedy steps on held-out step problems; after the last step the accuracy
    on whole problems too. Implements `Validator`."""

    problems: Sequence[Problem]
    rewards: Sequence[Reward]
    evaluator: Evaluator
    books: Books
    max_new_tokens: int
    last_step: int

    def validate(self, engine: Restarting, policy: ServedWeights, *, step: int) -> Validation:
        """Measure the weights after a step; samples of it are written."""
        if engine.policy_version != step + 1:
            engine.sync(policy, version=step + 1)
        answered = self.answers(engine)
        metrics = validation_metrics(answered, engine.renderer)
        shown = self.evaluator.config.num_logged_samples
        self.books.record_samples(step, answered[:shown])
        evaluation = None
        if step == self.last_step:
            evaluation = self.evaluator.evaluate_policy(engine, policy, version=step + 1)
            metrics |= self.evaluator.record(step, evaluation)
        return Validation(metrics["validation/similarity"], metrics, evaluation)

    def answers(self, engine: Restarting) -> list[Trajectory]:
        """One greedy response to each problem, scored; span "evaluate"."""
        sampling = SamplingParams(temperature=0.0, max_new_tokens=self.max_new_tokens)
        with self.books.spans.span("evaluate"):
            rollout = collect(engine, self.problems, sampling)
            answered = score(rollout.trajectories, self.rewards)
        self.books.spans.count("evaluate", rollout.num_generated_tokens)
        return answered


def validation_metrics(
    answered: Sequence[Trajectory], renderer: PromptRenderer
) -> dict[str, float]:
    """Mean similarity of scored steps, the share that is the expert's to the last element, and what
    the format counts, as "validation/NAME"."""
    counted = mean_metrics(answered, renderer.format_of)
    return {
        "validation/similarity": float(np.mean([similarity_of(t) for t in answered])),
        "validation/exact": exact_share(answered),
        **{f"validation/{name}": mean for name, mean in counted.items()},
    }
