# SPDX-License-Identifier: Apache-2.0
"""The table of methods: rows are consistent and carry the coefficients of their papers."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import get_args

import pytest

from satori_fast.algorithms.credit import CreditRule
from satori_fast.algorithms.recipe import RECIPES, Need, Recipe


def test_rows_are_named_and_consistent() -> None:
    assert set(RECIPES) == {"sft", "ppo", "grpo", "rloo"}
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert "arXiv" in recipe.paper
        assert recipe.credit in get_args(CreditRule)
        assert recipe.needs <= set(get_args(Need))
        assert (recipe.advantage.kind == "gae") == ("critic" in recipe.needs)
        assert (recipe.loss.kl_coefficient > 0) == ("reference" in recipe.needs)
        # Rules that compare siblings, and only those, drop groups without contrast.
        assert (recipe.min_group_std is not None) == (recipe.credit in {"grpo", "rloo"})


def test_satori_ppo_coefficients() -> None:
    ppo = RECIPES["ppo"]
    assert (ppo.advantage.gamma, ppo.advantage.lambda_, ppo.advantage.whiten) == (1.0, 0.95, True)
    assert (ppo.loss.clip_low, ppo.loss.clip_high, ppo.loss.value_clip) == (0.2, 0.2, 0.2)
    assert ppo.loss.kl_coefficient == 0.0


def test_grpo_and_rloo_coefficients() -> None:
    grpo, rloo = RECIPES["grpo"], RECIPES["rloo"]
    assert (grpo.loss.clip_low, grpo.loss.clip_high, grpo.loss.kl_coefficient) == (0.2, 0.2, 0.0)
    assert (rloo.loss.clip_low, rloo.loss.kl_coefficient) == (0.2, 0.01)


def test_rows_with_a_ratio_bound_a_token_that_has_run_away() -> None:
    bounds = {name: row.loss.clip_dual for name, row in RECIPES.items()}
    assert bounds.pop("sft") == math.inf
    assert set(bounds.values()) == {3.0}


def test_a_row_cannot_lack_what_its_terms_need() -> None:
    grpo, ppo = RECIPES["grpo"], RECIPES["ppo"]
    with_kl = replace(grpo.loss, kl_coefficient=0.04)
    with pytest.raises(ValueError, match="reference"):
        replace(grpo, loss=with_kl)
    changed = replace(grpo, loss=with_kl, needs=grpo.needs | {"reference"})
    assert changed.loss.kl_coefficient == 0.04
    with pytest.raises(ValueError, match="critic"):
        replace(ppo, needs=frozenset())


def test_the_table_is_frozen() -> None:
    with pytest.raises(TypeError):
        RECIPES["mine"] = RECIPES["grpo"]  # pyright: ignore[reportIndexIssue]
    with pytest.raises(FrozenInstanceError):
        Recipe.__setattr__(RECIPES["grpo"], "name", "mine")
