# SPDX-License-Identifier: Apache-2.0
"""The agents of synthesis from the config: who they are, where their models run, what they cost.

What agents do is `synthesis`; which problems they get is `synthesize`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from satori_fast.backbone.architecture import load_hf_config
from satori_fast.backbone.step import build_learner
from satori_fast.config import AgentConfig, ConfigError
from satori_fast.data.coat import TEMPLATES, PromptRenderer
from satori_fast.data.packing import PackingSpec
from satori_fast.data.tokenizer import load_tokenizer
from satori_fast.redaction import keep_secret
from satori_fast.rollout.embedded_engine import EmbeddedEngine
from satori_fast.rollout.engine import Engine
from satori_fast.rollout.server_process import is_loopback
from satori_fast.rollout.weight_sync import push_weights
from satori_fast.stages.engines import has_port, write_engine_folder
from satori_fast.stages.run import Run
from satori_fast.stages.scoring import score_trajectories
from satori_fast.stages.setup import ARITHMETIC
from satori_fast.storage import read_json
from satori_fast.synthesis.agents import (
    CheckingCritic,
    RepetitionRewardModel,
    RewardModel,
    SlippingGenerator,
    Unusable,
)
from satori_fast.synthesis.chat import ChatModel, ChatSampling
from satori_fast.synthesis.endpoint_chat import EndpointChat, EndpointSettings
from satori_fast.synthesis.engine_chat import EngineChat
from satori_fast.synthesis.journal import Journal, RecordedChat
from satori_fast.synthesis.language_agents import (
    LanguageCritic,
    LanguageGenerator,
    LanguageRewardModel,
    without_tokens,
)
from satori_fast.synthesis.pipeline import SynthesisAgents
from satori_fast.types import Problem, Segment, SegmentKind, Trajectory

OPENAI_HOST = "api.openai.com"


def agent_configs(run: Run) -> dict[str, AgentConfig]:
    """The config of each role, in the order of their work."""
    config = run.config.synthesize
    return {
        "generator": config.generator,
        "critic": config.critic,
        "reward_model": config.reward_model,
    }


class AgentRoom:
    """The agents of a run and their models. Close it when they are done.

    Roles with the same model at the same place share it, and its limits.
    """

    def __init__(self, run: Run, journal: Journal | None) -> None:
        check_agents(run)
        self._run, self._journal = run, journal
        self._models: dict[object, ChatModel] = {}
        self._configs = agent_configs(run)
        generator, critic = self._chat("generator"), self._chat("critic")
        skill = run.config.synthesize.generator_skill
        self.agents = SynthesisAgents(
            LanguageGenerator(generator) if generator else SlippingGenerator(skill),
            LanguageCritic(critic) if critic else CheckingCritic(),
            self._reward_model(),
            run.grader.pool if generator else None,
        )

    async def close(self) -> None:
        for model in self._models.values():
            await model.close()

    def _reward_model(self) -> RewardModel:
        if self._configs["reward_model"].kind == "scalar":
            return ScalarRewardModel(self._run, self._configs["reward_model"])
        chat = self._chat("reward_model")
        return LanguageRewardModel(chat) if chat else RepetitionRewardModel()

    def _chat(self, role: str) -> RecordedChat | None:
        agent = self._configs[role]
        if agent.kind == "scripted":
            return None
        assert self._journal is not None
        sampling = ChatSampling(
            temperature=agent.temperature,
            max_new_tokens=agent.max_new_tokens,
            top_p=agent.top_p,
            seed=self._run.seed(self._run.stage, role),
        )
        return RecordedChat(
            self._model(agent, role), role, sampling=sampling, journal=self._journal
        )

    def _model(self, agent: AgentConfig, role: str) -> ChatModel:
        if agent.kind == "endpoint":
            settings = endpoint_settings(agent, f"synthesize.{role}", os.environ)
            if settings not in self._models:
                self._models[settings] = EndpointChat(settings, setting=f"synthesize.{role}")
            return self._models[settings]
        place = (agent.kind, agent.model, agent.max_seqlen, agent.dtype)
        if place not in self._models:
            self._models[place] = load_engine_chat(self._run, agent, role)
        return self._models[place]


class ScalarRewardModel:
    """Implements `synthesis.agents.RewardModel` with a scalar model: its score of the last token of
    a chat, the question and the response without meta-action tokens."""

    def __init__(self, run: Run, agent: AgentConfig) -> None:
        folder, hf_config = _model_of(agent, "reward_model")
        self._tokenizer: Any = load_tokenizer(folder)
        self._learner = build_learner(
            hf_config, kind="scalar", weights=folder, dtype=getattr(torch, agent.dtype)
        )
        self._parallel, self._max_seqlen = run.parallel, agent.max_seqlen

    async def score(self, problem: Problem, response: str) -> float:
        asked = [{"role": "user", "content": problem.question}]
        answered = {"role": "assistant", "content": without_tokens(response)}
        prompt = self._ids(asked, add_generation_prompt=True)
        whole = self._ids([*asked, answered], add_generation_prompt=False)
        if len(whole) > self._max_seqlen:
            raise Unusable("reward_model_refused", f"{len(whole)} tokens")
        num_response = len(whole) - len(prompt)
        trajectory = Trajectory(
            problem=problem,
            group_id=0,
            tokens=np.asarray(whole, dtype=np.int32),
            prompt_len=len(prompt),
            logprobs=np.zeros(num_response, dtype=np.float32),
            policy_version=-1,
            finish="stop",
            segments=(Segment(SegmentKind.WHOLE, 0, num_response, response),),
        )
        packing = PackingSpec(max_tokens_per_microbatch=self._max_seqlen, num_minibatches=1)
        scores = score_trajectories(
            self._learner, [trajectory], packing=packing, parallel=self._parallel
        )
        return float(scores[0])

    def _ids(self, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return self._tokenizer.encode(text, add_special_tokens=False)


def check_agents(run: Run) -> None:
    """ConfigError for agents that cannot work on this data, or in this many processes."""
    source = run.config.data.source
    for role, agent in agent_configs(run).items():
        if agent.kind == "scripted":
            if source != ARITHMETIC:
                raise ConfigError(
                    f'synthesize.{role}.kind = "scripted" knows the built-in domain only, not '
                    f"{source!r}: name a language model, or take synthesize out of stages and set "
                    "supervised.source"
                )
        elif agent.model is None:
            raise ConfigError(f'synthesize.{role}.model is missing: kind = "{agent.kind}" needs it')
        elif agent.kind == "scalar" and role != "reward_model":
            raise ConfigError(f'synthesize.{role}.kind = "scalar" only rates: it cannot write')
        elif agent.kind != "endpoint" and run.parallel.world_size > 1:
            raise ConfigError(
                f'synthesize.{role}.kind = "{agent.kind}" works in one process only: start without '
                'torchrun, or serve the model with vLLM and set kind = "endpoint"'
            )


def endpoint_settings(
    agent: AgentConfig, section: str, environment: Mapping[str, str]
) -> EndpointSettings:
    """ConfigError where a key is needed and `environment` does not have it."""
    parts = urlsplit(agent.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not has_port(agent.url):
        raise ConfigError(f"{section}.url: {agent.url!r} is not of the form http://HOST:PORT/v1")
    is_elsewhere = not is_loopback(parts.hostname)
    if agent.api_key_variable is None and is_elsewhere and parts.hostname != OPENAI_HOST:
        raise ConfigError(
            f"{section}.api_key_variable is missing: name the environment variable whose key "
            f"{parts.hostname} may have; OPENAI_API_KEY goes to {OPENAI_HOST} by itself"
        )
    variable = agent.api_key_variable or "OPENAI_API_KEY"
    key = environment.get(variable)
    keep_secret(key)
    if not key and is_elsewhere:
        raise ConfigError(
            f"{section}.api_key_variable: the environment has no {variable}, and "
            f"{parts.hostname} is not this machine"
        )
    assert agent.model is not None
    return EndpointSettings(
        url=agent.url,
        model=agent.model,
        api_key=key or "none",
        max_concurrency=agent.max_concurrency,
        requests_per_minute=agent.requests_per_minute,
        tokens_per_minute=agent.tokens_per_minute,
        timeout_s=agent.timeout_s,
        max_retries=agent.max_retries,
    )


def load_engine_chat(run: Run, agent: AgentConfig, role: str) -> EngineChat:
    """A model folder in an engine of this process."""
    folder, hf_config = _model_of(agent, role)
    policy = build_learner(hf_config, weights=folder, dtype=getattr(torch, agent.dtype))
    renderer = PromptRenderer(load_tokenizer(folder), TEMPLATES["plain"], agent.max_seqlen - 1)
    engine: Engine
    if agent.kind == "embedded":
        engine = EmbeddedEngine.of_policy(
            policy,
            renderer=renderer,
            max_seqlen=agent.max_seqlen,
            max_slots=agent.max_concurrency,
        )
    else:
        # Imported here: other agents must not need vLLM.
        from satori_fast.rollout.vllm_engine import VllmEngine, VllmSettings

        empty = run.folder / f"engine_{role}"
        write_engine_folder(empty, hf_config, renderer, dtype=agent.dtype)
        settings = VllmSettings(
            dtype=agent.dtype,
            max_seqlen=agent.max_seqlen,
            max_slots=agent.max_concurrency,
            gpu_memory_share=agent.gpu_memory_share,
        )
        engine = VllmEngine(empty, settings, renderer=renderer)
        push_weights(policy.hf_weights(), engine, version=0)
    return EngineChat(engine, name=str(folder), stop_ids=_stop_ids(folder))


def _model_of(agent: AgentConfig, role: str) -> tuple[Path, Any]:
    """Folder and Hugging Face config of an agent's own model."""
    assert agent.model is not None
    folder = Path(agent.model)
    hf_config = load_hf_config(folder)
    if agent.max_seqlen > hf_config.max_position_embeddings:
        raise ConfigError(
            f"synthesize.{role}.max_seqlen = {agent.max_seqlen} exceeds the "
            f"{hf_config.max_position_embeddings} positions of {folder}"
        )
    return folder, hf_config


def _stop_ids(folder: Path) -> list[int]:
    """What ends a turn: generation_config.json names it where it is not the tokenizer's end."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    ids = read_json(path).get("eos_token_id")
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
