# SPDX-License-Identifier: Apache-2.0
"""Alarms of a stage that has stopped learning: updates that are not finite, steps without signal.

The first of either is an alarm in the books (`Books.alarm`: log, metrics.jsonl and report); too
many in a row stop the run. Settings without effect are a warning when it starts. That an engine and
the trainer agree is `mismatch`; what curves show is `profiling.learning_alarms`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save
from torch import Tensor

from satori_fast.algorithms.credit import CreditRule
from satori_fast.backbone.optimizer import NonFiniteUpdate
from satori_fast.backbone.parallel import ParallelState
from satori_fast.config import ReinforceConfig, RewardConfig
from satori_fast.experience.source import num_groups
from satori_fast.storage import write_atomically
from satori_fast.types import Experience, RewardBreakdown

logger = logging.getLogger(__name__)

_CAUSES = (
    "likely causes: a learning rate that is too high, a NaN in the weights of a model or reward "
    "model, an overflow in bfloat16"
)
# What a learner is called in the metrics, and to people.
_PEOPLE_SAY = {"update": "policy", "preference": "reward model"}
_SKIPPED = "/num_skipped"
_FEW_ANSWERS = 0.1  # share of answers below which they are the reason for no reward
# Takes the kind of an alarm and its line.
Tell = Callable[[str, str], None]
_SAME_REWARD = 1e-6


class TrainingStopped(RuntimeError):
    """A stage that learns nothing any more; the message says since when and why."""


class SkippedUpdates:
    """Updates of a stage that a loss or gradient which is not finite has cost."""

    def __init__(self, stage: str, tell: Tell) -> None:
        self._stage, self._tell = stage, tell
        self._warned: set[str] = set()

    def look_at(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn of the first update that each learner missed; `metrics` are those of the step."""
        for key, number in metrics.items():
            learner = key.removesuffix(_SKIPPED)
            if not key.endswith(_SKIPPED) or not number or learner in self._warned:
                continue
            self._warned.add(learner)
            who, what = _PEOPLE_SAY.get(learner, learner), _what(metrics[f"{learner}/loss"])
            self._tell(
                f"updates of the {who}",
                f"{self._stage} step {step}: {number:.0f} updates of the {who} were skipped, "
                f"{what} not finite; max_skipped_updates of its optimizer says how many in a row "
                f"stop the run; {_CAUSES}",
            )

    def stop(
        self, step: int, failure: NonFiniteUpdate, *, folder: Path, parallel: ParallelState
    ) -> TrainingStopped:
        """Keep the batch in `folder`, each data-parallel rank its own; what to raise."""
        learner = _PEOPLE_SAY.get(failure.learner, failure.learner)
        rank = f"-rank-{parallel.data_rank}" if parallel.data_size > 1 else ""
        path = folder / f"{self._stage}-step-{step}{rank}.safetensors"
        place = f"the last batch is in {path}"
        facts = {
            "stage": self._stage,
            "step": step,
            "learner": learner,
            "updates_skipped_in_a_row": failure.num_skipped,
            "loss": repr(failure.loss),
            "grad_norm": repr(failure.grad_norm),
        }
        try:
            if parallel.tensor_rank == parallel.pipeline_rank == 0:
                save_batch(path, failure, facts)
        except OSError as error:  # the reason to stop must be told all the same
            place = f"the last batch could not be written: {error}"
        return TrainingStopped(
            f"{self._stage} step {step}: {failure.num_skipped} updates of the {learner} in a row "
            f"were skipped (max_skipped_updates of its optimizer = {failure.num_skipped - 1}), "
            f"{_what(failure.loss)} not finite; {_CAUSES}; {place}"
        )


