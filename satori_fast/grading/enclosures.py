# SPDX-License-Identifier: Apache-2.0
r"""Values of plain expressions as intervals: most wrong answers are far off, which is cheap to see.

The exact comparison (`algebra`) parses LaTeX with a full grammar, a millisecond or more for each
side. Here a small grammar, of what has one reading only, is evaluated in interval arithmetic at one
point of the variables. Two values whose intervals do not meet belong to different expressions,
whatever the rounding. Nothing is ever found equal here, and what is not understood is left open.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

_TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)|(?P<letter>[abcjkm-z])|(?P<sign>\\[a-z]+|[-+*/^(){}])| "
)
_PRODUCTS = ("*", r"\cdot", r"\times")
_LONGEST = 200
_MOST_LETTERS = 2  # more in a row are a word, or the name of a function
_LARGEST_POWER = 64


class _UnclearError(ValueError):
    """An expression that is not in the small grammar, or without a value at the point."""


@lru_cache(maxsize=8192)
def enclosure(text: str) -> Any:
    """An mpmath interval that holds the value of a cleaned expression; None where that is unclear.

    Variables have positive values that their letters give.
    """
    if len(text) > _LONGEST:
        return None
    try:
        reading = _Reading(_tokens(text))
        value = reading.sum()
        reading.expect("end")
    except (_UnclearError, RecursionError):
        return None
    return value


def surely_different(a: str, b: str, *, ratio: Fraction = Fraction(1)) -> bool:
    """Whether a is certainly not `ratio` times b. False where that is not known."""
    left, right = enclosure(a), enclosure(b)
    if left is None or right is None:
        return False
    if ratio != 1:
        right = right * ratio.numerator / ratio.denominator
    return bool(left.b < right.a or right.b < left.a)


@cache
def _intervals() -> Any:
    """mpmath's interval arithmetic; loaded at the first use, since callers may never compare."""
    import mpmath

    return mpmath.iv


def _tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each token; a sign is its own kind."""
    found: list[tuple[str, str]] = []
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _UnclearError(text[place])
        place = match.end()
        kind = match.lastgroup
        if kind is not None:
            found.append((match[0] if kind == "sign" else kind, match[0]))
    letters = re.findall(r"[a-z]+", re.sub(r"\\[a-z]+", " ", text))
    if any(len(word) > _MOST_LETTERS for word in letters):
        raise _UnclearError("a word")
    return [*(token for token in found if token[0] not in (r"\left", r"\right")), ("end", "")]


class _Reading:
    """Tokens read from left to right, evaluated on the way."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._place = 0

    @property
    def _next(self) -> str:
        return self._tokens[self._place][0]

    def expect(self, kind: str) -> str:
        """Text of the next token, which must be of this kind."""
        found, text = self._tokens[self._place]
        if found != kind:
            raise _UnclearError(text)
        self._place += 1
        return text

    def sum(self) -> Any:
        """Terms with signs between them, and perhaps before them."""
        value: Any = None
        while value is None or self._next in ("+", "-"):
            sign = self.expect(self._next) if self._next in ("+", "-") else "+"
            term = self._term()
            term = -term if sign == "-" else term
            value = term if value is None else value + term
        return value

    def _term(self) -> Any:
        kind = self._next
        value = self._power()
        while True:
            before, kind = kind, self._next
            if kind in _PRODUCTS:
                self.expect(kind)
                kind = self._next
                value = value * self._power()
            elif kind == "/":
                self.expect(kind)
                kind = self._next
                value = _quotient(value, self._power())
                if self._next not in ("+", "-", ")", "}", "end"):
                    raise _UnclearError("1/2x and 1/2/x have two readings")
                return value
            elif kind in ("letter", r"\pi", r"\sqrt", "(", r"\frac"):
                # x(x+1) may be a function, 1\frac{1}{2} a mixed number.
                if (before == "letter" and kind == "(") or kind == r"\frac":
                    raise _UnclearError("side by side")
                value = value * self._power()
            else:
                return value

    def _power(self) -> Any:
        base = self._atom()
        if self._next != "^":
            return base
        self.expect("^")
        if self._next == "number":
            text = self.expect("number")
            if len(text) > 1:
                raise _UnclearError("x^12 is read as x^1 2 by some")
            return base ** int(text)
        if self._next == "letter":
            raise _UnclearError("a power of two letters")
        self.expect("{")
        sign = -1 if self._next == "-" else 1
        if sign < 0:
            self.expect("-")
        exponent = sign * int(_whole(self.expect("number")))
        self.expect("}")
        if abs(exponent) > _LARGEST_POWER:
            raise _UnclearError("a large power")
        return base**exponent if exponent >= 0 else _quotient(1, base**-exponent)

    def _atom(self) -> Any:
        iv = _intervals()
        kind = self._next
        if kind == "number":
            return iv.mpf(self.expect("number"))
        if kind == "letter":
            letter = self.expect("letter")
            return iv.mpf(_VALUES[letter].numerator) / _VALUES[letter].denominator
        self.expect(kind)
        match kind:
            case r"\pi":
                return +iv.pi
            case r"\sqrt":
                value = self._braced()
                if not value.a > 0:
                    raise _UnclearError("the root of a number below zero")
                return iv.sqrt(value)
            case r"\frac" | r"\dfrac" | r"\tfrac":
                top = self._braced()
                return _quotient(top, self._braced())
            case "(":
                value = self.sum()
                self.expect(")")
                return value
            case _:
                raise _UnclearError(kind)

    def _braced(self) -> Any:
        self.expect("{")
        value = self.sum()
        self.expect("}")
        return value


def _quotient(top: Any, bottom: Any) -> Any:
    if not (bottom.a > 0 or bottom.b < 0):
        raise _UnclearError("division by what may be zero")
    return top / bottom


def _whole(text: str) -> str:
    if not text.isdigit():
        raise _UnclearError("a power that is no integer")
    return text


# Positive, so that roots have values, and without a pattern.
_VALUES = {
    letter: Fraction(271_828_183 + 577_215_679 * place**2 % 1_000_000_007, 10**9)
    for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz")
}
