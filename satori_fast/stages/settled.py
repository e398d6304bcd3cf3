# SPDX-License-Identifier: Apache-2.0
"""Defaults of a config that depend on the files that it names: settled before a run begins.

Restarts are on where the format has them; they make sense only for a model that has seen the
format's meta-actions, or will have before it is reinforced.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import takewhile

from satori_fast.config import Config
from satori_fast.data.domains import DOMAINS
from satori_fast.data.sources import load_demonstrations
from satori_fast.data.tokenizer import has_tokenizer, load_tokenizer
from satori_fast.stages.iterate import StagePlan, plan_stages
from satori_fast.stages.models import model_folder
from satori_fast.stages.setup import join_ranks
from satori_fast.stages.supervised import demonstration_sources

logger = logging.getLogger(__name__)

_NUM_LOOKED_AT = 100  # demonstrations


def settled(config: Config) -> Config:
    """The config with restarts off, aloud, where they are not asked for and the model that is
    reinforced has never seen a meta-action. Every rank must call it."""
    plans = plan_stages(config)
    before = list(takewhile(lambda plan: plan.kind != "reinforce", plans))
    if len(before) == len(plans) or not plans[len(before)].config.restarts_enabled:
        return config
    restarts = plans[len(before)].config.reinforce.restarts
    token = config.response_format.restart_ending
    assert token is not None
    if join_ranks(config).from_main(lambda: _knows(config, before, token)):
        return config
    why = f"no stage before reinforce shows {token} to the model, and its tokenizer lacks it"
    if config.model.path is None:
        why = f"no stage before reinforce shows {token} to the model, which is a fresh one"
    if restarts.enabled:
        logger.warning("reinforce.restarts.enabled = true, but %s: restarts teach little", why)
        return config
    logger.warning(
        "reinforce: restarts are off: %s; put synthesize and supervised before it, or set "
        'data.format = "plain"; reinforce.restarts.enabled = true keeps them on',
        why,
    )
    off = config.reinforce.with_set(restarts=config.reinforce.restarts.with_set(enabled=False))
    return config.with_set(reinforce=off)


def _knows(config: Config, before: Sequence[StagePlan], token: str) -> bool:
    """Whether the reinforced model has seen `token`. What cannot be read is refused later on."""
    kinds = {plan.kind for plan in before}
    try:
        if "synthesize" in kinds or ("supervised" in kinds and _is_shown(config, token)):
            return True
        if config.model.path is None:
            return False
        folder = model_folder(config.model.path, weights=False)
        return not has_tokenizer(folder) or token in load_tokenizer(folder).get_vocab()
    except (ValueError, OSError):
        return True


def _is_shown(config: Config, token: str) -> bool:
    """Whether one of the first demonstrations of format tuning has `token`."""
    return any(
        token in demonstration.response
        for each in demonstration_sources(config, None)
        if each.source not in DOMAINS
        for demonstration in load_demonstrations(each.source, each.read_as, limit=_NUM_LOOKED_AT)[0]
    )
