# SPDX-License-Identifier: Apache-2.0
"""Drawing and splitting, on a domain of twelve problems that can be counted.

The built-in domains' own problems are in `test_arithmetic` and `test_chains`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest

from satori_fast.data.drawn_problems import HELDOUT_FRACTION, DrawnProblems, is_held_out


@dataclass(frozen=True)
class Letter:
    question: str

    @property
    def answer(self) -> str:
        return self.question.upper()

    @property
    def heldout(self) -> bool:
        return self.question in "aeiou"


class Letters(DrawnProblems):
    """Level 1: a to e; level 2: f to l."""

    name = "letters"

    def known_levels(self) -> list[int]:
        return [1, 2]

    def draw(self, level: int, rng: np.random.Generator) -> Letter:
        return Letter(rng.choice(list({1: "abcde", 2: "fghijkl"}[level])))


def test_every_problem_of_a_split_is_drawn_and_no_other() -> None:
    train = Letters(9, levels=[1, 2, 2], split="train", seed=3)
    assert {p.question for p in train if p.level == "1"} == set("bcd")
    assert {p.question for p in train if p.level == "2"} == set("fghjkl")
    assert len(train) == 9 and len(train[2:4]) == 2
    assert [p.problem_id for p in train[:2]] == ["letters-1/train/0", "letters-2/train/1"]
    assert all(p.answer == p.question.upper() and p.prefix is None for p in train)
    heldout = Letters(2, levels=[1], split="heldout", seed=0)
    assert {p.question for p in heldout} == set("ae")


def test_a_level_that_is_used_up_is_named() -> None:
    message = "level 1 has too few different heldout problems for 3: lower the number or add"
    with pytest.raises(ValueError, match=message):
        Letters(3, levels=[1], split="heldout", seed=0)


@pytest.mark.parametrize(("levels", "named"), [([], "no entry"), ([1, 7, 0], r"\[0, 7\]")])
def test_unknown_levels(levels: list[int], named: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.levels has {named}: choose from \[1, 2\]"):
        Letters(1, levels=levels, split="train", seed=0)


def test_draws_depend_on_seed_level_and_split() -> None:
    def questions(**settings: object) -> list[str]:
        given = {"levels": [2], "split": "train", "seed": 0} | settings
        return [p.question for p in Letters(5, **given)]  # type: ignore[arg-type]

    assert questions() == questions()
    assert any(questions() != questions(seed=seed) for seed in range(1, 4))
    assert [p.question for p in Letters(6, levels=[2, 1], split="train", seed=0)][::2] == (
        questions()[:3]
    )


def test_a_fifth_is_held_out_by_the_hash_of_its_content() -> None:
    contents = [f"content {i}" for i in range(2000)]
    first_bytes = [hashlib.sha256(c.encode()).hexdigest()[:8] for c in contents]
    held = [is_held_out(c) for c in contents]
    assert held == [int(digits, 16) / 2**32 < 0.2 for digits in first_bytes]
    assert abs(np.mean(held) - HELDOUT_FRACTION) < 4 * np.sqrt(0.2 * 0.8 / 2000)
