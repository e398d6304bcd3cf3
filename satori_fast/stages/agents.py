# SPDX-License-Identifier: Apache-2.0
"""The agents of synthesis from the config: who they are, where their models run, what they cost.

What agents do is `synthesis`; which problems they get is `synthesize`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from satori_fast.backbone.architecture import load_hf_config
from satori_fast.backbone.parallel import ParallelState
from satori_fast.backbone.step import build_learner
from satori_fast.config import AgentConfig, Config, ConfigError, SynthesizeConfig
from satori_fast.data.control_tokens import ControlTokens
from satori_fast.data.domains import ARITHMETIC
from satori_fast.data.formats.plain import PLAIN
from satori_fast.data.packing import PackingSpec
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer
from satori_fast.data.stop_tokens import stop_ids_of
from satori_fast.data.tokenizer import load_tokenizer
from satori_fast.grading import GradingPool
from satori_fast.redaction import keep_secret
from satori_fast.rollout.embedded_engine import EmbeddedEngine
from satori_fast.rollout.engine import Engine
from satori_fast.rollout.server_process import is_loopback
from satori_fast.rollout.vllm_engine import INSTALL_HINT
from satori_fast.rollout.weight_sync import push_weights
from satori_fast.stages.engines import has_port, write_engine_folder
from satori_fast.stages.models import limit_vocabulary
from satori_fast.stages.scoring import score_trajectories
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


def agent_configs(config: SynthesizeConfig) -> dict[str, AgentConfig]:
    """The config of each role, in the order of their work."""
    return {
        "generator": config.generator,
        "critic": config.critic,
        "reward_model": config.reward_model,
    }


class Agents:
    """The agents of a synthesis and their models. Close it when they are done.

    Roles with the same model at the same place share it, and its limits.

    journal: records what language models reply; None where all agents are scripted.
    pool:    grades what they write. folder: of the run. seed: of a role.
    """

    def __init__(
        self,
        config: SynthesizeConfig,
        journal: Journal | None,
        *,
        pool: GradingPool,
        folder: Path,
        parallel: ParallelState,
        seed: Callable[[str], int],
    ) -> None:
        self._journal, self._folder, self._parallel, self._seed = journal, folder, parallel, seed
        self._models: dict[object, ChatModel] = {}
        self._configs = agent_configs(config)
        generator, critic = self._chat("generator"), self._chat("critic")
        self.agents = SynthesisAgents(
            LanguageGenerator(generator)
            if generator
            else SlippingGenerator(config.generator_skill),
            LanguageCritic(critic) if critic else CheckingCritic(),
            self._reward_model(),
            pool if generator else None,
        )

    async def close(self) -> None:
        """Close the models."""
        for model in self._models.values():
            await model.close()

    def _reward_model(self) -> RewardModel:
        if self._configs["reward_model"].kind == "scalar":
            return ScalarRewardModel(self._configs["reward_model"], self._parallel)
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
            seed=self._seed(role),
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
            self._models[place] = load_engine_chat(agent, role, folder=self._folder)
        return self._models[place]


class ScalarRewardModel:
    """Implements `synthesis.agents.RewardModel` with a scalar model: its score of the last token of
    a chat, the question and the response without meta-action tokens."""

    def __init__(self, agent: AgentConfig, parallel: ParallelState) -> None:
        folder, hf_config = _model_of(agent, "reward_model")
        self._tokenizer: Any = load_tokenizer(folder)
        self._control_tokens = ControlTokens(self._tokenizer)
        self._learner = build_learner(
            hf_config, kind="scalar", weights=folder, dtype=getattr(torch, agent.dtype)
        )
        self._parallel, self._max_seqlen = parallel, agent.max_seqlen

    async def score(self, problem: Problem, response: str) -> float:
        prompt = self._ids([("user", problem.question)], add_generation_prompt=True)
        whole = self._ids(
            [("user", problem.question), ("assistant", without_tokens(response))],
            add_generation_prompt=False,
        )
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
            self._learner,
            [trajectory],
            packing=packing,
            parallel=self._parallel,
            name="synthesize.reward_model.model",
        )
        return float(scores[0])

    def _ids(self, turns: list[tuple[str, str]], *, add_generation_prompt: bool) -> list[int]:
        roles, contents = zip(*turns, strict=True)

        def chat(*texts: str) -> str:
            said = zip(roles, texts, strict=True)
            return self._tokenizer.apply_chat_template(
                [{"role": role, "content": text} for role, text in said],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )

        return self._control_tokens.encode_quoting(chat, *contents)


def check_agents(config: Config, *, world_size: int, environment: Mapping[str, str]) -> None:
    """ConfigError for agents that cannot work: on this data, in this many processes, without a key
    or a model."""
    source = config.data.source
    for role, agent in agent_configs(config.synthesize).items():
        key = f"synthesize.{role}"
        if agent.kind == "scripted":
            if source != ARITHMETIC:
                raise ConfigError(
                    f'{key}.kind = "scripted" knows data.source = "{ARITHMETIC}" only, not '
                    f'"{source}": name a language model, or take synthesize out of stages and set '
                    "supervised.source"
                )
        elif agent.model is None:
            raise ConfigError(f'{key}.model is missing: kind = "{agent.kind}" needs it')
        elif agent.kind == "endpoint":
            endpoint_settings(agent, key, environment)
        elif agent.kind == "scalar" and role != "reward_model":
            raise ConfigError(f'{key}.kind = "scalar" only rates: it cannot write')
        elif world_size > 1:
            raise ConfigError(
                f'{key}.kind = "{agent.kind}" works in one process only: start without torchrun, '
                'or serve the model with vLLM and set kind = "endpoint"'
            )
        elif agent.kind == "vllm" and importlib.util.find_spec("vllm") is None:
            raise ConfigError(f'{key}.kind = "vllm" needs vLLM: {INSTALL_HINT}')
        else:
            _model_of(agent, role)


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


def load_engine_chat(agent: AgentConfig, role: str, *, folder: Path) -> EngineChat:
    """A model folder in an engine of this process. folder: of the run."""
    model, hf_config = _model_of(agent, role)
    policy = build_learner(hf_config, weights=model, dtype=getattr(torch, agent.dtype))
    tokenizer = load_tokenizer(model)
    limit_vocabulary(policy, tokenizer)
    # Its replies are texts, of no format of ours.
    stop_ids = stop_ids_of(model, tokenizer, PLAIN.special_tokens)
    renderer = PromptRenderer(tokenizer, PLAIN_TEMPLATE, agent.max_seqlen - 1, stop_ids, PLAIN)
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

        empty = folder / f"engine_{role}"
        write_engine_folder(empty, policy.served_config(), renderer, dtype=agent.dtype)
        settings = VllmSettings(
            dtype=agent.dtype,
            max_seqlen=agent.max_seqlen,
            max_slots=agent.max_concurrency,
            gpu_memory_share=agent.gpu_memory_share,
        )
        engine = VllmEngine(empty, settings, renderer=renderer)
        push_weights(policy.served_weights(), engine, version=0)
    return EngineChat(engine, name=str(model))


def _model_of(agent: AgentConfig, role: str) -> tuple[Path, Any]:
    """Folder and Hugging Face config of an agent's own model."""
    assert agent.model is not None
    folder = Path(agent.model)
    try:
        hf_config = load_hf_config(folder)
    except (ValueError, OSError) as error:
        raise ConfigError(f"synthesize.{role}.model = {agent.model!r}: {error}") from None
    if agent.max_seqlen > hf_config.max_position_embeddings:
        raise ConfigError(
            f"synthesize.{role}.max_seqlen = {agent.max_seqlen} exceeds the "
            f"{hf_config.max_position_embeddings} positions of {folder}"
        )
    return folder, hf_config
