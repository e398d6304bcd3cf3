# SPDX-License-Identifier: Apache-2.0
"""What runs is the row of the recipe table, but for what a config sets."""

from __future__ import annotations

import math

import pytest

from satori_fast.algorithms.recipe import RECIPES
from satori_fast.config import ReinforceConfig
from satori_fast.stages.reinforce import recipe_for

NAMES = sorted(set(RECIPES) - {"sft"})


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_section_runs_the_row(name: str) -> None:
    config = ReinforceConfig.model_validate({"recipe": name})
    assert recipe_for(config, temperature=1.0) == RECIPES[name]
    assert recipe_for(config, temperature=0.7).loss.temperature == 0.7


@pytest.mark.parametrize("name", NAMES)
def test_what_is_set_replaces_the_row_and_nothing_else(name: str) -> None:
    settings = {"clip_low": 0.1, "clip_high": 0.28, "clip_dual": math.inf}
    settings |= {"entropy_coefficient": 0.01, "kl_coefficient": 0.5}
    for key, value in settings.items():
        config = ReinforceConfig.model_validate({"recipe": name, key: value})
        loss = recipe_for(config, temperature=1.0).loss
        assert getattr(loss, key) == value
        others = set(settings) - {key}
        assert all(getattr(loss, other) == getattr(RECIPES[name].loss, other) for other in others)
    config = ReinforceConfig.model_validate({"recipe": name, "gae_lambda": 1.0})
    assert recipe_for(config, temperature=1.0).advantage.lambda_ == 1.0


def test_the_coefficient_of_the_kl_decides_on_the_reference() -> None:
    with_kl = recipe_for(ReinforceConfig(recipe="ppo", kl_coefficient=0.1), temperature=1.0)
    without = recipe_for(ReinforceConfig(recipe="rloo", kl_coefficient=0.0), temperature=1.0)
    assert with_kl.needs == {"critic", "reference"} and without.needs == frozenset()


def test_weights_of_tokens_are_the_losss_and_those_of_sequences_are_not() -> None:
    settings = {"importance": "mask", "importance_low": 0.5, "importance_high": 2.0}
    tokens = ReinforceConfig.model_validate(settings)
    loss = recipe_for(tokens, temperature=1.0).loss
    assert (loss.importance, loss.importance_low, loss.importance_high) == ("mask", 0.5, 2.0)
    sequences = ReinforceConfig.model_validate(settings | {"importance_level": "sequence"})
    assert recipe_for(sequences, temperature=1.0) == RECIPES["ppo"]
