# SPDX-License-Identifier: Apache-2.0
"""What a field's value is as text, and what is no answer at all."""

from __future__ import annotations

import math
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.data.values import (
    BadRow,
    answer_text,
    field_value,
    is_nested,
    refuse_sentinel,
    text_field,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("  12 ", "12"),
        (7, "7"),
        (2**80, "1208925819614629174706176"),
        (7.0, "7"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1e-7, "1e-07"),
        (1e22, "10000000000000000000000"),
        (1e23, "100000000000000000000000"),
        (2.5e300, "2.5e+300"),
        (Decimal("5.00"), "5"),
        (Decimal("0.50"), "0.5"),
        (Decimal("1E+400"), "1e+400"),
        (True, "Yes"),
        (False, "No"),
        (b"3/4", "3/4"),
        (bytearray("\u221a2".encode()), "\u221a2"),
        (["2", "3"], "2, 3"),
        ([4], "4"),
        ((1.5, 2), "1.5, 2"),
        ('["8"]', "8"),
        ("['9', '10']", "9, 10"),
        (r'["\\frac{1}{2}"]', r"\frac{1}{2}"),
        ("[1, 2]", "[1, 2]"),  # an interval
        ("['", "['"),
        (np.float64(0.1), "0.1"),
        (np.float32(0.5), "0.5"),
        (np.longdouble(3), "3"),
        (np.int8(-3), "-3"),
        (np.bool_(True), "Yes"),
        (np.str_("x"), "x"),
        (np.array(["a", "b"]), "a, b"),
        (np.array(5), "5"),
    ],
)
def test_answers(value: Any, text: str) -> None:
    assert answer_text(value, "answer") == text


def test_values_of_arrow() -> None:
    import pyarrow

    scalar: Any = pyarrow.scalar
    assert answer_text(scalar(0.5), "answer") == "0.5"
    assert answer_text(scalar([1, 2]), "answer") == "1, 2"
    with pytest.raises(BadRow) as caught:
        answer_text(scalar({"value": 1}), "answer")
    assert caught.value.reason == "answer is a dict"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"value": 6}, "answer is a dict"),
        ([["1"], ["2"]], "answer is a list with a list in it"),
        ([{"value": 1}], "answer is a list with a dict in it"),
        (["4", None], "answer is a list with an empty value"),
        ([1.0, math.nan], "answer is a list with an empty value"),
        ([""], "answer is a list with an empty value"),
        (["4", "None"], "answer is a sentinel"),
        ([], "empty field 'answer'"),
        ("", "empty field 'answer'"),
        (" \n", "empty field 'answer'"),
        (math.nan, "empty field 'answer'"),
        (-math.inf, "empty field 'answer'"),
        (np.float32("nan"), "empty field 'answer'"),
        (Decimal("NaN"), "empty field 'answer'"),
        (b"\xff", "answer is bytes that are not UTF-8"),
        ("2\ud83d", "answer has a lone surrogate"),
        (["2\ud83d"], "answer has a lone surrogate"),
        (date(2020, 1, 1), "answer is a date"),
        (1 + 2j, "answer is a complex"),
        (Fraction(1, 2), "answer is a Fraction"),
        ({1, 2}, "answer is a set"),
    ],
)
def test_what_is_no_answer(value: Any, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        answer_text(value, "answer")
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "answer",
    [
        *("proof", "Proof.", "notfound", "Not found", "N/A", "n.a.", "NA", "None", r"\text{None}"),
        *(
            "null",
            "nan",
            "NaN",
            "see solution",
            "See the solution.",
            "-",
            "--",
            "\u2014",
            "?",
            "...",
        ),
        *("unknown", "UNKNOWN", "<NA>", "(none)", "$-$"[1:2], "**N/A**", "to be  determined", "_"),
    ],
)
def test_sentinels(answer: str) -> None:
    with pytest.raises(BadRow) as caught:
        refuse_sentinel(answer, "gold")
    assert caught.value.reason == "gold is a sentinel"
    assert repr(answer) in caught.value.detail


@pytest.mark.parametrize(
    "answer",
    [
        *("0", "-1", "x", "Na", "no", "No solution", r"\text{undefined}", r"\emptyset", "()", "A"),
        *("infinity", "does not exist", "*", "/", "-x", "1/2", "proof of work", "Yes", "..5"),
    ],
)
def test_real_answers_that_look_like_sentinels(answer: str) -> None:
    refuse_sentinel(answer, "gold")
    assert answer_text(answer, "gold") == answer


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_reads_back_from_its_text(value: float) -> None:
    text = answer_text(value, "answer")
    assert float(text) == value
    assert len(text) <= 26


@settings(deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_a_decimal_reads_back_from_its_text(value: Decimal) -> None:
    assert Decimal(answer_text(value, "answer")) == value


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "no field 'q'"),
        ({"q": None}, "empty field 'q'"),
        ({"q": "  "}, "empty field 'q'"),
        ({"q": math.nan}, "empty field 'q'"),
        ({"q": 5}, "q is an int, not text"),
        ({"q": [{"role": "user"}]}, "q is a list, not text"),
        ({"q": "a \ud83d"}, "q has a lone surrogate"),
    ],
)
def test_what_is_no_text(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        text_field(row, "q")
    assert caught.value.reason == reason


def test_text_is_stripped_and_bytes_are_decoded() -> None:
    assert text_field({"q": " a\n"}, "q") == "a"
    assert text_field({"q": "a\u00e9 \U0001f600".encode()}, "q") == "a\u00e9 \U0001f600"
    assert field_value({"q": False}, "q") is False


def test_nested_values() -> None:
    assert is_nested({}) and is_nested([1, {}])
    assert not is_nested([1, "a"]) and not is_nested("{}")
