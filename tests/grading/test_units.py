# SPDX-License-Identifier: Apache-2.0
"""Splitting units from values, and which units agree."""

from __future__ import annotations

from fractions import Fraction

import pytest

from satori_fast.grading.spelling import clean
from satori_fast.grading.units import quantity, same_unit


@pytest.mark.parametrize(
    ("text", "value", "scale", "unit"),
    [
        (r"5\text{ cm}", "5", Fraction(1, 100), {"m": 1}),
        (r"5\,\mathrm{km}", "5", 1000, {"m": 1}),
        (r"5\text{ cm}^2", "5", Fraction(1, 10_000), {"m": 2}),
        (r"5\text{ square meters}", "5", 1, {"m": 2}),
        (r"5\text{ meters squared}", "5", 1, {"m": 2}),
        (r"9.8\text{ m/s}^2", "9.8", 1, {"m": 1, "s": -2}),
        (r"60\text{ miles per hour}", "60", Fraction(1397, 3125), {"m": 1, "s": -1}),
        (r"\frac{\pi}{2}\text{ radians}", r"\frac{\pi}{2}", 1, {"radian": 1}),
        ("60^\\circ", "60", 1, {"degree": 1}),
        (r"20^\circ\text{C}", "20", 1, {"degree C": 1}),
        (r"\$1,200", "1,200", 1, {"dollar": 1}),
        (r"50\text{ cents}", "50", Fraction(1, 100), {"dollar": 1}),
        ("5 apples", "5", 1, {"apple": 1}),
        (r"1.5\text{ million}", "1.5", 10**6, {}),
        ("3 dozen eggs", "3", 12, {"egg": 1}),
        ("2ft", "2", Fraction(381, 1250), {"m": 1}),
        ("5th", "5", 1, {}),
        (r"10\text{ units}", "10", 1, {}),
    ],
)
def test_units_are_split_off(
    text: str, value: str, scale: Fraction | int, unit: dict[str, int]
) -> None:
    found = quantity(clean(text))
    assert (found.value, found.scale, dict(found.unit)) == (value, scale, unit)


@pytest.mark.parametrize(
    "text",
    [
        "3m",
        "12k",
        "5 x",
        "5xyz",
        "3 mod 7",
        r"2\pi h",
        r"5\text{ or more}",
        r"5\text{ squared}",
        r"\text{not }5",
        r"\text{(C)}",
        r"5\text{ apples and }3\text{ pears}",
        r"\tan 45^\circ",
        "5" + r"\text{ a}" * 50,
    ],
)
def test_what_is_no_unit(text: str) -> None:
    assert quantity(clean(text)).value == clean(text)


def test_bare_letters_are_units_only_where_they_may_be() -> None:
    assert quantity("12m", letters=True).unit == (("m", 1),)
    assert quantity("12k", letters=True).value == "12k"
    assert quantity("12m").value == "12m"


def test_percent_and_times_of_the_day() -> None:
    assert quantity(r"50\%").percent
    assert quantity(clean("12.5 percent")).value == "12.5"
    assert quantity("3:45 PM").binding
    assert not quantity("3:45").binding


def test_units_agree_or_not() -> None:
    def agree(a: str, b: str) -> bool:
        return same_unit(quantity(clean(a)), quantity(clean(b)))

    assert agree("5 small bottles", "5 bottles")
    assert agree("5 apples", "5 apple")
    assert agree("5 km", "5 cm")  # one dimension; the scale decides
    assert not agree("5 apples", "5 pears")
    assert not agree("5 kg", "5 cm")
    assert not agree("5 cm", r"5\text{ cm}^2")
