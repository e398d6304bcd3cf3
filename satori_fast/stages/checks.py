# SPDX-License-Identifier: Apache-2.0
"""Checks of what a stage needs, before the first stage trains: files, models, agents, keys.

A stage that could not start stops the run here, not after the stages before it. Settings that
contradict each other without a look at the disk are `config_checks`; the weights of a model are
looked at when they are loaded (`backbone.weights`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from satori_fast.algorithms.recipe import RECIPES
from satori_fast.backbone.architecture import load_hf_config, transformer_config
from satori_fast.config import Config, ConfigError
from satori_fast.data.domains import DOMAINS
from satori_fast.data.formats.steps import Steps
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.sources import check_source, load_demonstrations
from satori_fast.data.tokenizer import add_special_tokens, load_tokenizer
from satori_fast.experience.stored import check_rollouts
from satori_fast.rewards.worker import FunctionWorker
from satori_fast.stages.agents import (
    check_agents,
    check_labeller,
    check_rewriter,
    check_trial_agents,
)
from satori_fast.stages.context import Context
from satori_fast.stages.iterate import StagePlan
from satori_fast.stages.models import ModelFolders, model_folder
from satori_fast.stages.offline import sampling_temperature
from satori_fast.stages.rewards import check_functions
from satori_fast.stages.run_folder import RunFolder
from satori_fast.stages.scoring import check_same_tokens, statistics_of
from satori_fast.stages.setup import renderer_of
from satori_fast.stages.step_data import (
    agent_steps,
    expert_solutions,
    solution_steps,
    step_reader,
)
from satori_fast.stages.supervised import demonstration_sources
from satori_fast.stages.synthesize import demonstrations_path

logger = logging.getLogger(__name__)

_NUM_TRIED = 100  # expert solutions, before all of them are read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_stages(context: Context, folder: RunFolder, plans: Sequence[StagePlan]) -> None:
    """ConfigError, on every rank, for one of `plans`, the stages still to come, that could not
    start."""
    written = demonstrations_path(folder.path)
    start = _Start(
        context.model_folders,
        context.policy_folder,
        has_reward_model="reward" in context.models,
        functions=context.functions,
        world_size=context.parallel.world_size,
    )
    folder.on_main(lambda: _check(plans, start, written if written.exists() else None))


@dataclass(frozen=True)
class _Start:
    """The models and processes that the first of the stages to come starts with."""

    models: ModelFolders
    policy_folder: Path
    _: KW_ONLY
    has_reward_model: bool
    functions: FunctionWorker
    world_size: int


def _check(plans: Sequence[StagePlan], start: _Start, written: Path | None) -> None:
    """written: demonstrations that the run has made already."""
    kinds, models = [plan.kind for plan in plans], start.models
    if set(kinds) - {"curate", "synthesize"}:
        with _naming(f"model {start.policy_folder}"):
            _check_model(models, start.policy_folder)
        _warn_of_short_room(plans[0].config)
    # Of the policy, and of the reward model that a stage before leaves, if one does.
    tokenizer = models.renderer.tokenizer
    scored_tokenizer = tokenizer if start.has_reward_model else None
    for number, plan in enumerate(plans):
        if plan.kind == "curate":
            check_labeller(plan.config, world_size=start.world_size, environment=os.environ)
        elif plan.kind == "synthesize":
            check_agents(plan.config, world_size=start.world_size, environment=os.environ)
        elif plan.kind == "supervised" and "synthesize" not in kinds[:number]:
            _check_demonstrations(plan.config, written)
        elif plan.kind == "initialise":
            check_trial_agents(plan.config, world_size=start.world_size, environment=os.environ)
        elif plan.kind == "preference":
            scored_tokenizer = tokenizer
        elif plan.kind == "distill" and plan.config.distill.student is not None:
            tokenizer = _check_student(plan.config, models, plan.config.distill.student)
        elif plan.kind == "offline":
            temperature = sampling_temperature(plan.config)
            _check_rollouts("offline", plan.config.offline.rollouts, models.renderer, temperature)
        elif plan.kind == "srl":
            if plan.config.srl.parser == "rewrite":
                check_rewriter(plan.config, world_size=start.world_size, environment=os.environ)
            _check_experts(plan.config)
        elif plan.kind == "reinforce":
            check_functions(plan.config.reward, start.functions)
            if _uses_reward_model(plan.config):
                if plan.config.reward.model is not None:
                    _check_reward_model(plan.config, models, tokenizer)
                elif scored_tokenizer is not None:
                    with _naming("distill.student"):
                        known = scored_tokenizer.get_vocab()
                        check_same_tokens("models/preference", known, tokenizer)


def _warn_of_short_room(config: Config) -> None:
    """Say where the longest prompts leave responses less room than their limit."""
    prompt, room = config.data.max_prompt_tokens, config.rollout.max_seqlen
    limits = {"rollout": config.rollout.max_new_tokens}
    limits |= {"solutions": config.solutions.max_new_tokens or 0}
    limits |= {"evaluation": config.evaluation.max_new_tokens or 0}
    for section, limit in limits.items():
        if prompt + limit > room:
            logger.warning(
                "data.max_prompt_tokens = %d and %s.max_new_tokens = %d exceed "
                "rollout.max_seqlen = %d together: responses to the longest prompts are cut short",
                prompt,
                section,
                limit,
                room,
            )


def _check_demonstrations(config: Config, written: Path | None) -> None:
    """One demonstration can be read."""
    for each in demonstration_sources(config, written):
        if each.source in DOMAINS:
            continue
        with _naming("supervised.source"):
            if config.supervised.source is not None:
                check_source(each.source)
            if not load_demonstrations(each.source, each.read_as, limit=1)[0]:
                raise ConfigError(f"{each.source} has no demonstration")


def _check_experts(config: Config) -> None:
    """One trajectory, or one solution, of the expert gives a step; of solutions that an agent is to
    write as steps there is one."""
    srl, format = config.srl, config.step_format
    if srl.expert is None:
        return
    assert isinstance(format, Steps)
    with _naming("srl.expert"):
        check_source(srl.expert)
        if srl.parser == "agent":
            agent_steps(srl, srl.expert, limit=1)
            return
        if srl.parser == "rewrite":
            expert_solutions(srl, srl.expert, limit=1)
            return
        read, dialect = step_reader(srl), format.dialect
        found, _ = expert_solutions(srl, srl.expert, limit=_NUM_TRIED)
        try:
            solution_steps(srl, found, dialect, read=read)
        except ValueError:
            if len(found) < _NUM_TRIED:
                raise
            # None of the first ones tells of the others.
            solution_steps(srl, expert_solutions(srl, srl.expert)[0], dialect, read=read)


def _check_student(config: Config, models: ModelFolders, student: str) -> PreTrainedTokenizerBase:
    """The tokenizer that a run goes on with after this distillation."""
    with _naming(f"distill.student = {student!r}"):
        folder = model_folder(student, weights=False)
        _check_model(models, folder)
        tokenizer = load_tokenizer(folder)
        add_special_tokens(tokenizer, models.renderer.format.special_tokens)
        renderer_of(config, tokenizer, folder)
        return tokenizer


def _check_rollouts(
    section: str, rollouts: str | None, renderer: PromptRenderer, temperature: float
) -> None:
    """A file of stored rollouts is there, and of this run's temperature, format and tokenizer."""
    if rollouts is not None:
        with _naming(f"{section}.rollouts"):
            check_rollouts(Path(rollouts).expanduser(), renderer, temperature=temperature)


