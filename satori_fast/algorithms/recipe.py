# SPDX-License-Identifier: Apache-2.0
"""The table of methods: an algorithm is a row, not a class.

A row names a credit rule, an advantage rule, a weighting, a loss, and what it needs. The rows are
what runs: a config replaces a number only by setting it (`effective_recipe`). Other methods are
settings of a row: DAPO is `grpo` with weighting "token" and a higher `clip_high`.

In every row a token of negative advantage whose ratio has run away is bounded (`clip_dual` 3, arXiv
1912.09729): without it one stale token can be the whole gradient. The papers of `grpo_no_std` and
`gspo` have no such bound, and their ratios stay far below it.

Not for anything a run chooses (learning rates, lengths, numbers of samples): that is the config.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from satori_fast.algorithms.advantages import AdvantageRule
from satori_fast.algorithms.baselines import ContextBaselines
from satori_fast.algorithms.credit import CreditRule, GroupMean, LeaveOneOut, Terminal
from satori_fast.algorithms.losses import PolicyLoss
from satori_fast.kernels import PolicyTerms
from satori_fast.types import Weighting

Need = Literal["critic", "reference"]
KLPlace = Literal["loss", "advantage"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One method of training on trajectories.

    name:          its key in `RECIPES`.
    paper:         where the coefficients come from.
    credit:        makes the credit rule of a run, a new one each time: a rule may remember.
    advantage:     rule of `advantages.estimate_advantages`.
    weighting:     of `data.packing.pack`: "token", "sequence", "segment" or "fixed".
    loss:          of policy and critic. `loss.temperature` is 1; set it to the sampler's.
    needs:         models that must be there: "critic", "reference".
    min_group_std: groups whose rewards have a standard deviation of at most this carry no signal
                   and are dropped; None keeps every group (a critic learns from all).
    """

    name: str
    paper: str
    credit: Callable[[], CreditRule]
    advantage: AdvantageRule
    weighting: Weighting
    loss: PolicyLoss
    needs: frozenset[Need] = frozenset()
    min_group_std: float | None = None

    def __post_init__(self) -> None:
        if self.advantage.kind == "gae" and "critic" not in self.needs:
            raise ValueError(f'recipe {self.name!r}: advantage "gae" needs "critic" in needs')
        if self.kl_coefficient and "reference" not in self.needs:
            raise ValueError(
                f"recipe {self.name!r}: kl_coefficient {self.kl_coefficient} needs "
                '"reference" in needs'
            )
        if self.advantage.kl_coefficient and self.advantage.kind != "spread":
            raise ValueError(
                f'reinforce.kl_place = "advantage" is for recipes without a critic, not '
                f'{self.name!r}: set it to "loss"'
            )

    @property
    def kl_place(self) -> KLPlace:
        """Place where the KL to the reference enters."""
        return "advantage" if self.advantage.kl_coefficient else "loss"

    @property
    def kl_coefficient(self) -> float:
        """Weight of the KL to the reference, wherever it enters."""
        return self.advantage.kl_coefficient or self.loss.terms.kl_coefficient

    def described(self) -> dict[str, Any]:
        """The row as JSON: what `satori-fast show CONFIG --recipe` prints; inf is "inf"."""
        rule = self.credit()
        terms = {name: number for name, number in asdict(self.loss).items() if name != "terms"}
        ratio = {name: terms.pop(name) for name in ("ratio", "ratio_mean")}
        described = {
            "name": self.name,
            "paper": self.paper,
            "credit": {"rule": type(rule).__name__, **_settings(rule)},
            "advantage": {name.rstrip("_"): x for name, x in asdict(self.advantage).items()},
            "weighting": self.weighting,
            **ratio,
            "loss": self.loss.terms._asdict() | terms,
            "needs": sorted(self.needs),
            "min_group_std": self.min_group_std,
        }
        return _without_infinities(described)


