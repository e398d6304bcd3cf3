# SPDX-License-Identifier: Apache-2.0
"""Settings that contradict each other across sections: one ValueError each, before anything loads.

What a single section can get wrong it refuses itself (`config_sections`, `config_stages`); what
needs a file, a model or the environment is `stages.checks`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from satori_fast.config_data import DataConfig
from satori_fast.config_sections import (
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    ParallelConfig,
    RewardConfig,
    RolloutConfig,
    TokenizerConfig,
)
from satori_fast.config_stages import (
    EXPERIENCE_SOURCES,
    DistillConfig,
    ImitationConfig,
    OfflineConfig,
    ReinforceConfig,
    RestartConfig,
    SolutionsConfig,
    SupervisedConfig,
)

if TYPE_CHECKING:
    from satori_fast.algorithms.recipe import Recipe
    from satori_fast.data.formats import ResponseFormat


def check_inputs(
    stages: Sequence[str],
    model: ModelConfig,
    tokenizer: TokenizerConfig,
    data: DataConfig,
    *,
    supervised: SupervisedConfig,
) -> None:
    """Model, tokenizer, problems and demonstrations: each has a source, and one only."""
    # Imported here: problems need torch, and the config must not.
    from satori_fast.data.domains import DOMAINS

    domain = DOMAINS.get(data.source)
    if model.path is None and tokenizer.kind == "model":
        raise ValueError(
            'tokenizer.kind = "model" needs model.path: set it, or choose "words" or "bpe"'
        )
    if domain is not None and tokenizer.kind == ("bpe" if domain.words else "words"):
        needed, fit = ("text", '"words"') if domain.words else ("a list", '"model" or "bpe"')
        raise ValueError(
            f'tokenizer.kind = "{tokenizer.kind}" needs {needed}, and data.source = '
            f'"{data.source}" has none: choose {fit}'
        )
    if domain is not None and data.fields.question is not None:
        raise ValueError(
            f'data.fields name those of a data set, and data.source = "{data.source}" is built in: '
            "take them out, or name a file"
        )
    if domain is not None and data.num_train is None:
        raise ValueError("data.num_train is missing: the built-in domain has no end")
    if supervised.source is not None and {"synthesize", "supervised"} <= set(stages):
        raise ValueError(
            f"supervised.source = {supervised.source!r} leaves the demonstrations of the stage "
            "synthesize unused: take one of the two out"
        )


def check_curation(stages: Sequence[str]) -> None:
    """Curation comes before whatever works on its problems."""
    if "curate" in stages[1:]:
        raise ValueError(
            f"stages = {list(stages)}: curate chooses the problems of the stages after it; put it "
            "first"
        )


def format_named(name: str) -> ResponseFormat:
    """The row of `FORMATS` that `data.format` names; ValueError with the nearest one."""
    # Imported here: formats need torch, and the config must not.
    from satori_fast.data.formats import FORMATS

    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f'data.format = "{name}" is no format of responses; the nearest is "{near}"'
        )
    return FORMATS[name]


def dialect_of(data: DataConfig, tokenizer: TokenizerConfig) -> str:
    """The dialect of a run's responses: as set, or else the one that fits its tokenizer."""
    return data.dialect or ("words" if tokenizer.kind == "words" else "paper")


def format_of(data: DataConfig, tokenizer: TokenizerConfig) -> ResponseFormat:
    """The format of a run's responses, in its dialect."""
    return format_named(data.format).in_dialect(dialect_of(data, tokenizer))


def check_format(
    stages: Sequence[str], tokenizer: TokenizerConfig, data: DataConfig, *, has_steps: bool
) -> None:
    """Template and format exist, and what the run makes itself can have them.

    has_steps: step problems are asked beside whole ones.
    """
    format = format_named(data.format)
    if data.dialect is not None and not format.has_dialects and not has_steps:
        raise ValueError(
            f'data.dialect = "{data.dialect}" is for data.format = "trials" and does nothing for '
            f'"{data.format}": take it out, or set data.format = "trials"'
        )
    if data.system is not None and data.template != "chat":
        raise ValueError(
            f'data.system is the system turn of data.template = "chat", and "{data.template}" has '
            'none: set template = "chat", or take system out'
        )
    if data.template == "chat" and tokenizer.kind != "model":
        raise ValueError(
            f'data.template = "chat" needs a chat template, and tokenizer.kind = "{tokenizer.kind}"'
            ' has none: set tokenizer.kind = "model", or data.template = "plain"'
        )
    if "synthesize" in stages and data.format != "coat":
        raise ValueError(
            f'data.format = "{data.format}" with the stage synthesize, whose demonstrations have '
            'the format "coat": take synthesize out of stages and set supervised.source, or set '
            'data.format = "coat"'
        )
    if "initialise" in stages and not format_named(data.format).has_verifications:
        raise ValueError(
            f'data.format = "{data.format}" has no verifications, which the stage initialise '
            'writes: set data.format = "trials"'
        )