def _uses_reward_model(config: Config) -> bool:
    return bool(config.reward.preference_weight) or _starts_critic(config)


def _starts_critic(config: Config) -> bool:
    has_critic = "critic" in RECIPES[config.reinforce.recipe].needs
    return has_critic and config.reinforce.critic_init != "policy"


def _check_reward_model(
    config: Config, models: ModelFolders, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Check its head, its token ids and, where scores are normalised, their statistics."""
    model = config.reward.model
    assert model is not None
    with _naming(f"reward.model = {model!r}"):
        folder = model_folder(model, weights=False)
        _check_model(models, folder)
        for name in load_hf_config(folder).architectures or ():
            if name.endswith("ForCausalLM"):
                raise ConfigError(f"{name} is a language model: a reward model has a score head")
        check_same_tokens(str(folder), load_tokenizer(folder).get_vocab(), tokenizer)
        if config.reward.preference_weight and config.reward.normalize_preference:
            statistics_of(folder, "reward.normalize_preference")
        if _starts_critic(config) and config.reinforce.normalize_critic:
            statistics_of(folder, "reinforce.normalize_critic")


def _check_model(models: ModelFolders, folder: Path) -> None:
    transformer_config(
        models.hf_config(folder),
        dtype=getattr(torch, models.dtype),
        recompute=models.recompute,
    )


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Raise errors inside as mistakes of the config; their messages begin with `what`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ConfigError(f"{what}: {error}") from None
