# SPDX-License-Identifier: Apache-2.0
"""The verb explain: why the tokens of given responses get the signal that they get.

Tokenizer, format, rewards and recipe are the config's; no model is loaded, nothing is sampled and
no run folder is made. A step of the file is what a step of a run is, in one minibatch: scored,
filtered, credited, packed and estimated by the code that trains. What a model would have to give is
null, and named in `Explanation.notes`.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from satori_fast.algorithms.advantages import estimate_advantages
from satori_fast.algorithms.recipe import Recipe, effective_recipe
from satori_fast.config import Config, ConfigError, RewardConfig
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.rollout_rows import RolloutRow, read_rollout_rows
from satori_fast.evaluation.evaluate import mean_metrics
from satori_fast.evaluation.verification import count_verifications
from satori_fast.experience.signal import segment_signals
from satori_fast.experience.source import Cut, Judge
from satori_fast.grading import GradingPool, answer_finder
from satori_fast.rewards.similarity import read_step, target_of
from satori_fast.rewards.terms import Reward, score
from satori_fast.stages.explanation import ExplainedRow, Explanation, loss_shares
from satori_fast.stages.iterate import reinforcing_plan
from satori_fast.stages.rewards import (
    build_rewards,
    build_step_rewards,
    build_worker,
    check_functions,
    cut_policy,
    length_penalty,
)
from satori_fast.stages.setup import build_renderer, write_tokenizer
from satori_fast.stages.step_metrics import reward_metrics, step_counts
from satori_fast.types import Experience, SegmentSignal, Trajectory

logger = logging.getLogger(__name__)

_ANNOTATIONS = ("old_logprobs", "ref_logprobs", "values")
# Rows are taken as they stand: no prompt is too long.
_NO_LIMIT = 1 << 40


def explain(config: Config, rollouts: Path) -> Explanation:
    """The signal of every response in the file `rollouts` (`data.rollout_rows` has its fields).

    Rows with the same question, prefix and step (and stage, in a run's samples.jsonl) are siblings.
    Steps come in ascending order; each is one call of the credit rule, a new one for each stage.

    Raises ConfigError, naming file and row, for a row that cannot be read, or has no answer though
    the reward needs one.
    """
    plan = reinforcing_plan(config)
    config, settings = plan.config, plan.config.reinforce
    recipe = effective_recipe(
        settings.recipe, temperature=config.rollout.temperature, **settings.recipe_overrides()
    )
    check_functions(config.reward)
    renderer = _renderer(config)
    try:
        rows = read_rollout_rows(rollouts, renderer)
        asks_steps = plan.kind == "srl"
        if asks_steps:
            rows = _step_rows(rows, file=rollouts)
        else:
            _check_answers(rows, config.reward, file=rollouts)
        fixed_length = settings.fixed_length or config.rollout.max_new_tokens
        cut = cut_policy(settings, recipe)
        with _step_rewards(config, renderer) if asks_steps else _rewards(config, renderer) as own:
            explained = _explain_rows(rows, recipe, own, fixed_length=fixed_length, cut=cut)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if asks_steps:
        tags = config.srl.solution_tags
        explained = [replace(r, step=read_step(r.trajectory, tags=tags)) for r in explained]
    absent = ["preference"] if config.reward.preference_weight and not asks_steps else []
    summary = _summary(explained, recipe, renderer) | {f"reward/{name}": None for name in absent}
    notes = _notes(explained, recipe, absent)
    steps = renderer.steps
    colours = {**(steps.format.colours if steps else {}), **renderer.format.colours}
    return Explanation(explained, summary, notes, absent, colours)


@contextmanager
def _rewards(config: Config, renderer: PromptRenderer) -> Iterator[Sequence[Reward]]:
    reward = config.reward.model_copy(update={"preference_weight": 0.0})
    with (
        GradingPool(
            reward.num_workers, reward.timeout_s, finder=answer_finder(reward.answer)
        ) as grader,
        build_worker(reward) as worker,
    ):
        own = build_rewards(reward, grader=grader, worker=worker, format=renderer.format)
        yield [*own, *length_penalty(config.reinforce, config.rollout.max_new_tokens)]


@contextmanager
def _step_rewards(config: Config, renderer: PromptRenderer) -> Iterator[Sequence[Reward]]:
    yield build_step_rewards(config.srl, renderer)


def _renderer(config: Config) -> PromptRenderer:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(config, Path(folder) / "tokenizer")
        renderer = build_renderer(config, Path(folder) / "tokenizer")
    return replace(renderer, max_prompt_tokens=_NO_LIMIT)


def _check_answers(rows: Sequence[RolloutRow], reward: RewardConfig, *, file: Path) -> None:
    if not (reward.rule_weight or reward.reflection_bonus):
        return
    for row in rows:
        if row.trajectory.problem.answer is None:
            raise ValueError(
                f"{file}, row {row.number}: no answer to grade against: add one, or set "
                "reward.rule_weight = 0 and reward.reflection_bonus = 0"
            )


def _step_rows(rows: Sequence[RolloutRow], *, file: Path) -> list[RolloutRow]:
    """Rows that answer step problems; a run's samples of its evaluation are left out."""
    asked = [row for row in rows if target_of(row.trajectory)]
    for row in rows:
        if not target_of(row.trajectory) and not (asked and row.step[0]):
            raise ValueError(
                f"{file}, row {row.number}: no target to compare with: add the expert's next step, "
                'as "target"'
            )
    if len(asked) < len(rows):
        left_out = len(rows) - len(asked)
        logger.info("%s: %d samples of whole problems are left out", file, left_out)
    return asked


def _explain_rows(
    rows: Sequence[RolloutRow],
    recipe: Recipe,
    rewards: Sequence[Reward],
    *,
    fixed_length: int,
    cut: Cut = "learn",
) -> list[ExplainedRow]:
    """All rows in file order. Stages are taken as they come, their steps in ascending order."""
    stages = list(dict.fromkeys(row.step[0] for row in rows))
    ordered = sorted(rows, key=lambda row: (stages.index(row.step[0]), row.step[1]))
    explained: list[ExplainedRow] = []
    scorer = partial(score, rewards=rewards)
    for _, of_stage in groupby(ordered, key=lambda row: row.step[0]):
        judge = Judge(
            scorer, recipe.credit(), recipe.min_group_std, lambda _: nullcontext(), cut=cut
        )
        for _, of_step in groupby(of_stage, key=lambda row: row.step[1]):
            explained += _explain_step(list(of_step), judge, recipe, fixed_length=fixed_length)
    return sorted(explained, key=lambda own: own.row.number)


def _explain_step(
    rows: Sequence[RolloutRow], judge: Judge, recipe: Recipe, *, fixed_length: int
) -> list[ExplainedRow]:
    """Rows of one step. Those of dropped groups have the advantages that they would have if all
    groups were kept, and weight 0; the credit rule remembers the kept ones alone, as in a run."""
    scored = judge.score([row.trajectory for row in rows])
    kept = judge.informative(scored)
    of_all: dict[int, SegmentSignal] = {}
    if len(kept) < len(scored):
        trial = replace(judge, credit=copy.deepcopy(judge.credit))
        everything = trial.experience(scored, scored, policy_version=-1, stats={})
        of_all = _signals(everything, recipe, fixed_length=fixed_length)
    experience = judge.experience(kept, scored, policy_version=-1, stats={})
    of_kept = _signals(experience, recipe, fixed_length=fixed_length)
    places = {id(trajectory): place for place, trajectory in enumerate(kept)}
    explained: list[ExplainedRow] = []
    for index, (row, trajectory) in enumerate(zip(rows, scored, strict=True)):
        if id(trajectory) in places:
            signal, dropped = of_kept[places[id(trajectory)]], ""
        else:
            signal = replace(of_all[index], weights=np.zeros(len(trajectory.segments)))
            group = [t for t in scored if t.group_id == trajectory.group_id]
            dropped = _why_dropped(group, recipe.min_group_std)
            if judge.cut == "drop" and trajectory.finish == "length":
                dropped = "cut at the length limit (reinforce.truncated)"
        explained.append(ExplainedRow(row, trajectory, signal, dropped))
    return explained


def _why_dropped(group: Sequence[Trajectory], min_group_std: float | None) -> str:
    if len(group) == 1:
        return "alone in its group"
    totals = [t.reward.total for t in group if t.reward is not None]
    if min(totals) == max(totals):
        return f"all {len(group)} rewards of its group are {totals[0]:g}"
    return (
        f"the rewards of its group have a standard deviation of {np.std(totals):g}, not above "
        f"min_group_std = {min_group_std:g}"
    )


def _signals(
    experience: Experience, recipe: Recipe, *, fixed_length: int
) -> dict[int, SegmentSignal]:
    """Signals of all trajectories as one minibatch on one rank; a critic's values are 0, and so is
    the KL to a reference."""
    trajectories, credits = experience.trajectories, experience.credits
    assert credits is not None
    packing = PackingSpec(max(1, experience.num_tokens), 1, fixed_length=fixed_length)
    batches = [
        batch.annotated(**dict.fromkeys(_ANNOTATIONS, torch.zeros_like(batch.credit)))
        for batch in pack(trajectories, credits, packing, recipe.weighting)
    ]
    advantages = estimate_advantages(batches, recipe.advantage, lambda sums: sums)
    return segment_signals(trajectories, credits, batches, advantages)


def _summary(
    rows: Sequence[ExplainedRow], recipe: Recipe, renderer: PromptRenderer
) -> dict[str, Any]:
    """Counts and means over all rows, flat; shares of the loss weight over the kept ones."""
    trajectories = [row.trajectory for row in rows]
    rewards = [t.reward for t in trajectories if t.reward is not None]
    graded = [reward.correct for reward in rewards if reward.correct is not None]
    kept = [row for row in rows if not row.dropped]
    judged = renderer.format.has_verifications
    return {
        "recipe": recipe.name,
        "weighting": recipe.weighting,
        "rows": len(rows),
        "rows_kept": len(kept),
        "groups": len({t.group_id for t in trajectories}),
        "groups_kept": len({row.trajectory.group_id for row in kept}),
        "steps": len({own.row.step for own in rows}),
        "accuracy": float(np.mean(graded)) if graded else None,
        **reward_metrics(rewards),
        **mean_metrics(trajectories, renderer.format_of),
        **step_counts(trajectories, [row.trajectory for row in kept], recipe.min_group_std),
        **(count_verifications(trajectories).figures() if judged else {}),
        "truncated": float(np.mean([t.finish == "length" for t in trajectories])),
        "tokens": sum(t.num_response_tokens for t in trajectories),
        "tokens_kept": sum(row.trajectory.num_response_tokens for row in kept),
        **{f"loss_share/{kind}": share for kind, share in loss_shares(kept).items()},
        **({"kl": None} if recipe.kl_coefficient else {}),
    }


def _notes(rows: Sequence[ExplainedRow], recipe: Recipe, absent: Sequence[str]) -> list[str]:
    """What the numbers mean where it is not plain, and what a model would have to give."""
    credit, rule = recipe.credit(), recipe.advantage
    notes = [
        f"baseline is that of the credit rule {type(credit).__name__}",
        "advantage and weight are of each token; a step is one minibatch",
    ]
    if credit.ignores_scale:
        notes.insert(1, "advantage is divided by the standard deviation of the group's rewards")
    if any(row.dropped for row in rows):
        notes.append("dropped groups have the advantages of a step that keeps them, and weight 0")
    if rule.kind == "gae":
        notes.append("the critic's values are 0; advantage (gae) is the mean over a segment")
    if rule.whiten:
        notes.append("advantages are whitened over the tokens of the step")
    notes += [f"the term {name} is null: it needs the reward model" for name in absent]
    terms = recipe.loss.terms
    if recipe.kl_coefficient:
        notes.append(
            f"kl (kl_coefficient {recipe.kl_coefficient:g}, in the {recipe.kl_place}) is null: it "
            "needs the policy and its reference"
        )
    if terms.importance != "none":
        notes.append("importance weights are 1: they need the policy and its engine")
    return notes
