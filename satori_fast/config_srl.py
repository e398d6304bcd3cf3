# SPDX-License-Identifier: Apache-2.0
"""The section of the stage srl: reinforcement on the steps of expert solutions. See
`config_stages`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from satori_fast.config_agents import RewriterConfig
from satori_fast.config_sections import Section
from satori_fast.config_stages import ReinforceConfig, RestartConfig

Parser = Literal["numbered", "paragraphs", "sentences", "marked", "rewrite", "agent"]


class AgentStepsConfig(Section):
    split: Literal["tool", "xml", "ticks"] = "tool"
    """split of a hub data set: the form in which its trajectories are written"""
    num_rounds: int = Field(default=2, ge=0)
    """rounds of action and observation shown before an action (the paper: 2)"""
    include_unresolved: bool = False
    """also use trajectories that did not resolve their task"""
    include_thought: bool = False
    """put the expert's thought before its action, in rounds and as target"""
    max_observation_characters: int = Field(default=8000, ge=100)
    """a longer observation loses its middle, and says so"""
    max_prompt_characters: int = Field(default=40_000, gt=0)
    """an instance with more is left out, before tokens are counted"""


class SrlConfig(ReinforceConfig):
    SECTION: ClassVar[str] = "srl"

    recipe: str = "srl"
    """credit rule, advantage and loss: srl, grpo, grpo_no_std, gspo or rloo; show --recipe"""
    restarts: RestartConfig = RestartConfig(enabled=False)
    expert: str | None = None
    """expert solutions: a .jsonl, .json (or .gz) or .parquet file, or a hub name; None: the expert
    of the built-in domain"""
    mapping: str | None = None
    """field mapping of the expert solutions; None: by their name"""
    num_solutions: int | None = Field(default=None, gt=0)
    """expert solutions used, the first ones (rows of the file, or problems of the domain); None:
    all"""
    parser: Parser = "numbered"
    """form of solutions: numbered (N. **Title** text), paragraphs, sentences, marked (;), agent
    (SWE-smith's trajectories) or rewrite (srl.rewriter numbers them)"""
    unit: Literal["step", "solution"] = "step"
    """what a problem asks for: one step, or the whole solution at once (the paper's ablation)"""
    last_step: Literal["skip", "ask"] = "skip"
    """last step of a solution, which states the answer: skip (the paper) or ask for it too"""
    tell_title: bool = False
    """tell the title of the next step in the prompt; it is then no part of what is compared"""
    granularity: Literal["characters", "words", "tokens"] = "characters"
    """elements that the similarity compares (the paper does not say)"""
    autojunk: bool = False
    """difflib's heuristic, which takes frequent elements of long targets for junk"""
    solution_tags: Literal["accepted", "required"] = "accepted"
    """<solution> tags around the step"""
    template: Literal["satori", "plain", "chat"] | None = None
    """prompt template of step problems; None: data.template"""
    system: str | None = None
    """system message of step problems, for the template chat; None: the paper's"""
    num_validation: int = Field(default=256, gt=0)
    """held-out step problems that are validated on, evenly spread"""
    num_concurrent: int = Field(default=256, gt=0)
    """solutions that a language model rewrites at once"""
    rewriter: RewriterConfig = RewriterConfig()
    agent: AgentStepsConfig = AgentStepsConfig()

    def reinforcement(self) -> ReinforceConfig:
        """The keys that any stage of reinforcement has."""
        own = {name: getattr(self, name) for name in ReinforceConfig.model_fields}
        return ReinforceConfig.model_construct(**own)