def has_restarts(data: DataConfig, restarts: RestartConfig) -> bool:
    """Whether restarts are on: as set, or else where the format has them."""
    if restarts.enabled is not None:
        return restarts.enabled
    return format_named(data.format).has_restarts


def check_restarts(data: DataConfig, restarts: RestartConfig, *, where: str = "") -> None:
    """The format has restarts, and something is left to train on. where: ends the message."""
    if not has_restarts(data, restarts):
        return
    if not format_named(data.format).has_restarts:
        key = "reinforce.restarts.enabled" if not where else "restarts"
        raise ValueError(
            f'{key} = true, but data.format = "{data.format}" has no reflection to restart with: '
            f'take it out, or set data.format = "coat"{where}'
        )
    if not (restarts.original_weight or restarts.correct_weight or restarts.incorrect_weight):
        raise ValueError(
            "reinforce.restarts.original_weight, correct_weight and incorrect_weight are all 0: "
            f"nothing is left to train on; raise one of them, or set enabled = false{where}"
        )


def check_lengths(
    stages: Sequence[str],
    rollout: RolloutConfig,
    packing: PackingConfig,
    data: DataConfig,
) -> None:
    """Prompt and response fit into the context, sequences into a microbatch."""
    room, capacity = rollout.max_seqlen, packing.max_tokens_per_microbatch
    if room > capacity:
        raise ValueError(
            f"packing.max_tokens_per_microbatch = {capacity} is below rollout.max_seqlen = {room}: "
            "a full sequence must fit"
        )
    if "preference" in stages and 2 * room > capacity:
        raise ValueError(
            f"packing.max_tokens_per_microbatch = {capacity} is below {2 * room}: two sequences of "
            "rollout.max_seqlen must fit, a preference pair"
        )
    if data.max_prompt_tokens >= room:
        raise ValueError(
            f"data.max_prompt_tokens = {data.max_prompt_tokens} leaves no room for a response in "
            f"rollout.max_seqlen = {room}"
        )


def check_layout(rollout: RolloutConfig, parallel: ParallelConfig) -> None:
    """The rollout engine can sample from a model that is split this way."""
    sizes = f"parallel.tensor = {parallel.tensor}, pipeline = {parallel.pipeline}"
    if rollout.engine == "embedded" and parallel.tensor * parallel.pipeline > 1:
        raise ValueError(
            f'rollout.engine = "embedded" samples from whole models, not with {sizes}: set both '
            'to 1, or choose engine = "vllm" or "server"'
        )
    if rollout.engine == "vllm" and parallel.pipeline > 1:
        raise ValueError(
            f'rollout.engine = "vllm" serves each tensor-parallel group in place, not with {sizes}'
            ': set parallel.pipeline = 1, or choose engine = "server"'
        )


def check_samples(
    stages: Sequence[str],
    rollout: RolloutConfig,
    solutions: SolutionsConfig,
    reinforce: ReinforceConfig,
) -> None:
    """The preference stage can get pairs of a right and a wrong sample of one problem, and
    reinforcement mixed questions."""
    is_mixed = solutions.questions == "mixed" and bool({"reinforce", "iterate"} & set(stages))
    if is_mixed:
        _check_mixed(rollout, solutions, reinforce)
    if "preference" not in stages:
        return
    if solutions.num_samples < 2:
        raise ValueError(
            "solutions.num_samples = 1 leaves the preference stage no pair of a right and a wrong "
            "sample: take at least 2"
        )
    if solutions.num_problems < 2:
        raise ValueError(
            "solutions.num_problems = 1 leaves the preference stage nothing to train on beside the "
            "problem that is held out: take at least 2"
        )
    if not rollout.temperature and solutions.temperature is None:
        raise ValueError(
            "rollout.temperature = 0 gives the preference stage equal samples, and no pair: raise "
            "it, or set solutions.temperature"
        )


