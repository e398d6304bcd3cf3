# SPDX-License-Identifier: Apache-2.0
"""Exact comparison of expressions and equations, and what the parser is kept from misreading."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.grading.algebra import (
    UnreadableError,
    check,
    is_number,
    ordering_value,
    parse,
    same_equation,
    same_expression,
)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("(x+1)^2", "x^2+2x+1"),
        (r"\sin^2 x + \cos^2 x", "1"),
        (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"),
        (r"2^{64}-1", "18446744073709551615"),
        (r"\frac{1}{2^{99}}", r"2^{-99}"),
        (r"\tan 45^\circ", "1"),
        (r"2(3)", "6"),
        (r"\frac{4}{2}(3)", "6"),
        (r"1\frac{1}{2}x", r"\frac{3}{2}x"),
        (r"0.\overline{3}x", r"\frac{x}{3}"),
        ("(1+i)^2", "2i"),
        (r"\gamma+1", r"1+\gamma"),
        (r"\ln e^3", "3"),
        (r"\log_2 8", "3"),
        (r"\sum_{k=1}^{4} k", "10"),
        (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"),
        (r"\int_0^1 x^2 dx", r"\frac{1}{3}"),
    ],
)
def test_same_expressions(a: str, b: str) -> None:
    assert same_expression(a, b)
    assert same_expression(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
        (r"10^{50}x", r"(10^{50}+1)x"),
        (r"3^{200}", r"3^{200}+1"),
        (r"\sqrt{x^2}", "x"),
        (r"\sqrt{2}", "1.4142135623730951"),
        ("2(3)", "5"),
        ("x", "X"),
        ("i", "I"),
        ("xy", "x"),
        (r"\ln 2", r"\log 2"),
        (r"\frac{1}{0}", r"\frac{2}{0}"),
        (r"\infty", r"-\infty"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "1"),
    ],
)
def test_different_expressions(a: str, b: str) -> None:
    assert not same_expression(a, b)
    assert not same_expression(b, a)


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**30), st.integers(-1, 1))
@settings(max_examples=50, deadline=None)
def test_fractions_differ_by_their_last_digit(top: int, bottom: int, offset: int) -> None:
    a, b = rf"\frac{{{top}}}{{{bottom}}}+0", rf"0+\frac{{{top + offset}}}{{{bottom}}}"
    assert same_expression(a, b) is (offset == 0)


def test_ratio() -> None:
    assert same_expression("50", "0.5", ratio=Fraction(100))
    assert same_expression(r"50\pi", r"\frac{\pi}{2}", ratio=Fraction(100))
    assert not same_expression("50", "0.5", ratio=Fraction(10))


def test_equations_up_to_a_factor() -> None:
    assert same_equation(("6x+8y", "10"), ("3x+4y", "5"))
    assert same_equation(("y", "2x+1"), ("y-2x-1", "0"))
    assert same_equation(("x", "1"), ("2x", "2"), positive=True)
    assert not same_equation(("x", "1"), ("-x", "-1"), positive=True)
    assert not same_equation(("x", "1"), ("x^2", "1"))
    assert not same_equation(("y", "x"), ("0", "0"))
    assert not same_equation(("y", "x"), ("y", "y"))


@pytest.mark.parametrize(
    "text",
    ["5 10 15", r"\frac{1}{", "1010_2", r"1,2,\ldots", "(" * 30 + "1" + ")" * 30, "x" * 5000],
)
def test_unreadable(text: str) -> None:
    with pytest.raises(UnreadableError):
        parse(text)
    with pytest.raises(UnreadableError):
        check(text)
    assert not same_expression(text, text)


def test_numbers() -> None:
    assert is_number(r"2\pi")
    assert not is_number("2x")
    assert not is_number("1 2")
    assert ordering_value(r"\sqrt{4}") == ordering_value("2")
    assert ordering_value("x") is None


@pytest.mark.parametrize(
    "text",
    [
        r"\begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix}^3",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix} + \begin{pmatrix} 1 & 2 \end{pmatrix}",
    ],
)
def test_what_has_no_value_is_the_same_as_nothing(text: str) -> None:
    assert not same_expression(text, "1")
    assert not same_expression("1", text)
    assert not same_equation((text, "x"), ("x", "1"))
