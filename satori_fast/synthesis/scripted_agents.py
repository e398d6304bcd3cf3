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

    generators: by `synthesize.slips`; of its skill, the share of solutions from the question alone
                that are right, or (carries, haste) of the places where it slips.
    critics:    by `synthesize.check`.
    """

    generators: Mapping[str, Callable[[float], Generator]]
    critics: Mapping[str, Callable[[], Critic]]
    reward_model: Callable[[], RewardModel] = RepetitionRewardModel


# Of the checks of a critic that mixes bare ones with worked ones.
_BARE_SHARE = 0.75
SCRIPTED_AGENTS: Mapping[str, ScriptedAgents] = MappingProxyType(
    {
        "arithmetic": ScriptedAgents(
            {"chance": SlippingGenerator},
            {
                "worked": CheckingCritic,
                "bare": partial(CheckingCritic, bare_share=1.0),
                "mixed": partial(CheckingCritic, bare_share=_BARE_SHARE),
            },
        ),
        "chains": ScriptedAgents(
            {"chance": SlippingCalculator, "carries": partial(SlippingCalculator, in_haste=True)},
            {"worked": RecalculatingCritic},
        ),
        "word_problems": ScriptedAgents(
            {"chance": SlippingPupil, "haste": partial(SlippingPupil, in_haste=True)},
            {"worked": RereadingCritic},
        ),
    }
)