def _check_mixed(
    rollout: RolloutConfig, solutions: SolutionsConfig, reinforce: ReinforceConfig
) -> None:
    if reinforce.source == "stored":
        raise ValueError(
            'solutions.questions = "mixed" with reinforce.source = "stored", which asks the '
            "questions of its file: take one of the two out"
        )
    if solutions.num_samples < 2:
        raise ValueError(
            'solutions.num_samples = 1 with solutions.questions = "mixed": one sample of a question'
            " is right or wrong, never both; take at least 2"
        )
    if not rollout.temperature and solutions.temperature is None:
        raise ValueError(
            'rollout.temperature = 0 with solutions.questions = "mixed": the samples of a question '
            "are equal, and none is mixed; raise it, or set solutions.temperature"
        )


def check_reward_model(
    stages: Sequence[str], reward: RewardConfig, reinforce: ReinforceConfig
) -> None:
    """A reward model that reinforcement asks for comes from somewhere."""
    trained = [stages.index(stage) for stage in ("reinforce", "iterate") if stage in stages]
    if not trained or reward.model is not None or "preference" in stages[: min(trained)]:
        return
    if reward.preference_weight:
        key, value, way_out = "reward.preference_weight", f"{reward.preference_weight:g}", "0"
    elif reinforce.critic_init == "reward_model" and "critic" in recipe_of(reinforce).needs:
        key, value, way_out = "reinforce.critic_init", '"reward_model"', '"policy"'
    else:
        return
    raise ValueError(
        f"{key} = {value} needs a reward model: put preference before {stages[min(trained)]} in "
        f"stages, set reward.model, or take {way_out}"
    )


def check_answers(reward: RewardConfig, data: DataConfig) -> None:
    """The grader knows where answers stand, and the format finds them there."""
    if reward.answer == "boxed":
        return
    from satori_fast.grading import answer_finder  # it takes a while to load

    try:
        answer_finder(reward.answer)
    except ValueError as error:
        raise ValueError(f"reward.answer: {error}") from None
    if data.format != "plain":
        raise ValueError(
            f'reward.answer = {reward.answer!r} with data.format = "{data.format}", which reads '
            'answers in a \\boxed{}: set data.format = "plain", or reward.answer = "boxed"'
        )


def check_rewards(stages: Sequence[str], reward: RewardConfig) -> None:
    """Reinforcement has a reward to learn from."""
    weights = [reward.rule_weight, reward.reflection_bonus, reward.preference_weight]
    weights += [function.weight for function in reward.functions]
    if {"reinforce", "iterate"} & set(stages) and not any(weights):
        raise ValueError(
            "reward.rule_weight, reflection_bonus and preference_weight are 0, and no function of "
            "reward.functions has a weight: every reward is 0; raise one of them"
        )


def check_imitation(name: str, config: ImitationConfig, data: DataConfig) -> None:
    """Responses have the segments that a mask keeps. name: of the section."""
    if config.loss == "verify_and_last" and not format_named(data.format).has_verifications:
        raise ValueError(
            f'{name}.loss = "verify_and_last" trains verifications, and data.format = '
            f'"{data.format}" has none: set data.format = "trials", or {name}.loss = "all"'
        )


def check_distillation(config: DistillConfig, rollout: RolloutConfig, *, where: str = "") -> None:
    """Samples of a problem differ. where: ends the message, for rounds."""
    if not rollout.temperature and config.temperature is None and config.num_samples > 1:
        raise ValueError(
            f"rollout.temperature = 0 gives distill.num_samples = {config.num_samples} equal "
            f"solutions of each problem: set distill.temperature, or num_samples = 1{where}"
        )


def check_reinforcement(
    config: ReinforceConfig, rollout: RolloutConfig, *, where: str = ""
) -> None:
    """A step has something to learn from, and the schedules fit. where: ends the message."""
    recipe = recipe_of(config)
    if not rollout.temperature:
        raise ValueError(
            "rollout.temperature = 0 gives reinforcement equal samples of a problem, and nothing "
            f"to learn from: take 1, or lower than that, above 0{where}"
        )
    section = config.SECTION
    if recipe.credit().compares_siblings and config.samples_per_problem < 2:
        raise ValueError(
            f"{section}.samples_per_problem = 1 leaves recipe {config.recipe!r} nothing to "
            f"compare: take at least 2{where}"
        )
    num_samples = config.problems_per_step * config.samples_per_problem
    if num_samples < config.num_minibatches:
        raise ValueError(
            f"{section}.num_minibatches = {config.num_minibatches} exceeds the {num_samples} "
            f"samples of a step (problems_per_step * samples_per_problem): lower it{where}"
        )
    _check_schedule(f"{section}.optimizer", config.optimizer, config, where=where)
    if "critic" in recipe.needs:
        key = f"{section}.critic_optimizer"
        _check_schedule(key, config.critic_optimizer, config, where=where)


