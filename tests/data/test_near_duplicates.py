# SPDX-License-Identifier: Apache-2.0
"""Near-duplicate questions: the same as comparing all pairs, and numbers count."""

from __future__ import annotations

import numpy as np
import pytest

from satori_fast.data.curation import LeftOut
from satori_fast.data.near_duplicates import (
    bands,
    distinct_questions,
    numbers_of,
    shingles,
    similarity,
)
from satori_fast.types import Problem

APPLES = (
    "Anna has {a} apples in a basket and buys {b} more apples at the market on her way home from "
    "school with her brother. How many apples does she have in the end?"
)


def problems(*questions: str) -> list[Problem]:
    return [Problem(str(number), question, "1") for number, question in enumerate(questions)]


def kept(*questions: str, threshold: float = 0.7) -> list[int]:
    left = distinct_questions(problems(*questions), threshold, LeftOut())
    return [int(problem.problem_id) for problem in left]


def test_shingles_by_hand() -> None:
    assert shingles("A b, c d e: F!") == {"a b c d e", "b c d e f"}
    assert shingles("Compute $2^3$") == {"compute 2 3"}
    assert shingles("\\sin 1{,}200 x y z") == {"\\sin 1200 x y z"}
    # Eight words each, all but the last the same: 3 of 5 shingles are shared.
    one, other = shingles("a b c d e f g h"), shingles("a b c d e f g i")
    assert similarity(one, other) == pytest.approx(3 / 5)


def test_numbers_by_hand() -> None:
    found = numbers_of("Two-digit: 1,200 + 3 + 3")
    assert found == (("+", 2), ("1200", 1), ("3", 2), ("two", 1))
    assert numbers_of("3 and 1200, + 3 two, plus +") == found
    assert numbers_of("half of x-y, twice 0.5") == (("0.5", 1), ("half", 1), ("twice", 1))
    assert numbers_of("$x - 1$") != numbers_of("$x + 1$")


def test_a_template_filled_with_other_numbers_is_another_question() -> None:
    filled = [APPLES.format(a=2, b=3), APPLES.format(a=2, b=4), APPLES.format(a=3, b=3)]
    assert similarity(*map(shingles, filled[:2])) > 0.6
    assert kept(*filled, threshold=0.3) == [0, 1, 2]
    assert kept(*(APPLES.format(a=a, b=3) for a in ("two", "five")), threshold=0.3) == [0, 1]


def test_the_first_of_nearly_equal_words_stays() -> None:
    first = APPLES.format(a=2, b=3)
    later = first.replace("Anna", "ANNA,").replace("basket", "box")
    other = "What is the area of a triangle with sides 2 and 3 and a right angle between them?"
    assert similarity(shingles(first), shingles(later)) >= 0.6
    assert kept(first, other, later, threshold=0.6) == [0, 1]
    assert kept(later, other, first, threshold=0.6) == [0, 1]
    assert kept(first, other, later, threshold=0.95) == [0, 1, 2]
    # In other words: the same question, and another text.
    assert kept(first, "Anna owns 2 apples and gets 3 more. How many is that?") == [0, 1]


def test_what_repeats_goes_into_the_books_beside_what_it_repeats() -> None:
    left_out, first = LeftOut(), APPLES.format(a=2, b=3)
    distinct_questions(problems(first, first.upper(), first + "!"), 0.7, left_out)
    assert left_out.counts == {"near_duplicate": 2}
    example = left_out.examples["near_duplicate"]
    assert example["problem_id"] == "1" and example["detail"].startswith("repeats 0: Anna has 2")


def test_as_comparing_all_pairs() -> None:
    """Random texts, each changed in some words: what buckets find is what all pairs show, but for
    one pair in a hundred at the threshold."""
    rng = np.random.default_rng(5)
    words = np.array([f"{a}{b}" for a in "bcdfgh" for b in "aeiou"])
    texts: list[str] = []
    for _ in range(40):
        text = rng.choice(words, size=40)
        for _ in range(5):
            changed = np.where(rng.random(40) < rng.choice([0.0, 0.02, 0.05, 0.1]), "xx", text)
            texts.append(" ".join(changed))
    order = rng.permutation(len(texts))
    texts = [texts[i] for i in order]
    sets = [shingles(text) for text in texts]
    expected: list[int] = []
    for place, own in enumerate(sets):
        if not any(similarity(own, sets[early]) >= 0.7 for early in expected):
            expected.append(place)
    found = kept(*texts)
    assert 40 < len(expected) < 150
    assert len(set(found) ^ set(expected)) <= 2
    assert kept(*texts) == found


def test_bands_find_99_of_100_pairs_at_the_threshold() -> None:
    assert bands(0.7) == (32, 4)
    for threshold in (0.05, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0):
        number, length = bands(threshold)
        assert number * length <= 128
        found = 1 - (1 - threshold**length) ** number
        assert found >= 0.99 or length == 1
