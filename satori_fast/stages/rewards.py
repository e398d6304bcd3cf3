# SPDX-License-Identifier: Apache-2.0
"""The sources of reward that a config asks for, in the order in which their terms are added.

What each gives is `satori_fast.rewards`; a reward model is found and loaded by `scoring`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from satori_fast.algorithms.recipe import Recipe
from satori_fast.config import ConfigError, ReinforceConfig, RewardConfig, SrlConfig
from satori_fast.data.formats import ResponseFormat
from satori_fast.data.prompts import PromptRenderer
from satori_fast.experience.source import Cut
from satori_fast.grading import Grader
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rewards.ahead import ScoredAhead
from satori_fast.rewards.length import LengthPenalty
from satori_fast.rewards.outcome import OutcomeReward
from satori_fast.rewards.preference import PreferenceReward, Scorer
from satori_fast.rewards.process import ProcessReward
from satori_fast.rewards.similarity import SimilarityReward
from satori_fast.rewards.terms import Reward
from satori_fast.rewards.user import Share, UserReward, check_function
from satori_fast.rewards.worker import CallLimits, FunctionWorker, RewardFunctionError
from satori_fast.types import RewardBreakdown, ScoreStatistics, Trajectory


def build_rewards(
    config: RewardConfig,
    *,
    grader: Grader,
    worker: FunctionWorker,
    format: ResponseFormat,
    reward_model: tuple[Scorer, ScoreStatistics] | None = None,
    share: Share | None = None,
    spans: SpanRecorder | None = None,
) -> list[Reward]:
    """Sources of reward of a config: grading, the reward model, the user's functions as listed.

    format: of the responses; where it has verifications, every action is judged too.
    reward_model: how to score with it, and the statistics of its scores; needed where
    reward.preference_weight is above 0, unused elsewhere. share: runs an action in the main process
    and gives its result to all ranks; None: there is one process. spans: times them, as "reward"
    and "reward_model". Raises ConfigError where the reward model is missing.
    """
    outcome = OutcomeReward(
        grader, config.rule_weight, config.reflection_bonus, right=config.right, wrong=config.wrong
    )
    sources: list[tuple[str, Reward]] = [("reward", outcome)]
    if format.has_verifications:
        sources.append(("reward", ProcessReward(grader)))
    if config.preference_weight:
        if reward_model is None:
            raise ConfigError(
                f"reward.preference_weight = {config.preference_weight:g} needs a reward model: "
                "set it to 0 where there is none"
            )
        preference = PreferenceReward(*reward_model, weight=config.preference_weight)
        sources.append(("reward_model", preference))
    for function in config.functions:
        if function.weight:
            own = UserReward(function.term, function.path, worker, function.weight)
            sources.append(("reward", own if share is None else replace(own, share=share)))
    if spans is None:
        return [reward for _, reward in sources]
    return [_timed(reward, spans, name) for name, reward in sources]


def build_step_rewards(
    config: SrlConfig, renderer: PromptRenderer, *, spans: SpanRecorder | None = None
) -> list[Reward]:
    """The reward of step problems, as the section `srl` sets it. spans: times what is waited for of
    it, as "reward"; it is then computed while others are sampled."""
    reward = SimilarityReward(
        config.granularity, config.autojunk, config.solution_tags, renderer.encode
    )
    return [reward if spans is None else ScoredAhead(reward, partial(spans.span, "reward"))]


def length_penalty(config: ReinforceConfig, limit: int) -> list[Reward]:
    """The penalty for long responses, where the section asks for one. limit: of a response."""
    return [LengthPenalty(limit)] if config.truncated == "penalty" else []


def cut_policy(config: ReinforceConfig, recipe: Recipe) -> Cut:
    """The fate of responses that the length limit cut, under a recipe."""
    if config.truncated != "mask":
        return "learn"
    return "bootstrap" if recipe.advantage.kind == "gae" else "drop"


def build_worker(config: RewardConfig) -> FunctionWorker:
    """The process for the user's functions, with its limits; it starts when it is first needed."""
    return FunctionWorker(CallLimits.of_cpu(config.function_timeout_s or config.timeout_s))


def check_functions(config: RewardConfig, worker: FunctionWorker | None = None) -> None:
    """Refuse, by ConfigError, a function that does not exist, without running anything; with a
    `worker`, also one whose file cannot be imported there."""
    for function in config.functions:
        try:
            check_function(function.term, function.path)
            if worker is not None:
                worker.load(function.term, function.path)
        except RewardFunctionError as error:
            raise ConfigError(str(error)) from error


def _timed(reward: Reward, spans: SpanRecorder, name: str) -> Reward:
    def timed(trajectories: Sequence[Trajectory]) -> Sequence[RewardBreakdown]:
        with spans.span(name):
            return reward(trajectories)

    return timed
