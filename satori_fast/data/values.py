# SPDX-License-Identifier: Apache-2.0
"""Values of a data set's fields as text: what can be a question or an answer, and what cannot.

An answer that no right response can equal (a Python repr, "nan", "see solution") would be trained
on in silence, so whatever is not plainly an answer raises `BadRow`. Reading rows is `rows`; whether
an answer can be graded is asked in `sources`.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

import numpy as np

from satori_fast.data.field_paths import NoSuchField, value_at


class BadRow(Exception):
    """A row that cannot be used: the reason (counted) and a detail (shown with its first row)."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


# What data sets write where there is no answer. Cased, quoted and punctuated in any way.
_SENTINELS = frozenset(
    """
    proof, prove, proof omitted, see proof, qed, q.e.d, notfound, not found, no answer,
    no answer found, no final answer, n/a, n.a, #n/a, none, null, nan, <na>, missing, unknown,
    unanswered, unavailable, not available, not applicable, not provided, not given, not specified,
    omitted, to be determined, tbd, todo, error, invalid, answer, solution, final answer,
    see solution, see the solution, see answer, see explanation, see above, see below, see text,
    see figure, see image, see attached
    """.replace("\n    ", " ")
    .strip()
    .split(", ")
)
_NO_ANSWER_AT_ALL = re.compile(r"[-\u2010-\u2015?.\u2026_\s]*")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mbox|boxed)\s*\{([^{}]*)\}")
_LIST_AS_TEXT = re.compile(r"\[\s*(['\"]).*\1\s*,?\s*\]", re.DOTALL)
_LONGEST_SENTINEL = 60  # characters, with what wraps it
_LONGEST_LIST = 10_000  # characters
_LONGEST_DIGITS = 25  # a whole number with more is written with an exponent


def field_value(row: Mapping[str, Any], name: str) -> Any:
    """A field's value, or that at a path, as a Python object. `BadRow` where it is absent or
    missing (null, NaN)."""
    try:
        value = plain(value_at(row, name), name)
    except NoSuchField as error:
        raise BadRow(f"no field {name!r}", str(error)) from None
    if is_missing(value):
        raise BadRow(f"empty field {name!r}")
    return value


def text_field(row: Mapping[str, Any], name: str) -> str:
    """A field's text, stripped. `BadRow` where it is none, empty or broken."""
    value = field_value(row, name)
    if not isinstance(value, str):
        raise BadRow(f"{name} is {_kind(value)}, not text", _shown(value))
    check_text(value, name)
    return value.strip()


def answer_text(value: Any, name: str) -> str:
    """The text of an answer: text, a number, a truth value, or a flat list of them."""
    value = plain(value, name)
    if isinstance(value, str) and len(value) <= _LONGEST_LIST and _LIST_AS_TEXT.fullmatch(value):
        value = _parsed_list(value)
    if isinstance(value, list | tuple):
        parts = [_part(item, name) for item in cast("list[Any]", value)]
    elif is_missing(value):
        parts = list[str]()
    else:
        parts = [scalar_text(value, name)]
    if not parts:
        raise BadRow(f"empty field {name!r}")
    return ", ".join(parts)


def scalar_text(value: Any, name: str) -> str:
    """Text of one value; truth values are "Yes" and "No", numbers the shortest that reads back."""
    if isinstance(value, str):
        check_text(value, name)
        return value.strip()
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, int | float | Decimal):
        return _number_text(value)
    raise BadRow(f"{name} is {_kind(value)}", _shown(value))


def check_text(text: str, name: str) -> None:
    """`BadRow` for text that no tokenizer and no file can take: half of a surrogate pair."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise BadRow(f"{name} has a lone surrogate", f"{code} at character {error.start}") from None


def refuse_sentinel(answer: str, name: str) -> None:
    """`BadRow` for what stands where an answer is missing, such as "proof", "N/A" or "-"."""
    if answer[:1].isdigit() or len(answer) > _LONGEST_SENTINEL:
        return
    bare = _WRAPPED.sub(r"\1", answer).replace("$", "").strip().strip("'\"()[]*.:;!")
    known = bare == "NA" or " ".join(bare.casefold().split()) in _SENTINELS  # "Na" is sodium
    if known or _NO_ANSWER_AT_ALL.fullmatch(answer):
        raise BadRow(f"{name} is a sentinel", repr(answer))


def is_missing(value: Any) -> bool:
    """Whether a value stands for nothing: null, blank text, a number that is not finite."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or (isinstance(value, Decimal) and not value.is_finite())


def is_nested(value: Any) -> bool:
    """Whether a value is an object or a list of them: only a path reaches into it."""
    if isinstance(value, list):
        return any(isinstance(item, dict) for item in cast("list[Any]", value))
    return isinstance(value, dict)


def plain(value: Any, name: str) -> Any:
    """A Python object for what numpy, pyarrow or a database gives; bytes are UTF-8 text."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(cast("bytes", value)).decode()
        except UnicodeDecodeError as error:
            raise BadRow(f"{name} is bytes that are not UTF-8", str(error)) from None
    if isinstance(value, np.floating):  # a longdouble is no Python number else
        return float(cast("Any", value))
    if hasattr(value, "tolist"):
        return plain(value.tolist(), name)
    if hasattr(value, "as_py"):
        return plain(value.as_py(), name)
    return value


def _part(item: Any, name: str) -> str:
    item = plain(item, name)
    if is_missing(item):
        raise BadRow(f"{name} is a list with an empty value")
    if not isinstance(item, str | int | float | Decimal):
        raise BadRow(f"{name} is a list with {_kind(item)} in it", _shown(item))
    text = scalar_text(item, name)
    refuse_sentinel(text, name)
    return text


def _parsed_list(text: str) -> Any:
    """The list that a text spells, as JSON or as Python; the text itself where it is none."""
    for read in (json.loads, ast.literal_eval):
        try:
            values: Any = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(values, list):
            return cast("list[Any]", values)
    return text


def _number_text(value: int | float | Decimal) -> str:
    if isinstance(value, int):
        return str(int(value))
    text = float.__repr__(value) if isinstance(value, float) else str(value).lower()
    number = Decimal(text)
    if number.adjusted() < _LONGEST_DIGITS and number == number.to_integral_value():
        return str(int(number))
    mantissa, e, exponent = text.partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return mantissa + e + exponent


def _kind(value: Any) -> str:
    name = "null" if value is None else type(value).__name__
    return name if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _shown(value: Any) -> str:
    return repr(value)[:80]
