# SPDX-License-Identifier: Apache-2.0
"""The stages of a run in order, with rounds of iterative self-improvement unrolled.

A round (Satori, appendix D.3) distils the policy that reinforcement left into the model the run
began with, from the problems that were hardest for it, and trains the result again. "iterate" in
`stages` stands for all rounds of the config; each becomes two stages, "distill_2" and
"reinforce_2", then "distill_3" and so on, with checkpoints, models and summary entries of their
own. "srl" is reinforcement under the settings of its own section. Not here: what a stage does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from satori_fast.config import Config, RoundConfig, StageName


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage of a run.

    name:   unique in the run. kind: which file of `stages` runs it; "start" is in `evaluate`.
    config: the run's, with what differs for this stage.
    """

    name: str
    kind: StageName | Literal["start"]
    config: Config


def plan_stages(config: Config) -> tuple[StagePlan, ...]:
    """Every stage of the run, in order; their number does not depend on how the run goes. The first
    one is "start" where the starting model is evaluated."""
    plans: list[StagePlan] = []
    if config.evaluation.at_start:
        plans.append(StagePlan("start", "start", config))
    for stage in config.stages:
        if stage == "iterate":
            for number, settings in enumerate(config.iterate.rounds, start=2):
                plans += round_plans(config, number, settings)
        elif stage == "srl":
            settings = config.srl.reinforcement()
            asked = config.solutions.with_set(questions="all")  # no whole solution is sampled
            own = config.with_set(reinforce=settings, solutions=asked)
            plans.append(StagePlan(stage, stage, own))
        else:
            plans.append(StagePlan(stage, stage, config))
    return tuple(plans)


def reinforcing_plan(config: Config) -> StagePlan:
    """The first stage of a config that reinforces; the section reinforce where none does."""
    plans = [plan for plan in plan_stages(config) if plan.kind in ("srl", "reinforce")]
    return plans[0] if plans else StagePlan("reinforce", "reinforce", config)


def round_plans(config: Config, number: int, settings: RoundConfig) -> tuple[StagePlan, StagePlan]:
    """Distillation and reinforcement of round `number`."""
    reinforce = {
        "reinforce": settings.reinforcement(config.reinforce),
        "rollout": settings.sampling(config.rollout),
    }
    return (
        StagePlan(
            f"distill_{number}",
            "distill",
            config.with_set(distill=settings.distillation(config.distill)),
        ),
        StagePlan(f"reinforce_{number}", "reinforce", config.with_set(**reinforce)),
    )