def warn_of_large_batch(
    stage: str, batch_size: int, num_examples: int, *, num_epochs: float
) -> None:
    """Warn when one optimizer step takes more examples than all epochs have."""
    if batch_size > num_examples * num_epochs:
        logger.warning(
            "%s.batch_size = %d exceeds the %d examples of num_epochs = %g: a step takes them "
            "repeatedly; lower it",
            stage,
            batch_size,
            num_examples,
            num_epochs,
        )


def bonus_cancels(rule: CreditRule, reward: RewardConfig, *, has_restarts: bool) -> bool:
    """Whether `reward.reflection_bonus` has no effect on the signal of any trajectory.

    With verdict c and weight w, a restart earns ``(w + beta) (c - 1)``, and beta more for either
    verdict where its prefix is wrong. Siblings share the prefix: within a group that is a positive
    multiple of ``w (c - 1)`` and a constant, and a rule that divides by the group's standard
    deviation undoes both. Other terms, where there are any, are not multiplied.
    """
    is_on = has_restarts and reward.reflection_bonus > 0
    is_alone = reward.rule_weight > 0 and not reward.preference_weight and not reward.functions
    return is_on and is_alone and rule.ignores_scale


def warn_of_idle_settings(stage: str, unused: Sequence[str], *, bonus_cancels: bool) -> None:
    """Warn, once each, of keys that the recipe does not use and of a bonus without effect.

    unused: with their section.
    """
    if unused:
        logger.warning(
            "%s: the recipe, as it is set, does not use %s: without effect; "
            "`satori-fast show CONFIG --recipe` prints what runs",
            stage,
            ", ".join(unused),
        )
    if bonus_cancels:
        logger.warning(
            "%s: reward.reflection_bonus has no effect: it multiplies the rewards of a group of "
            "restarts, and this recipe divides by the group's standard deviation; take "
            'reinforce.recipe = "grpo_no_std" or "ppo", or set it to 0',
            stage,
        )


def _what(loss: float) -> str:
    return "the gradient is" if math.isfinite(loss) else f"the loss ({loss:g}) is"


def save_batch(path: Path, failure: NonFiniteUpdate, facts: Mapping[str, Any]) -> None:
    """The microbatches of an update as safetensors, "NUMBER.FIELD"; `facts` as JSON in its header.

    Fields are those of `types.PackedBatch` (tokens, log-probs, credits, ...), "advantages" and
    "returns".
    """
    tensors: dict[str, Tensor] = {}
    for number, (batch, advantages) in enumerate(failure.microbatches):
        for record in (batch, advantages):
            for field in fields(record) if record is not None else ():
                value = getattr(record, field.name)
                if isinstance(value, Tensor):
                    tensors[f"{number}.{field.name}"] = value.detach().cpu().contiguous().clone()
    write_atomically(path, save(tensors, metadata={"facts": json.dumps(facts)}))