def check_actions(data: DataConfig, config: ReinforceConfig, *, where: str = "") -> None:
    """The format has the actions that the recipe gives credit to. where: ends the message."""
    if recipe_of(config).credit().reads_actions and not format_named(data.format).has_verifications:
        raise ValueError(
            f'reinforce.recipe = "{config.recipe}" gives credit to solutions and verifications, '
            f'and data.format = "{data.format}" has none: set data.format = "trials"{where}'
        )


def check_experience(config: ReinforceConfig, rollout: RolloutConfig) -> None:
    """The source of experience exists, and has what it needs and no more."""
    if config.source not in EXPERIENCE_SOURCES:
        near = difflib.get_close_matches(config.source, EXPERIENCE_SOURCES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"reinforce.source = {config.source!r} does not exist; the nearest is {near!r}, there "
            f"are {', '.join(EXPERIENCE_SOURCES)}"
        )
    section, is_stored = config.SECTION, config.source == "stored"
    if is_stored and config.rollouts is None:
        raise ValueError(
            'reinforce.source = "stored" needs reinforce.rollouts: name a file of solutions/ that '
            "was sampled with solutions.keep_logprobs = true"
        )
    if not is_stored and config.rollouts is not None:
        raise ValueError(
            f'reinforce.rollouts = {config.rollouts!r} is for source = "stored" and does nothing '
            f'for source = "{config.source}": take it out, or set reinforce.source = "stored"'
        )
    if is_stored and config.restarts.enabled:
        raise ValueError(
            'reinforce.restarts.enabled = true with source = "stored", which samples nothing: take '
            "it out; stored rollouts keep the prefixes that they were sampled from"
        )
    refills = config.max_sampling_rounds > 1
    if refills and (is_stored or rollout.max_step_tokens is not None):
        other = 'reinforce.source = "stored"' if is_stored else "rollout.max_step_tokens"
        raise ValueError(
            f"{section}.max_sampling_rounds = {config.max_sampling_rounds} does not go with "
            f"{other}: there are no further rounds; set it to 1"
        )


def check_offline(config: OfflineConfig, rollout: RolloutConfig, data: DataConfig) -> None:
    """The stage offline has actions to give credit to, and samples that differ."""
    if not format_named(data.format).has_verifications:
        raise ValueError(
            "the stage offline gives credit to solutions and verifications, and data.format = "
            f'"{data.format}" has none: set data.format = "trials"'
        )
    if not rollout.temperature and config.temperature is None:
        raise ValueError(
            f"rollout.temperature = 0 gives the stage offline {config.num_samples} equal samples "
            "of each problem: raise it, or set offline.temperature"
        )


def recipe_of(config: ReinforceConfig) -> Recipe:
    """Row of the recipe table as this section sets it; ValueError, with the nearest, for none."""
    # Here, so that importing a config's classes needs no torch.
    from satori_fast.algorithms.recipe import effective_recipe

    try:
        return effective_recipe(config.recipe, temperature=1.0, **config.recipe_overrides())
    except ValueError as error:  # the table of recipes knows one section
        raise ValueError(str(error).replace("reinforce.", f"{config.SECTION}.")) from None


def _check_schedule(
    key: str, optimizer: OptimizerConfig, config: ReinforceConfig, *, where: str
) -> None:
    """A schedule that decays has a step for it after the warm-up."""
    num_updates = config.num_steps * config.num_minibatches
    if optimizer.schedule != "constant" and optimizer.warmup_steps(num_updates) >= num_updates:
        raise ValueError(
            f'{key}: schedule = "{optimizer.schedule}" has no step left to decay: warmup_fraction '
            f"= {optimizer.warmup_fraction:g} of {num_updates} updates (num_steps * "
            "num_minibatches) is all of them; lower it, take more steps, or schedule = "
            f'"constant"{where}'
        )
