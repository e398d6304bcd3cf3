# SPDX-License-Identifier: Apache-2.0
"""The table of methods: rows are consistent, carry the coefficients of their papers, and are what
runs, but for what a config sets."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, replace
from typing import Any, get_args

import pytest

from satori_fast.algorithms.baselines import ContextBaselines
from satori_fast.algorithms.credit import GroupMean, LeaveOneOut, Terminal
from satori_fast.algorithms.recipe import (
    OVERRIDES,
    RECIPES,
    Need,
    Recipe,
    effective_recipe,
    unused_keys,
)
from satori_fast.config import ReinforceConfig
from satori_fast.config_stages import RECIPE_KEYS
from satori_fast.types import Weighting


def under(**settings: Any) -> Recipe:
    """The recipe that a section [reinforce] of these keys runs, at temperature 1."""
    config = ReinforceConfig.model_validate(settings)
    return effective_recipe(config.recipe, temperature=1.0, **config.recipe_overrides())


def test_rows_are_named_and_consistent() -> None:
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert "arXiv" in recipe.paper
        assert recipe.weighting in get_args(Weighting)
        assert recipe.needs <= set(get_args(Need))
        assert (recipe.advantage.kind == "gae") == ("critic" in recipe.needs)
        assert (recipe.kl_coefficient > 0) == ("reference" in recipe.needs)
        # Rules that compare siblings, and only those, drop groups without contrast.
        assert (recipe.min_group_std is not None) == recipe.credit().compares_siblings
        # The range that `importance` would clamp to holds the weight of a token in agreement.
        assert recipe.loss.terms.importance_low <= 1 <= recipe.loss.terms.importance_high
        assert recipe.loss.terms.clip_dual == 3.0


@pytest.mark.parametrize("name", RECIPES)
def test_an_empty_section_runs_the_row(name: str) -> None:
    assert under(recipe=name) == RECIPES[name]
    tempered = effective_recipe(name, temperature=0.7)
    assert tempered == replace(RECIPES[name], loss=replace(RECIPES[name].loss, temperature=0.7))


# A value of each key that no row has, but for "segment".
SETTINGS = {
    "clip_low": 0.1,
    "clip_high": 0.28,
    "clip_dual": math.inf,
    "ratio": "segment",
    "ratio_mean": False,
    "importance": "mask",
    "importance_level": "sequence",
    "importance_low": 0.5,
    "importance_high": 1.5,
    "weighting": "segment",
    "kl_coefficient": 0.5,
    "kl_estimator": "k1",
    "entropy_coefficient": 0.01,
    "gae_lambda": 1.0,
    "value_clip": 0.5,
    "min_group_std": 0.3,
}
# And of those that only rows with baselines of actions have.
BASELINES = {
    "baseline": "batch",
    "baseline_min_count": 3,
    "double_right_verified": True,
    "double_flipped": True,
}


def parts(recipe: Recipe) -> dict[str, Any]:
    loss = recipe.loss
    others = ("ratio", "ratio_mean", "importance_level", "value_clip", "value_coefficient")
    return {
        **loss.terms._asdict(),
        "kl_coefficient": recipe.kl_coefficient,
        **{name: getattr(loss, name) for name in others},
        "gae_lambda": recipe.advantage.lambda_,
        "weighting": recipe.weighting,
        "min_group_std": recipe.min_group_std,
    }


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_set_replaces_the_row_and_nothing_else(name: str) -> None:
    assert {*SETTINGS, *BASELINES, "kl_place"} == set(RECIPE_KEYS) <= set(OVERRIDES)
    assert set(OVERRIDES) == {*parts(RECIPES[name]), *BASELINES, "kl_place"}
    for key, value in SETTINGS.items():
        expected = parts(RECIPES[name]) | {key: value}
        assert expected != parts(RECIPES[name]) or value == "segment"
        assert parts(under(recipe=name, **{key: value})) == expected


@pytest.mark.parametrize("name", RECIPES)
def test_keys_of_baselines_change_the_rows_that_have_them(name: str) -> None:
    changed = under(recipe=name, **BASELINES)
    expected = RECIPES[name].credit()
    if name == "s2r_process":
        assert expected == ContextBaselines(running=True, min_count=10)
        expected = ContextBaselines(False, 3, double_right_verified=True, double_flipped=True)
    assert changed.credit() == expected
    assert replace(changed, credit=RECIPES[name].credit) == RECIPES[name]
    assert under(recipe=name).credit is RECIPES[name].credit


def test_the_kl_moves_to_its_place() -> None:
    moved = under(recipe="rloo", kl_place="advantage")
    assert (moved.advantage.kl_coefficient, moved.loss.terms.kl_coefficient) == (0.01, 0.0)
    assert moved.advantage.kl_unit == "sequence" and moved.needs == {"reference"}
    moved = under(recipe="s2r_process", kl_place="loss", kl_coefficient=0.1)
    assert (moved.advantage.kl_coefficient, moved.loss.terms.kl_coefficient) == (0.0, 0.1)
    with pytest.raises(ValueError, match=r'kl_place = "advantage" is for recipes without a critic'):
        under(recipe="ppo", kl_place="advantage", kl_coefficient=0.1)


def test_the_coefficient_of_the_kl_decides_on_the_reference() -> None:
    assert under(recipe="ppo", kl_coefficient=0.1).needs == {"critic", "reference"}
    assert under(recipe="rloo", kl_coefficient=0.0).needs == frozenset()


def test_a_name_that_no_row_has_names_the_nearest() -> None:
    for wrong, near in (("grop", "grpo"), ("dr_grpo", "grpo"), ("GSPO", "gspo"), ("", "")):
        with pytest.raises(ValueError, match=f"reinforce.recipe = '{wrong}'.*nearest is '{near}"):
            effective_recipe(wrong, temperature=1.0)


def test_coefficients_are_those_of_the_papers() -> None:
    ppo, grpo, dr, gspo, rloo = (
        RECIPES[name] for name in ("ppo", "grpo", "grpo_no_std", "gspo", "rloo")
    )
    assert (ppo.advantage.gamma, ppo.advantage.lambda_, ppo.advantage.whiten) == (1.0, 0.95, True)
    assert ppo.credit() == Terminal() and ppo.loss.value_clip == 0.2
    for row in (ppo, grpo, dr, rloo):
        assert (row.loss.terms.clip_low, row.loss.terms.clip_high) == (0.2, 0.2)
        assert row.loss.ratio == "token"
    outcome, process = RECIPES["s2r_outcome"], RECIPES["s2r_process"]
    for row, unit, coefficient in ((outcome, "sequence", 0.01), (process, "segment", 0.05)):
        assert (row.loss.ratio, row.loss.ratio_mean, row.weighting) == (unit, True, unit)
        assert (row.advantage.kl_unit, row.advantage.kl_coefficient) == (unit, coefficient)
        assert (row.loss.terms.clip_low, row.loss.terms.clip_high) == (0.2, 0.2)
    assert outcome.credit() == LeaveOneOut() and process.min_group_std is None
    assert rloo.credit() == LeaveOneOut() and rloo.loss.terms.kl_coefficient == 0.01
    assert grpo.credit() == gspo.credit() == GroupMean(divide_by_std=True)
    assert (dr.credit(), dr.weighting) == (GroupMean(divide_by_std=False), "fixed")
    assert (gspo.loss.ratio, gspo.loss.ratio_mean, gspo.weighting) == ("sequence", True, "sequence")
    assert (gspo.loss.terms.clip_low, gspo.loss.terms.clip_high) == (3e-4, 4e-4)


def test_a_rule_is_made_for_each_run() -> None:
    def forgetful() -> GroupMean:
        return GroupMean()

    recipe = replace(RECIPES["grpo"], credit=forgetful)
    assert recipe.credit() is not recipe.credit()


def test_keys_that_a_recipe_does_not_use_are_found() -> None:
    keys = set(ReinforceConfig.model_fields)
    of_critic = ["critic_init", "critic_optimizer", "critic_warmup_steps"]
    of_critic += ["gae_lambda", "normalize_critic", "value_clip"]
    of_weights = ["importance_high", "importance_level", "importance_low"]
    rest = ["fixed_length", "kl_estimator", "kl_place", "ratio_mean", *BASELINES]
    # A critic learns from every group: nothing is dropped, nothing refilled.
    rounds = ["max_sampling_rounds"]
    assert unused_keys(RECIPES["ppo"], keys) == sorted(of_weights + rest + rounds)
    assert unused_keys(RECIPES["grpo"], keys) == sorted(of_critic + of_weights + rest)
    settings = {"weighting": "fixed", "ratio": "sequence", "kl_coefficient": 0.1}
    everything = under(recipe="ppo", importance="mask", min_group_std=0.0, **settings)
    assert unused_keys(everything, keys) == sorted(BASELINES)
    process = under(recipe="s2r_process", baseline="batch")
    assert unused_keys(process, {*BASELINES, "kl_place"}) == ["baseline_min_count"]
    assert unused_keys(RECIPES["gspo"], {"clip_low", "num_steps"}) == []
    config = ReinforceConfig.model_validate({"recipe": "grpo", "gae_lambda": 1.0, "clip_low": 0.1})
    assert config.changed_keys() == {"recipe", "gae_lambda", "clip_low"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_row_is_described_as_json(name: str) -> None:
    recipe = under(recipe=name, clip_dual=math.inf, value_clip=math.inf)
    text = json.dumps(recipe.described(), allow_nan=False)
    shown = json.loads(text)
    assert shown["loss"]["clip_dual"] == shown["loss"]["value_clip"] == "inf"
    assert shown["credit"]["rule"] == type(recipe.credit()).__name__
    assert shown["needs"] == sorted(recipe.needs) and shown["advantage"]["lambda"] == 0.95
    known = {**shown["loss"], "ratio": shown["ratio"], "ratio_mean": shown["ratio_mean"]}
    assert recipe.kl_coefficient == shown[recipe.kl_place]["kl_coefficient"]
    for key, value in {**parts(recipe), **recipe.loss.terms._asdict()}.items():
        if key in known and value != math.inf:
            assert known[key] == value
    assert (shown["weighting"], shown["min_group_std"]) == (recipe.weighting, recipe.min_group_std)


def test_a_row_cannot_lack_what_its_terms_need() -> None:
    grpo, ppo = RECIPES["grpo"], RECIPES["ppo"]
    with_kl = replace(grpo.loss, terms=grpo.loss.terms._replace(kl_coefficient=0.04))
    with pytest.raises(ValueError, match="reference"):
        replace(grpo, loss=with_kl)
    changed = replace(grpo, loss=with_kl, needs=grpo.needs | {"reference"})
    assert changed.loss.terms.kl_coefficient == 0.04
    with pytest.raises(ValueError, match="critic"):
        replace(ppo, needs=frozenset())


def test_the_table_is_frozen() -> None:
    with pytest.raises(TypeError):
        RECIPES["mine"] = RECIPES["grpo"]  # pyright: ignore[reportIndexIssue]
    with pytest.raises(FrozenInstanceError):
        Recipe.__setattr__(RECIPES["grpo"], "name", "mine")