# The range is what `importance` clamps to where a config switches it on.
_TERMS = PolicyTerms(clip_dual=3.0, importance_high=2.0)
_ROWS = (
    Recipe(
        name="ppo",
        paper="Satori (arXiv 2502.02508) appendix D.3; gamma, lambda, clips from its code",
        credit=Terminal,
        advantage=AdvantageRule("gae", gamma=1.0, lambda_=0.95, whiten=True),
        weighting="token",
        loss=PolicyLoss(_TERMS, value_clip=0.2),
        needs=frozenset({"critic"}),
    ),
    Recipe(
        name="grpo",
        paper="DeepSeekMath (arXiv 2402.03300), without KL as in SRL (arXiv 2510.25992) table 7",
        credit=partial(GroupMean, divide_by_std=True),
        advantage=AdvantageRule("spread"),
        weighting="sequence",
        loss=PolicyLoss(_TERMS),
        min_group_std=1e-6,
    ),
    Recipe(
        name="grpo_no_std",
        paper="Dr.GRPO (arXiv 2503.20783): no standard deviation, no length of a response",
        credit=partial(GroupMean, divide_by_std=False),
        advantage=AdvantageRule("spread"),
        weighting="fixed",
        loss=PolicyLoss(_TERMS),
        min_group_std=1e-6,
    ),
    Recipe(
        name="gspo",
        paper="GSPO (arXiv 2507.18071) eq. 5 and 7, clips of section 5.1",
        credit=partial(GroupMean, divide_by_std=True),
        advantage=AdvantageRule("spread"),
        weighting="sequence",
        loss=PolicyLoss(
            _TERMS._replace(clip_low=3e-4, clip_high=4e-4), ratio="sequence", ratio_mean=True
        ),
        min_group_std=1e-6,
    ),
    # k2 as a loss: its gradient on policy is log(pi / pi_ref) grad log pi, each token's own share,
    # where that of k1 would average to zero.
    Recipe(
        name="rloo",
        paper="RLOO (arXiv 2402.14740), with the KL as a loss term",
        credit=LeaveOneOut,
        advantage=AdvantageRule("spread"),
        weighting="sequence",
        loss=PolicyLoss(_TERMS._replace(kl_coefficient=0.01, kl_estimator="k2")),
        needs=frozenset({"reference"}),
        min_group_std=1e-6,
    ),
    # S2R's coefficient is 0.01 for Qwen2.5-Math and 0.05 for its other models. Its equations have
    # the product of a unit's ratios; its code has their geometric mean, which does not grow with
    # length. Groups without a difference are dropped: the code masks them too, the paper keeps
    # their KL.
    Recipe(
        name="s2r_outcome",
        paper="S2R (arXiv 2502.12853) outcome level: ratio and KL of the response",
        credit=LeaveOneOut,
        advantage=AdvantageRule("spread", kl_coefficient=0.01, kl_unit="sequence"),
        weighting="sequence",
        loss=PolicyLoss(_TERMS, ratio="sequence", ratio_mean=True),
        needs=frozenset({"reference"}),
        min_group_std=1e-6,
    ),
    # Its baselines span problems, so that no group is without a signal.
    Recipe(
        name="s2r_process",
        paper="S2R (arXiv 2502.12853) process level: reward, baseline, KL and ratio of each action",
        credit=partial(ContextBaselines, running=True, min_count=10),
        advantage=AdvantageRule("spread", kl_coefficient=0.05, kl_unit="segment"),
        weighting="segment",
        loss=PolicyLoss(_TERMS, ratio="segment", ratio_mean=True),
        needs=frozenset({"reference"}),
    ),
    # Rewards are similarities: equal ones differ in the last digits. The paper does not say how
    # far apart they must be.
    Recipe(
        name="srl",
        paper="SRL (arXiv 2510.25992) equation 1 and table 7: GRPO without KL on similarities",
        credit=partial(GroupMean, divide_by_std=True),
        advantage=AdvantageRule("spread"),
        weighting="sequence",
        loss=PolicyLoss(_TERMS),
        min_group_std=0.01,
    ),
)

RECIPES: Mapping[str, Recipe] = MappingProxyType({row.name: row for row in _ROWS})

# What a config may replace of a row, by the part that holds it; lambda is a word of Python.
_OWN_PLACE = ("terms", "temperature", "advantage_kl", "advantage_kl_unit")
_LOSS_KEYS = tuple(f.name for f in fields(PolicyLoss) if f.name not in _OWN_PLACE)
_ROW_KEYS = ("weighting", "min_group_std")
_BASELINE_KEYS = ("baseline", "baseline_min_count", "double_right_verified", "double_flipped")
OVERRIDES = (
    *PolicyTerms._fields,
    *_LOSS_KEYS,
    *_ROW_KEYS,
    *_BASELINE_KEYS,
    "gae_lambda",
    "kl_place",
)


