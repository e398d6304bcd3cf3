# SPDX-License-Identifier: Apache-2.0
"""The sections of a configuration that name agents: language models, or scripts, in a role. See
`config_sections`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from satori_fast.config_sections import Section
from satori_fast.redaction import has_credentials


class AgentConfig(Section):
    """A language model in a role of synthesis, or the scripted agent of a built-in domain."""

    kind: Literal["scripted", "endpoint", "embedded", "vllm", "scalar"] = "scripted"
    """scripted, endpoint (OpenAI-compatible server), embedded or vllm (engines), scalar (a reward
    model with a score head)"""
    model: str | None = None
    """name of the model on the server (endpoint), else its folder"""
    url: str = "http://127.0.0.1:8000/v1"
    """endpoint: base URL of the server"""
    api_key_variable: str | None = None
    """endpoint: environment variable with the key; None: OPENAI_API_KEY, for api.openai.com or
    this machine only"""
    temperature: float = Field(default=0.0, ge=0)
    """sampling temperature; 0: greedy"""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """nucleus sampling: share of the probability that is kept; 1: off"""
    max_new_tokens: int = Field(default=256, gt=0)
    """longest reply, tokens"""
    max_concurrency: int = Field(default=64, gt=0)
    """requests in flight, or decoded, at once"""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """endpoint: client-side rate limit of requests; None: none"""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """endpoint: client-side rate limit of tokens, prompts and replies together; None: none"""
    timeout_s: float = Field(default=600.0, gt=0)
    """endpoint: longest wait for a reply, seconds"""
    max_retries: int = Field(default=10, ge=0)
    """endpoint: retries per request (exponential backoff), then the run aborts, to be resumed"""
    prompt_price: float = Field(default=0.0, ge=0)
    """price per million prompt tokens, in any currency, for the cost that is reported"""
    completion_price: float = Field(default=0.0, ge=0)
    """price per million reply tokens, in the same currency"""
    max_seqlen: int = Field(default=8192, gt=1)
    """embedded, vllm, scalar: context length, prompt and reply, tokens"""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """embedded, vllm, scalar: type of the weights"""
    gpu_memory_share: float = Field(default=0.4, gt=0, lt=1)
    """vllm: share of a GPU's memory for the engine's weights and cache"""

    @field_validator("url")
    @classmethod
    def _without_credentials(cls, url: str) -> str:
        if has_credentials(url):
            raise ValueError(
                "leave user and password out, they would be written to config.toml: put the key "
                "into an environment variable and name it in api_key_variable"
            )
        return url


class GeneratorConfig(AgentConfig):
    temperature: float = Field(default=0.3, ge=0)
    """sampling temperature (the paper: 0.3)"""
    max_new_tokens: int = Field(default=2048, gt=0)
    """longest reply, tokens (the paper: 2048)"""


class CriticConfig(AgentConfig):
    temperature: float = Field(default=0.2, ge=0)
    """sampling temperature (the paper: 0.2)"""


class RewardModelConfig(AgentConfig):
    max_new_tokens: int = Field(default=64, gt=0)
    """longest reply, tokens: the model is asked for a rating"""


class VerifierConfig(AgentConfig):
    temperature: float = Field(default=0.1, ge=0)
    """sampling temperature (the released script: 0.1)"""
    max_new_tokens: int = Field(default=1024, gt=0)
    """longest reply, tokens"""


class JudgeConfig(AgentConfig):
    max_new_tokens: int = Field(default=64, gt=0)
    """longest reply, tokens: the model is asked for one line"""


class RewriterConfig(AgentConfig):
    kind: Literal["endpoint", "embedded", "vllm"] = "endpoint"
    """endpoint (OpenAI-compatible server), embedded or vllm (engines)"""
    max_new_tokens: int = Field(default=4096, gt=0)
    """longest reply, tokens"""


class LabellerConfig(AgentConfig):
    kind: Literal["none", "scripted", "endpoint", "embedded", "vllm"] = "none"
    """none (answers are taken as they are), scripted, endpoint (OpenAI-compatible server), embedded
    or vllm (engines)"""
    max_new_tokens: int = Field(default=4096, gt=0)
    """longest reply, tokens"""


class CurateConfig(Section):
    num_labels: int = Field(default=1, gt=0)
    """times that the labeller answers a question"""
    agreement: int = Field(default=1, gt=0)
    """labels, of num_labels, that must equal the data set's answer (the paper: QwQ's one)"""
    near_duplicates: float = Field(default=0.7, ge=0, le=1)
    """Jaccard similarity of word 5-shingles from which a question with the same numbers is taken
    for an earlier one; 0: off"""
    num_concurrent: int = Field(default=256, gt=0)
    """questions that a language model labels at once"""
    labeller: LabellerConfig = LabellerConfig()

    @model_validator(mode="after")
    def _can_agree(self) -> Self:
        if self.agreement > self.num_labels:
            raise ValueError(
                f"curate.agreement = {self.agreement} exceeds curate.num_labels = "
                f"{self.num_labels}: no question would be kept"
            )
        is_model = self.labeller.kind not in ("none", "scripted")
        if is_model and self.num_labels > 1 and not self.labeller.temperature:
            raise ValueError(
                f"curate.labeller.temperature = 0 gives curate.num_labels = {self.num_labels} equal"
                " labels: raise it, or set num_labels = 1"
            )
        return self


class SynthesizeConfig(Section):
    num_problems: int = Field(default=1000, gt=0)
    """training problems that demonstrations are made of"""
    num_solutions: int = Field(default=100, gt=0)
    """first attempts sampled per problem"""
    num_kept: int = Field(default=4, gt=0)
    """right solutions, and wrong solutions, kept of a problem's"""
    max_rounds: int = Field(default=2, gt=0)
    """rounds of criticism and correction per trajectory"""
    critic_share: float = Field(default=1.0, ge=0, le=1)
    """share of problems that the critic works on; the others keep a right solution as it is"""
    confirm_share: float = Field(default=0.0, ge=0, le=1)
    """share of corrected trajectories that end with a confirming reflection (the paper: 0)"""
    unchecked_share: float = Field(default=0.0, ge=0, le=1)
    """share of problems of which a wrong solution is kept too, as if nobody had checked it, for
    reinforcement to unlearn (the paper: 0)"""
    generator_skill: float = Field(default=0.3, gt=0, lt=1)
    """scripted generator: share of attempts that are right (chains, word_problems: of solutions
    from the question alone; each of L steps is right with the L-th root of it)"""
    slips: Literal["chance", "carries", "haste"] = "chance"
    """scripted generator: it slips anywhere, or (chains) forgets what is carried or borrowed, or
    (word_problems) in haste subtracts for divides and adds for multiplies, and miscalculates now
    and then; generator_skill is then the share of the places of haste that it gets right"""
    check: Literal["worked", "bare", "mixed"] = "worked"
    """scripted critic: reflections show their sum, give the verdict alone, or (mixed) do so three
    times of four"""
    num_concurrent: int = Field(default=256, gt=0)
    """problems that language models work on at once"""
    generator: GeneratorConfig = GeneratorConfig()
    critic: CriticConfig = CriticConfig()
    reward_model: RewardModelConfig = RewardModelConfig()

    @model_validator(mode="after")
    def _has_scripted_variants(self) -> Self:
        asked = (
            ("check", "worked", "critic", self.critic.kind),
            ("slips", "chance", "generator", self.generator.kind),
        )
        for key, default, role, kind in asked:
            if getattr(self, key) != default and kind != "scripted":
                raise ValueError(
                    f'synthesize.{key} = "{getattr(self, key)}" is for the scripted {role}, and '
                    f'synthesize.{role}.kind = "{kind}": take one of the two out'
                )
        return self
