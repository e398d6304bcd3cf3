# SPDX-License-Identifier: Apache-2.0
"""The scripted agents of Satori's data synthesis, a row for each built-in domain.

What they do is `agents` (arithmetic), `chain_agents` and `word_agents`; S2R's are `trial_agents`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from satori_fast.synthesis.agents import (
    CheckingCritic,
    Critic,
    Generator,
    RepetitionRewardModel,
    RewardModel,
    SlippingGenerator,
)
from satori_fast.synthesis.chain_agents import RecalculatingCritic, SlippingCalculator
from satori_fast.synthesis.word_agents import RereadingCritic, SlippingPupil


@dataclass(frozen=True, slots=True)
class ScriptedAgents:
    """The agents of a domain, to be made.

    generator:   of its skill, the share of solutions from the question alone that are right.
    hasty:       a generator that slips in the same places each time; of its skill, the share of
                 those places that are right. None: there is none.
    bare_critic: one that gives verdicts without showing how it came to them; None: there is none.
    """

    generator: Callable[[float], Generator]
    critic: Callable[[], Critic]
    hasty: Callable[[float], Generator] | None = None
    bare_critic: Callable[[], Critic] | None = None
    reward_model: Callable[[], RewardModel] = RepetitionRewardModel


SCRIPTED_AGENTS: Mapping[str, ScriptedAgents] = MappingProxyType(
    {
        "arithmetic": ScriptedAgents(
            SlippingGenerator, CheckingCritic, bare_critic=partial(CheckingCritic, is_bare=True)
        ),
        "chains": ScriptedAgents(
            SlippingCalculator, RecalculatingCritic, partial(SlippingCalculator, in_haste=True)
        ),
        "word_problems": ScriptedAgents(SlippingPupil, RereadingCritic),
    }
)
