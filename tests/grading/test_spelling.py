# SPDX-License-Identifier: Apache-2.0
"""One spelling for many, plain numbers, and which words are the same."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.grading.spelling import clean, decimal_comma, key, number, words


@pytest.mark.parametrize(
    ("written", "usual"),
    [
        (r"$\dfrac12$.", r"\frac{1}{2}"),
        (r"\left( 1, 2 \right)", "( 1, 2 )"),
        ("**7**", "7"),
        ("{7}", "7"),
        (r"\textbf{(A)}", r"\text{(A)}"),
        (r"\mathrm{e}^2", "e^2"),
        (r"\operatorname{arctan}(2)", r"\arctan (2)"),
        ("The final answer is 7.", "7"),
        (r"\text{Therefore, the answer is } 7", "7"),
        ("not 7", "not 7"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
        (r"\\begin{pmatrix}1\\\\2\\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("\x0crac{1}{2}", r"\frac{1}{2}"),
        (r"0.333...", r"0.333\ldots"),
        (r"10{:}30", "10:30"),
        ("7 % per cent is a comment", "7"),
        ("7%", "7%"),
        ("x**10", "x^{10}"),
        ("2sqrt(3)", r"2\sqrt{3}"),
        (r"7\\", "7"),
        (r"\;7\;", "7"),
        ("\uff17\u00d72", r"7\times 2"),
        ("x\u00b2", "x^{2}"),
        ("1\u00bd", r"1 \frac{1}{2}"),
        ("60\u00b0", r"60^\circ"),
        ("\u221a3", r"\sqrt{3}"),
        ("", ""),
        ("$$", ""),
    ],
)
def test_usual_spelling(written: str, usual: str) -> None:
    assert clean(written) == usual
    assert clean(usual) == usual


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_can_be_cleaned(text: str) -> None:
    assert isinstance(clean(text), str)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-5", -5),
        ("+ 5", 5),
        ("007", 7),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("32 349", 32349),
        ("12,34,567", 1234567),
        ("1.234.567", 1234567),
        (r"4.5 \times 10^{3}", 4500),
        ("1e-3", Fraction(1, 1000)),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        (r"-2\frac{1}{3}", Fraction(-7, 3)),
        ("1 1/2", Fraction(3, 2)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        ("0.(3)", Fraction(1, 3)),
        ("1 2", None),
        ("1 2/3/4", None),
        ("1-1/2", None),
        (r"2\frac{5}{3}", None),
        (r"\frac{1}{0}", None),
        ("1/0", None),
        ("1,23", None),
        ("1,2345", None),
        ("12 34", None),
        ("0,111", None),
        ("2.5(3)", None),
        ("1e99999", None),
        ("9" * 300, None),
        ("", None),
        ("-", None),
        (".", None),
        ("x", None),
    ],
)
def test_plain_numbers(text: str, value: Fraction | int | None) -> None:
    assert number(text) == value


@given(st.fractions(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_fractions_are_read_exactly(value: Fraction, slash: bool) -> None:
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    text = f"{sign}{top}/{bottom}" if slash else rf"{sign}\frac{{{top}}}{{{bottom}}}"
    assert number(text) == value


@given(
    st.integers(0, 10**6),
    st.text("0123456789", max_size=4),
    st.text("0123456789", min_size=1, max_size=6),
)
@settings(max_examples=200, deadline=None)
def test_repeating_decimals_are_limits(whole: int, part: str, period: str) -> None:
    value = number(rf"{whole}.{part}\overline{{{period}}}")
    assert value is not None
    cut = Fraction(f"{whole}.{part}{period * 8}")
    assert 0 <= value - cut <= Fraction(1, 10 ** (len(part) + 8 * len(period)))


def test_decimal_commas() -> None:
    assert decimal_comma("3,5") == Fraction(7, 2)
    assert decimal_comma("1000,99") == Fraction(100099, 100)
    assert decimal_comma("0,125") == Fraction(1, 8)
    assert decimal_comma("1,234") is None
    assert decimal_comma("1,2,3") is None


def test_words_and_names() -> None:
    assert words(r"\text{Four Words are here}") == ("four", "words", "are", "here")
    assert words("x-y") is None
    assert words("5 apples") is None
    assert key("Yes") == key(r"\text{yes}") == key("YES")
    assert key("Monday") == key("monday")
    assert key("AB") != key("ab")
    assert key("p q s") != key("p q r")
    assert key("x_{1}") == key("x_1")
    assert key("2 x") != key("2y")
