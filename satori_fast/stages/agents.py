# SPDX-License-Identifier: Apache-2.0
"""The agents of curation, of synthesis, of behaviour initialisation and of step data from the
config: who they are, where their models run, what they cost.

What agents do is `synthesis`; which problems they get is `curate`, `synthesize`, `initialise` and
`rewriting`.
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
from satori_fast.config import (
    AgentConfig,
    Config,
    ConfigError,
    CurateConfig,
    InitialiseConfig,
    SrlConfig,
    SynthesizeConfig,
)
from satori_fast.data.control_tokens import ControlTokens
from satori_fast.data.domains import DOMAINS
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
from satori_fast.synthesis.agents import RewardModel, Unusable
from satori_fast.synthesis.chat import ChatModel, ChatSampling
from satori_fast.synthesis.endpoint_chat import EndpointChat, EndpointSettings
from satori_fast.synthesis.engine_chat import EngineChat
from satori_fast.synthesis.journal import Journal, RecordedChat
from satori_fast.synthesis.label_agents import Labeller, LanguageLabeller, ScriptedLabeller
from satori_fast.synthesis.language_agents import (
    LanguageCritic,
    LanguageGenerator,
    LanguageRewardModel,
    without_tokens,
)
from satori_fast.synthesis.pipeline import SynthesisAgents
from satori_fast.synthesis.scripted_agents import SCRIPTED_AGENTS, ScriptedAgents
from satori_fast.synthesis.step_agents import LanguageRewriter
from satori_fast.synthesis.trial_agents import (
    SCRIPTED_VERIFIERS,
    LanguageJudge,
    LanguageVerifier,
    ScriptedJudge,
    TrialAgents,
)
from satori_fast.types import Problem, Segment, SegmentKind, Trajectory

OPENAI_HOST = "api.openai.com"


def agent_configs(config: SynthesizeConfig) -> dict[str, AgentConfig]:
    """The config of each role of synthesis, in the order of their work."""
    return {
        "generator": config.generator,
        "critic": config.critic,
        "reward_model": config.reward_model,
    }


def trial_agent_configs(config: InitialiseConfig) -> dict[str, AgentConfig]:
    """The config of each role of behaviour initialisation, in the order of their work."""
    return {"verifier": config.verifier, "judge": config.judge}


def step_agent_configs(config: SrlConfig) -> dict[str, AgentConfig]:
    """The config of the role of step data."""
    return {"rewriter": config.rewriter}


def label_agent_configs(config: CurateConfig) -> dict[str, AgentConfig]:
    """The config of the role of curation; none where answers are taken as they are."""
    return {} if config.labeller.kind == "none" else {"labeller": config.labeller}


class AgentModels:
    """The language models of a stage's agents. Close them when they are done.

    Roles with the same model at the same place share it, and its limits.

    section: of the config that names them. journal: records what they reply; None where all agents
    are scripted. folder: of the run. seed: of a role.
    """

    def __init__(
        self,
        section: str,
        configs: Mapping[str, AgentConfig],
        journal: Journal | None,
        *,
        folder: Path,
        seed: Callable[[str], int],
    ) -> None:
        self._section, self._configs = section, configs
        self._journal, self._folder, self._seed = journal, folder, seed
        self._models: dict[object, ChatModel] = {}

    async def close(self) -> None:
        """Close the models."""
        for model in self._models.values():
            await model.close()

    def chat(self, role: str) -> RecordedChat | None:
        """The model of a role; None for a scripted agent."""
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
        key = f"{self._section}.{role}"
        if agent.kind == "endpoint":
            settings = endpoint_settings(agent, key, os.environ)
            if settings not in self._models:
                self._models[settings] = EndpointChat(settings, setting=key)
            return self._models[settings]
        place = (agent.kind, agent.model, agent.max_seqlen, agent.dtype)
        if place not in self._models:
            self._models[place] = load_engine_chat(agent, key, folder=self._folder)
        return self._models[place]


def synthesis_agents(
    config: SynthesizeConfig,
    models: AgentModels,
    *,
    source: str,
    pool: GradingPool,
    parallel: ParallelState,
) -> SynthesisAgents:
    """The agents of synthesis. source: of the problems, as `data.source` says. pool: grades what
    language models write."""
    generator, critic = models.chat("generator"), models.chat("critic")
    reward_model: RewardModel
    if config.reward_model.kind == "scalar":
        reward_model = ScalarRewardModel(config.reward_model, parallel)
    else:
        chat = models.chat("reward_model")
        reward_model = LanguageRewardModel(chat) if chat else SCRIPTED_AGENTS[source].reward_model()
    return SynthesisAgents(
        LanguageGenerator(generator)
        if generator
        else SCRIPTED_AGENTS[source].generators[config.slips](config.generator_skill),
        LanguageCritic(critic) if critic else SCRIPTED_AGENTS[source].critics[config.check](),
        reward_model,
        pool if generator else None,
    )


def trial_agents(config: InitialiseConfig, models: AgentModels, *, source: str) -> TrialAgents:
    """The agents of behaviour initialisation. source: of the problems, as `data.source` says."""
    verifier, judge = models.chat("verifier"), models.chat("judge")
    return TrialAgents(
        LanguageVerifier(verifier)
        if verifier
        else SCRIPTED_VERIFIERS[source](config.verifier_skill),
        LanguageJudge(judge) if judge else ScriptedJudge(),
    )


def problem_labeller(models: AgentModels, *, source: str) -> Labeller:
    """The agent of curation. source: of the problems, as `data.source` says."""
    chat = models.chat("labeller")
    return LanguageLabeller(chat) if chat else ScriptedLabeller(DOMAINS[source].answer)


def step_rewriter(models: AgentModels) -> LanguageRewriter:
    """The agent of step data, always a language model."""
    chat = models.chat("rewriter")
    assert chat is not None
    return LanguageRewriter(chat)


class ScalarRewardModel:
    """Implements `synthesis.agents.RewardModel` with a scalar model: its score of the last token of
    a chat, the question and the response without meta-action tokens."""

    def __init__(self, agent: AgentConfig, parallel: ParallelState) -> None:
        folder, hf_config = _model_of(agent, "synthesize.reward_model")
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
    """ConfigError for agents of synthesis that cannot work: on this data, in this many processes,
    without a key or a model."""
    source = config.data.source
    _check_variant(config, "slips", lambda agents: agents.generators)
    _check_variant(config, "check", lambda agents: agents.critics)
    for role, agent in agent_configs(config.synthesize).items():
        key = f"synthesize.{role}"
        if agent.kind != "scripted":
            _check_agent(agent, key, world_size=world_size, environment=environment)
        elif source not in SCRIPTED_AGENTS:
            raise ConfigError(
                f'{key}.kind = "scripted" knows the built-in domains only, not '
                f'"{config.data.named}": name a language model, or take synthesize out of stages '
                "and set supervised.source"
            )


def _check_variant(
    config: Config, key: str, made: Callable[[ScriptedAgents], Mapping[str, object]]
) -> None:
    """ConfigError for scripted agents of a variant that the domain has none of."""
    source, variant = config.data.source, getattr(config.synthesize, key)
    known = [name for name, agents in SCRIPTED_AGENTS.items() if variant in made(agents)]
    if source not in known and variant != type(config.synthesize).model_fields[key].default:
        raise ConfigError(
            f'synthesize.{key} = "{variant}" is for data.source = "{", ".join(known)}", and '
            f'"{source}" has no such agents: take it out'
        )


def check_trial_agents(config: Config, *, world_size: int, environment: Mapping[str, str]) -> None:
    """ConfigError for agents of behaviour initialisation that cannot work."""
    source, initialise = config.data.source, config.initialise
    for role, agent in trial_agent_configs(initialise).items():
        key = f"initialise.{role}"
        if agent.kind != "scripted":
            _check_agent(agent, key, world_size=world_size, environment=environment)
        elif source not in SCRIPTED_VERIFIERS:
            raise ConfigError(
                f'{key}.kind = "scripted" knows the built-in domains only, not '
                f'"{config.data.named}": name a '
                f"language model in [{key}], with its kind"
            )
    if initialise.verifier.kind != "scripted":
        return
    dialect = SCRIPTED_VERIFIERS[source].dialect
    if config.dialect != dialect:
        raise ConfigError(
            f'initialise.verifier.kind = "scripted" gives verdicts of data.dialect = '
            f'"{dialect}", not "{config.dialect}": set data.dialect = "{dialect}"'
        )
    share = initialise.confirming_share
    if share < 1 and "resolving" not in SCRIPTED_VERIFIERS[source].kinds:
        raise ConfigError(
            f"initialise.confirming_share = {share:g}, but the scripted verifier of data.source = "
            f'"{source}" only confirms: set it to 1'
        )


def check_labeller(config: Config, *, world_size: int, environment: Mapping[str, str]) -> None:
    """ConfigError for an agent of curation that cannot work."""
    for role, agent in label_agent_configs(config.curate).items():
        key = f"curate.{role}"
        if agent.kind != "scripted":
            _check_agent(agent, key, world_size=world_size, environment=environment)
        elif config.data.source not in DOMAINS:
            raise ConfigError(
                f'{key}.kind = "scripted" knows the built-in domains only, not '
                f'"{config.data.named}": name a language model in [{key}], or set kind = "none"'
            )


def check_rewriter(config: Config, *, world_size: int, environment: Mapping[str, str]) -> None:
    """ConfigError for an agent of step data that cannot work."""
    for role, agent in step_agent_configs(config.srl).items():
        _check_agent(agent, f"srl.{role}", world_size=world_size, environment=environment)


def _check_agent(
    agent: AgentConfig, key: str, *, world_size: int, environment: Mapping[str, str]
) -> None:
    """ConfigError for a language model that cannot work. key: of its section, in dots."""
    if agent.model is None:
        raise ConfigError(f'{key}.model is missing: kind = "{agent.kind}" needs it')
    if agent.kind == "endpoint":
        endpoint_settings(agent, key, environment)
    elif agent.kind == "scalar" and not key.endswith(".reward_model"):
        raise ConfigError(f'{key}.kind = "scalar" only rates: it cannot write')
    elif world_size > 1:
        raise ConfigError(
            f'{key}.kind = "{agent.kind}" works in one process only: start without torchrun, '
            'or serve the model with vLLM and set kind = "endpoint"'
        )
    elif agent.kind == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(f'{key}.kind = "vllm" needs vLLM: {INSTALL_HINT}')
    else:
        _model_of(agent, key)


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


def load_engine_chat(agent: AgentConfig, key: str, *, folder: Path) -> EngineChat:
    """A model folder in an engine of this process. key: of its section. folder: of the run."""
    model, hf_config = _model_of(agent, key)
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

        empty = folder / f"engine_{key.rpartition('.')[2]}"
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


def _model_of(agent: AgentConfig, key: str) -> tuple[Path, Any]:
    """Folder and Hugging Face config of an agent's own model."""
    assert agent.model is not None
    folder = Path(agent.model)
    try:
        hf_config = load_hf_config(folder)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{key}.model = {agent.model!r}: {error}") from None
    if agent.max_seqlen > hf_config.max_position_embeddings:
        raise ConfigError(
            f"{key}.max_seqlen = {agent.max_seqlen} exceeds the "
            f"{hf_config.max_position_embeddings} positions of {folder}"
        )
    return folder, hf_config
