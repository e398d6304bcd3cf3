# SPDX-License-Identifier: Apache-2.0
"""Intervals of plain expressions: they hold what the parser reads, and doubt is left open."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.grading.algebra import UnreadableError, parse, same_expression
from satori_fast.grading.enclosures import enclosure, surely_different
from satori_fast.grading.spelling import clean, number
from tests.grading.test_verdict import golds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\frac{3\sqrt{2}}{4}", 3 * math.sqrt(2) / 4),
        (r"-2^{10}+\pi", math.pi - 1024),
        (r"70 \sqrt{3}", 70 * math.sqrt(3)),
        (r"\left(1-\sqrt{2}\right)(1+\sqrt{2})", -1.0),
        (r"2\cdot3-4\times0.5", 4.0),
        (r"\pi/4", math.pi / 4),
        (r"10^{-3}", 1e-3),
        ("(2+3)^2", 25.0),
    ],
)
def test_the_interval_holds_the_value_and_is_narrow(text: str, value: float) -> None:
    found: Any = enclosure(text)
    assert found.a <= value + 1e-13 and value - 1e-13 <= found.b
    assert float(found.delta.b) <= 1e-12 * max(1.0, abs(value))


@pytest.mark.parametrize(
    "text",
    [
        "10 000",
        r"1\frac{1}{2}",
        "1/2x",
        "1/2/x",
        "x(x+1)",
        "x^12",
        "x^{12}^2",
        "3+",
        "(1",
        "1)",
        "sin",
        "e^2",
        "2+3i",
        r"\sqrt{1-2}",
        r"\sqrt{x-x}",
        r"\frac{1}{x-x}",
        r"\sqrt2",
        r"\text{east}",
        "x=5",
        "1,2",
        "",
        "2^{99}",
        "2^{-}",
        "2^{0.5}",
        "(" * 150 + "1" + ")" * 49,
        "1+" * 200 + "1",
    ],
)
def test_what_has_two_readings_or_no_value_is_left_open(text: str) -> None:
    assert enclosure(text) is None
    assert not surely_different(text, "7")
    assert not surely_different("7", text)


def test_different_values_are_told_and_close_ones_are_not() -> None:
    assert surely_different(r"\sqrt{2}", "1.4142135")
    assert surely_different("x^2+2x+1", "(x+1)^2+0.001")
    assert not surely_different("x^2+2x+1", "(x+1)^2")
    assert not surely_different(r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}")
    # Far closer than the rounding of what they are made of: the exact comparison decides.
    assert not surely_different(r"10^{20}\cdot\pi+1-10^{20}\cdot\pi", "2")
    assert not same_expression(r"10^{20}\cdot\pi+1-10^{20}\cdot\pi", "2")
    assert surely_different(r"5\pi", r"\pi", ratio=Fraction(4))
    assert not surely_different(r"5\pi", r"\pi", ratio=Fraction(5))
    assert surely_different("x", "y")


def expressions() -> st.SearchStrategy[str]:
    """Texts of the small grammar, deep enough to have every rule in every place."""
    plain = st.sampled_from(["0", "1", "2", "7", "0.5", "12", "x", "y", "a", r"\pi", "xy", "3x"])

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(inner, st.sampled_from(["+", "-", " + "]), inner).map("".join),
            st.tuples(inner, inner).map(lambda ab: rf"\frac{{{ab[0]}}}{{{ab[1]}}}"),
            st.tuples(inner, inner).map(lambda ab: f"({ab[0]})({ab[1]})"),
            st.tuples(inner, inner).map(lambda ab: rf"{ab[0]} \cdot {ab[1]}"),
            inner.map(lambda a: rf"\sqrt{{{a}}}"),
            inner.map(lambda a: rf"4\sqrt{{{a}}}"),
            inner.map(lambda a: f"({a})^2"),
            inner.map(lambda a: f"({a})^{{-3}}"),
            inner.map(lambda a: f"-{a}"),
            inner.map(lambda a: f"{a}/3"),
        )

    return st.recursive(plain, larger, max_leaves=5)


def agrees_with_the_parser(text: str) -> bool:
    """Whether the exact value at the same point lies in the interval; True where there is none."""
    found: Any = enclosure(text)
    try:
        expression = parse(text)
    except UnreadableError:
        return True
    if found is None:
        return True
    names = {symbol: symbol.name for symbol in expression.free_symbols}
    point = {symbol: _value_of(name) for symbol, name in names.items()}
    value = sympy.N(expression.subs(point), 30)
    return bool(abs(value - sympy.Float(str(float(found.mid)), 30)) <= 1e-9 * (1 + abs(value)))


def _value_of(letter: str) -> sympy.Float:
    middle: Any = enclosure(letter)
    return sympy.Float(str(float(middle.mid)), 30)


@settings(max_examples=150)
@given(expressions())
def test_the_reading_is_the_parsers(text: str) -> None:
    assert agrees_with_the_parser(clean(text))


def test_the_readings_of_published_golds_are_the_parsers(data_dir: Any) -> None:
    texts = {clean(gold) for _, gold in golds(data_dir)}
    read = [text for text in texts if number(text) is None and enclosure(text) is not None]
    assert len(read) > 100
    assert [text for text in read if not agrees_with_the_parser(text)] == []
