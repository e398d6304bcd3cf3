# SPDX-License-Identifier: Apache-2.0
"""Intervals, inequalities and unions as sets of real numbers."""

from __future__ import annotations

import pytest

from satori_fast.grading.forms import read
from satori_fast.grading.regions import region_of, same_region
from satori_fast.grading.spelling import clean


def same(a: str, b: str) -> bool:
    first, second = region_of(read(clean(a))), region_of(read(clean(b)))
    return first is not None and second is not None and same_region(first, second)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("x > 1", r"(1, \infty)"),
        (r"x \leq 1", r"(-\infty, 1]"),
        (r"1 < x \leq 2", "(1, 2]"),
        (r"2 \geq x > 1", "(1, 2]"),
        (r"x < 1 \text{ or } x > 2", r"(-\infty,1) \cup (2,\infty)"),
        (r"x > 1 \text{ and } x < 2", "1 < x < 2"),
        (r"[0,1] \cup [1,2]", "[0,2]"),
        (r"[0,1) \cup [1,2]", "[0,2]"),
        (r"[0,3] \cup [1,2]", "[0,3]"),
        (r"[0,2] \cap (1,3)", "(1,2]"),
        (r"\mathbb{R} \setminus \{1\}", r"x \neq 1"),
        (r"\mathbb{R} \setminus \{1, 2\}", r"(-\infty,1) \cup (1,2) \cup (2,\infty)"),
        (r"\{x \mid x > 3\}", "x > 3"),
        (r"[\sqrt{8}, 3]", r"[2\sqrt{2}, 3]"),
        (r"(a, a+1]", r"a < x \leq 1+a"),
        (r"\mathbb{R}", r"(-\infty, \infty)"),
        (r"(0,1) \cap (2,3)", r"\emptyset"),
    ],
)
def test_same_sets(a: str, b: str) -> None:
    assert same(a, b)
    assert same(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("x > 1", r"x \geq 1"),
        ("x > 1", "y > 1"),
        ("(1,2)", "(1,2)"),  # both may be points: their items decide, not their insides
        (r"[0,1) \cup (1,2]", "[0,2]"),
        (r"(1,2) \cup (3,4)", "(1,4)"),
        (r"\{x \mid x > 3\}", r"\{y \mid y < 3\}"),
        (r"\mathbb{Z}", r"\mathbb{R}"),
        ("x > 1, y > 1", "x > 1"),
    ],
)
def test_different_sets(a: str, b: str) -> None:
    assert not same(a, b)
