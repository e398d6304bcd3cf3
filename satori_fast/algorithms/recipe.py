# SPDX-License-Identifier: Apache-2.0
"""The table of methods: an algorithm is a row, not a class.

A row names a credit rule, an advantage rule, a weighting, loss terms, and what it needs. Identities
are plain: DAPO is `grpo` with weighting "token" and a higher `clip_high`; Dr.GRPO is `grpo` with
credit "grpo_no_std" and weighting "fixed". Change a row with `dataclasses.replace`.

The rows are what runs: a config replaces a coefficient only by setting it.
A token of negative advantage whose ratio has run away is bounded (`clip_dual` 3, arXiv 1912.09729):
without it one stale token can be the whole gradient.

Not for anything a run chooses (learning rates, lengths, numbers of samples): that is the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from satori_fast.algorithms.advantages import AdvantageRule
from satori_fast.algorithms.credit import CreditRule
from satori_fast.algorithms.losses import LossTerms

Need = Literal["critic", "reference", "segments", "demonstrations"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One method of training on trajectories.

    name:          its key in `RECIPES`.
    paper:         where the coefficients come from.
    credit:        rule of `credit.assign_credit`.
    advantage:     rule of `advantages.estimate_advantages`.
    weighting:     of `data.packing.pack`: "token", "sequence" or "fixed".
    loss:          terms of the loss. `loss.temperature` is 1; set it to the sampler's.
    needs:         models and data that must be there: "critic", "reference", "segments",
                   "demonstrations".
    min_group_std: groups whose rewards have a standard deviation of at most this carry no signal
                   and are dropped; None keeps every group (a critic learns from all).
    """

    name: str
    paper: str
    credit: CreditRule
    advantage: AdvantageRule
    weighting: Literal["token", "sequence", "fixed"]
    loss: LossTerms
    needs: frozenset[Need] = frozenset()
    min_group_std: float | None = None

    def __post_init__(self) -> None:
        if self.advantage.kind == "gae" and "critic" not in self.needs:
            raise ValueError(f'recipe {self.name!r}: advantage "gae" needs "critic" in needs')
        if self.loss.kl_coefficient and "reference" not in self.needs:
            raise ValueError(
                f"recipe {self.name!r}: kl_coefficient {self.loss.kl_coefficient} needs "
                '"reference" in needs'
            )


_ROWS = (
    Recipe(
        name="sft",
        paper="Satori (arXiv 2502.02508) appendix D.2, format tuning: plain behaviour cloning",
        credit="ones",
        advantage=AdvantageRule("ones"),
        weighting="token",
        loss=LossTerms("nll"),
        needs=frozenset({"demonstrations"}),
    ),
    Recipe(
        name="ppo",
        paper="Satori (arXiv 2502.02508) appendix D.3; gamma, lambda, clips from its code",
        credit="terminal",
        advantage=AdvantageRule("gae", gamma=1.0, lambda_=0.95, whiten=True),
        weighting="token",
        loss=LossTerms("policy", clip_low=0.2, clip_high=0.2, clip_dual=3.0, value_clip=0.2),
        needs=frozenset({"critic"}),
    ),
    Recipe(
        name="grpo",
        paper="DeepSeekMath (arXiv 2402.03300), without KL as in SRL (arXiv 2510.25992) table 7",
        credit="grpo",
        advantage=AdvantageRule("spread"),
        weighting="sequence",
        loss=LossTerms("policy", clip_low=0.2, clip_high=0.2, clip_dual=3.0),
        min_group_std=1e-6,
    ),
    # S2R subtracts beta log(pi_old / pi_ref) from the advantage. As a loss term that is k2, whose
    # gradient on policy is log(pi / pi_ref) grad log pi; the gradient of k1 would average to zero.
    # beta is that of Qwen2.5-Math; S2R takes 0.05 for its other models.
    Recipe(
        name="rloo",
        paper="S2R (arXiv 2502.12853) outcome level",
        credit="rloo",
        advantage=AdvantageRule("spread"),
        weighting="sequence",
        loss=LossTerms(
            "policy",
            clip_low=0.2,
            clip_high=0.2,
            clip_dual=3.0,
            kl_coefficient=0.01,
            kl_estimator="k2",
        ),
        needs=frozenset({"reference"}),
        min_group_std=1e-6,
    ),
)

RECIPES: Mapping[str, Recipe] = MappingProxyType({row.name: row for row in _ROWS})