class UninformativeSteps:
    """Steps of reinforcement that find too few groups, or none, whose rewards differ.

    A step that keeps fewer groups than `problems_per_step` after its last round of sampling trains
    on those, and the first such step is a warning. One that keeps none changes nothing: an unlucky
    batch does that too, most of all a small one or one at the start of RLVR, so a single step stops
    no run. The first is a warning, and `max_uninformative_steps` in a row (0: any number) end it:
    a batch that can never fill costs so many steps of `max_sampling_rounds` rounds.

    config:        of the stage. section: where a user sets it, "reinforce" or "srl".
    tell:          takes the warnings.
    min_group_std: epsilon, as the recipe has it; None where it keeps every group.
    answer:        what a response with an answer has.
    """

    def __init__(
        self,
        stage: str,
        config: ReinforceConfig,
        min_group_std: float | None,
        *,
        section: str,
        answer: str = r"a \boxed{}",
        tell: Tell,
    ) -> None:
        self._answer = answer
        self._stage, self._config, self._section = stage, config, section
        self._tell = tell
        self._min_group_std = min_group_std
        self._in_a_row = 0
        self._warned: set[str] = set()

    def look_at(self, step: int, experience: Experience) -> None:
        """Warn of the first such steps, TrainingStopped at the limit. A step that finished no
        sample says nothing."""
        kept = experience.trajectories
        rewards = [t.reward for t in experience.sampled if t.reward is not None]
        if not rewards:
            return
        if kept and np.std([r.total for r in rewards]) > _SAME_REWARD:
            self._in_a_row = 0
            self._look_at_fill(step, experience, rewards)
            return
        self._in_a_row += 1
        remedy = self._without_answers(rewards) or self._remedy(rewards)
        reason = f"{self._sameness(experience, rewards, 'no')}; {remedy}"
        if self._config.truncated == "mask":
            cut = sum(t.finish == "length" for t in experience.sampled)
            reason += f"; {cut} of {len(experience.sampled)} responses were cut and left out"
        limit = self._config.max_uninformative_steps
        if limit and self._in_a_row >= limit:
            raise TrainingStopped(
                f"{self._stage} step {step}: nothing to learn from in {self._in_a_row} steps in a "
                f"row ({self._section}.max_uninformative_steps): {reason}"
            )
        self._warn("no signal", f"{self._stage} step {step}: nothing to learn from: {reason}")

    def _look_at_fill(
        self, step: int, experience: Experience, rewards: Sequence[RewardBreakdown]
    ) -> None:
        """Warn of the first refilled step whose batch is not full; without refilling none is."""
        wanted, kept = self._config.problems_per_step, num_groups(experience.trajectories)
        if "rollout/num_rounds" in experience.stats and kept < wanted:
            self._warn(
                "batch not full",
                f"{self._stage} step {step}: it learns from {kept} groups, not from {wanted}: "
                f"{self._sameness(experience, rewards, 'no other')}; more rounds "
                f"({self._section}.max_sampling_rounds) may fill it",
            )

    def _sameness(
        self, experience: Experience, rewards: Sequence[RewardBreakdown], which: str
    ) -> str:
        """Rounds, epsilon and the range of the rewards; which: "no" group, or "no other"."""
        totals = [reward.total for reward in rewards]
        low, high = min(totals), max(totals)
        found = f"all rewards are {low:g}"
        if high - low > _SAME_REWARD:
            found = f"rewards go from {low:g} to {high:g}"
        if self._min_group_std is None:
            return found
        number = int(experience.stats.get("rollout/num_rounds", 1))
        rounds = "1 round" if number == 1 else f"{number} rounds"
        return (
            f"{which} group of {rounds} of sampling has rewards with a standard deviation above "
            f"{self._section}.min_group_std = {self._min_group_std:g}, {found}"
        )

    def _without_answers(self, rewards: Sequence[RewardBreakdown]) -> str | None:
        """Few answers, and so nothing to grade, as the reason; None where it is another one."""
        answered = [r.answered for r in rewards if r.answered is not None]
        if sum(answered) >= _FEW_ANSWERS * len(answered):
            return None
        return (
            f"{sum(answered)} of {len(answered)} answers have {self._answer}: ask for it in the "
            "prompt (data.template, data.system), show it in a warm-up (supervised), raise "
            "rollout.max_new_tokens, or set reward.answer to where this model writes answers"
        )

    def _remedy(self, rewards: Sequence[RewardBreakdown]) -> str:
        graded = [r.correct for r in rewards if r.correct is not None]
        causes = (
            "likely causes: problems that are all too hard or all too easy, a temperature that is "
            "too low, responses that the limit cuts short"
        )
        if graded:
            right = f"{float(np.mean(graded)):.0%} of its answers are right"
            causes = f"{right}; {causes}, answers that the grader cannot read"
        else:
            causes += ", responses that are not of the format"
        return (
            f"{causes}; take other problems or a longer warm-up, raise rollout.temperature or "
            f"{self._section}.samples_per_problem, or lower {self._section}.min_group_std"
        )

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._tell(what, message)
