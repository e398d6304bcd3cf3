# SPDX-License-Identifier: Apache-2.0
"""Behaviour of the similarity reward on an expert's own steps, for the choice of `granularity`.

What no model has to be asked for: an action is made from the target, or from another one, in a way
whose worth is known beforehand. Unrelated text should earn little, and a slip less than the step as
it is; what a copied title earns is given away. Not for the rewards of a policy (`similarity`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from satori_fast.data.formats.steps import StepDialect
from satori_fast.kernels import sequence_similarity
from satori_fast.rewards.similarity import (
    Granularity,
    SimilarityReward,
    step_target,
    word_numbers,
)
from satori_fast.types import Problem

Case = Literal["itself", "digit", "half", "double", "title", "unrelated"]
MAX_TARGETS = 512
_LAST_DIGIT = re.compile(r"[0-9](?=[^0-9]*$)")


@dataclass(frozen=True, slots=True)
class CaseSimilarity:
    """Similarity of one kind of action over the targets that it can be made for.

    std: population standard deviation. num_targets: how many those are, at least 1.
    """

    mean: float
    std: float
    num_targets: int


@dataclass(frozen=True, slots=True)
class GranularityBehaviour:
    """Similarities with one kind of elements.

    num_targets, median_length, longest: of the targets, lengths in elements.
    cases: by kind of action. itself: the target. digit: with its last digit raised by one (9 to 0).
           half: its first half, by elements, rounded down. double: the target and an unrelated one.
           title: its number and title alone. unrelated: the target of another problem. Kinds that
           no target allows are left out.
    """

    granularity: Granularity
    num_targets: int
    median_length: float
    longest: int
    cases: Mapping[Case, CaseSimilarity]


@dataclass(frozen=True, slots=True)
class SimilarityBehaviour:
    """Similarities of the same steps in each granularity."""

    autojunk: bool
    rows: tuple[GranularityBehaviour, ...]

    def as_rows(self) -> list[dict[str, Any]]:
        """The rows for JSON, each with its cases by name."""
        return [{"autojunk": self.autojunk, **asdict(row)} for row in self.rows]


def similarity_behaviour(
    problems: Sequence[Problem],
    *,
    dialect: StepDialect,
    encode: Callable[[str], list[int]],
    autojunk: bool = False,
) -> SimilarityBehaviour:
    """Measure the reward on the targets of step problems, in their order; the same ones always.

    problems: at most `MAX_TARGETS` of those with a target are taken, evenly spread. The unrelated
              target is the one half of them further on; pairs of equal texts are left out.
    dialect:  what wrote the targets. A title that the prompt tells is no part of them.
    encode:   text to token ids.

    ValueError where no problem has a target.
    """
    asked = [problem for problem in problems if step_target(problem)]
    if not asked:
        raise ValueError("no step problem with a target: there is nothing to compare")
    number = min(len(asked), MAX_TARGETS)
    asked = [asked[i * len(asked) // number] for i in range(number)]
    texts = _actions(asked, dialect)
    return SimilarityBehaviour(
        autojunk,
        tuple(
            _behaviour(SimilarityReward(granularity, autojunk, encode=encode), texts)
            for granularity in get_args(Granularity)
        ),
    )


def _actions(asked: Sequence[Problem], dialect: StepDialect) -> dict[Case, list[str]]:
    """Each kind of action for each problem, "" where it cannot be made; without those that are cut
    by elements."""
    targets = [step_target(problem) or "" for problem in asked]
    half = len(targets) // 2
    others = [
        "" if other == target else other
        for target, other in zip(targets, targets[half:] + targets[:half], strict=True)
    ]
    return {
        "itself": targets,
        "digit": [
            _LAST_DIGIT.sub(_next_digit, t) if _LAST_DIGIT.search(t) else "" for t in targets
        ],
        "double": [
            f"{t} {other}" if other else "" for t, other in zip(targets, others, strict=True)
        ],
        "title": [
            "" if problem.prefix and problem.prefix.title else dialect.heading(target)
            for problem, target in zip(asked, targets, strict=True)
        ],
        "unrelated": others,
    }


def _next_digit(digit: re.Match[str]) -> str:
    return str((int(digit.group()) + 1) % 10)


def _behaviour(
    reward: SimilarityReward, texts: Mapping[Case, Sequence[str]]
) -> GranularityBehaviour:
    numbers = word_numbers()
    actions = {case: [reward.elements(t, numbers) for t in own] for case, own in texts.items()}
    targets = actions["itself"]
    actions["half"] = [target[: len(target) // 2] for target in targets]
    measured = {
        case: _similarity(actions[case], targets, autojunk=reward.autojunk)
        for case in get_args(Case)
    }
    lengths = [len(target) for target in targets]
    return GranularityBehaviour(
        reward.granularity,
        num_targets=len(targets),
        median_length=float(np.median(lengths)),
        longest=max(lengths),
        cases={case: figures for case, figures in measured.items() if figures is not None},
    )


def _similarity(
    actions: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], *, autojunk: bool
) -> CaseSimilarity | None:
    """Over the actions that are not empty; None where all are."""
    pairs = [pair for pair in zip(actions, targets, strict=True) if all(pair)]
    if not pairs:
        return None
    values = sequence_similarity(*zip(*pairs, strict=True), autojunk=autojunk)
    return CaseSimilarity(float(values.mean()), float(values.std()), len(pairs))
