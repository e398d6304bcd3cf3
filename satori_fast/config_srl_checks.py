# SPDX-License-Identifier: Apache-2.0
"""Settings of supervised reinforcement learning that contradict each other or other sections.

One ValueError each, before anything loads, as in `config_checks`, which has those of other stages.
"""

from __future__ import annotations

from collections.abc import Sequence

from satori_fast.config_checks import recipe_of
from satori_fast.config_data import DataConfig
from satori_fast.config_sections import TokenizerConfig
from satori_fast.config_srl import SrlConfig
from satori_fast.config_stages import SupervisedConfig


def check_steps(config: SrlConfig, data: DataConfig, tokenizer: TokenizerConfig) -> None:
    """The stage srl has expert solutions, samples steps of them, and compares what they earn."""
    credit = recipe_of(config).credit()
    if not credit.compares_siblings or credit.reads_actions:
        raise ValueError(
            f'srl.recipe = "{config.recipe}" does not compare the samples of a step problem: take '
            '"srl", "grpo", "grpo_no_std", "gspo" or "rloo"'
        )
    if config.unit == "solution" and config.tell_title:
        raise ValueError(
            'srl.tell_title = true with srl.unit = "solution", which has no next step: take one of '
            "the two out"
        )
    if config.truncated == "penalty":
        raise ValueError(
            'srl.truncated = "penalty" is for whole answers: take "wrong" (a cut step is compared '
            'as it is) or "mask"'
        )
    if config.source != "online" or config.rollouts is not None:
        raise ValueError(
            f'srl.source = "{config.source}": steps are sampled from the policy; set it to "online"'
            " and take srl.rollouts out"
        )
    if config.restarts.enabled:
        raise ValueError(
            "srl.restarts.enabled = true: step problems start in the middle already; take it out"
        )
    if config.template == "chat" and tokenizer.kind != "model":
        raise ValueError(
            f'srl.template = "chat" needs a chat template, and tokenizer.kind = "{tokenizer.kind}" '
            'has none: set tokenizer.kind = "model", or srl.template = "plain"'
        )
    if config.system is not None and (config.template or data.template) != "chat":
        raise ValueError(
            'srl.system is the system turn of srl.template = "chat": set that, or take system out'
        )
    _check_experts(config, data)


def _check_experts(config: SrlConfig, data: DataConfig) -> None:
    """There are expert solutions, and nothing is asked that their form does not give."""
    from satori_fast.data.domains import DOMAINS

    domain = DOMAINS.get(data.source)
    if config.expert is None and (domain is None or domain.steps is None):
        raise ValueError(
            f'the stage srl needs expert solutions, and data.source = "{data.source}" has no expert'
            " who writes steps: set srl.expert to a file of solutions"
        )
    if config.expert is None and (config.parser != "numbered" or config.mapping is not None):
        key, value = ("mapping", config.mapping) if config.mapping else ("parser", config.parser)
        raise ValueError(
            f'srl.{key} = "{value}" reads a file, and srl.expert, which names it, is missing: set '
            "it, or take the other out, and the expert of the built-in domain writes steps"
        )
    titled = config.parser in ("numbered", "rewrite")
    if config.tell_title and not titled:
        raise ValueError(
            f'srl.tell_title = true, and srl.parser = "{config.parser}" gives steps without titles:'
            ' take it out, or set srl.parser = "numbered" or "rewrite"'
        )
    if config.parser == "agent" and config.unit == "solution":
        raise ValueError(
            'srl.unit = "solution" with srl.parser = "agent", whose problems ask for one action: '
            'set srl.unit = "step"'
        )


def check_warm_up(stages: Sequence[str], config: SupervisedConfig, data: DataConfig) -> None:
    """Steps are imitated only where somebody writes them."""
    from satori_fast.data.domains import DOMAINS

    if config.step_share is None:
        if config.slip_share:
            raise ValueError(
                f"supervised.slip_share = {config.slip_share:g} needs supervised.step_share: plain "
                "solutions have no slips; set it, or take slip_share out"
            )
        return
    domain = DOMAINS.get(data.source)
    has_steps = domain is not None and domain.steps is not None
    if has_steps and config.source is None and "synthesize" not in stages:
        return
    raise ValueError(
        f"supervised.step_share = {config.step_share:g} needs the expert of a built-in domain with "
        'steps: set data.source = "chains" and no supervised.source, or take step_share out'
    )