def effective_recipe(name: str, *, temperature: float, **overrides: Any) -> Recipe:
    """The row of that name, with those of `overrides` that are not None in the place of its own.

    temperature: of the sampler, above 0. overrides: by the names in `OVERRIDES`. A KL coefficient
    above 0 adds "reference" to the needs, 0 takes it out; it is that of `kl_place`, the row's own
    unless given. Keys of baselines change rows that have them, and no others.

    ValueError for a name that no row has, with the nearest.
    """
    row = _row(name)
    wrong = sorted(set(overrides) - set(OVERRIDES))
    assert not wrong, wrong
    given = {key: value for key, value in overrides.items() if value is not None}

    def chosen(names: Collection[str]) -> dict[str, Any]:
        return {key: given[key] for key in names if key in given}

    place = given.get("kl_place", row.kl_place)
    kl = given.pop("kl_coefficient", row.kl_coefficient)
    in_loss, in_advantage = (kl, 0.0) if place == "loss" else (0.0, kl)
    terms = row.loss.terms._replace(**chosen(PolicyTerms._fields), kl_coefficient=in_loss)
    loss = replace(row.loss, terms=terms, temperature=temperature, **chosen(_LOSS_KEYS))
    advantage = replace(row.advantage, kl_coefficient=in_advantage)
    if "gae_lambda" in given:
        advantage = replace(advantage, lambda_=given["gae_lambda"])
    needs: set[Need] = set(row.needs)
    needs.discard("reference")
    if kl:
        needs.add("reference")
    return replace(
        row,
        credit=_credit(row, chosen(_BASELINE_KEYS)),
        advantage=advantage,
        loss=loss,
        needs=frozenset(needs),
        **chosen(_ROW_KEYS),
    )


def _credit(row: Recipe, given: dict[str, Any]) -> Callable[[], CreditRule]:
    if not given or not isinstance(row.credit(), ContextBaselines):
        return row.credit
    if "baseline" in given:
        given["running"] = given.pop("baseline") == "running"
    if "baseline_min_count" in given:
        given["min_count"] = given.pop("baseline_min_count")
    return partial(row.credit, **given)


def unused_keys(recipe: Recipe, keys: Collection[str]) -> list[str]:
    """Names among `keys`, of a config's section `reinforce`, that change nothing under `recipe`,
    sorted."""
    loss = recipe.loss
    idle: set[str] = set()
    if "critic" not in recipe.needs:
        idle |= {"value_clip", "value_coefficient", "critic_optimizer", "critic_init"}
        idle |= {"normalize_critic", "critic_warmup_steps"}
    if recipe.advantage.kind != "gae":
        idle.add("gae_lambda")
    if recipe.min_group_std is None:
        idle.add("max_sampling_rounds")  # nothing is dropped, so nothing is refilled
    if not loss.terms.kl_coefficient:
        idle.add("kl_estimator")
    if not recipe.kl_coefficient:
        idle.add("kl_place")
    rule = recipe.credit()
    if not isinstance(rule, ContextBaselines):
        idle |= set(_BASELINE_KEYS)
    elif not rule.running:
        idle.add("baseline_min_count")
    if loss.terms.importance == "none":
        idle |= {"importance_level", "importance_low", "importance_high"}
    if loss.ratio == "token":
        idle.add("ratio_mean")
    if recipe.weighting != "fixed":
        idle.add("fixed_length")
    return sorted(idle & set(keys))


def _row(name: str) -> Recipe:
    if name not in RECIPES:
        near = difflib.get_close_matches(name.lower(), RECIPES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"reinforce.recipe = {name!r}: there is no such recipe; the nearest is {near!r} "
            f"(of {', '.join(RECIPES)})"
        )
    return RECIPES[name]


def _settings(rule: CreditRule) -> dict[str, Any]:
    """The settings of a credit rule, without what it remembers."""
    own = fields(rule) if is_dataclass(rule) else ()
    return {field.name: getattr(rule, field.name) for field in own if field.init}


def _without_infinities(value: Any) -> Any:
    """JSON has no number for them."""
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return str(value) if isinstance(value, float) and math.isinf(value) else value
