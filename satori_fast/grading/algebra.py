# SPDX-License-Identifier: Apache-2.0
r"""Expressions: reading one with math-verify's parser and deciding whether two are the same.

Two expressions are equal when they agree exactly: as fractions, else to 80 digits at several points
of their variables. Not to six decimals, as math-verify rounds: 1/2^99 is not 1/2^98, and 0.33 is
not 1/3. What cannot be evaluated (undefined functions, matrices) math-verify decides.

No time limit here: 9^{9^{9^9}} takes for ever (`grading.GradingPool`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache, lru_cache, wraps
from itertools import cycle
from typing import Any, ParamSpec

from satori_fast.grading.enclosures import surely_different
from satori_fast.grading.spelling import number

# The parser recurses; a deep answer must not end the process.
_DEEPEST = 14
_LONGEST = 4000
# Numbers side by side are not a product and not a sum, the parser's idea: "5 10 15" is a list, and
# nobody writes a product as "x 5".
_SIDE_BY_SIDE = re.compile(r"\d\s+\.?\d|(?<![a-zA-Z\\])[a-zA-Z]\s+\d+(?!\s*[\^\d.])")
_MIXED = re.compile(
    r"(?<![\d.}^_a-zA-Z])(\d+)\s*(?:\\frac\{(\d+)\}\{(\d+)\}|(?<=\s)(\d+)\s?/\s?(\d+)(?![\d.]))"
)
_REPEATING = re.compile(r"\d*\.\d*\\(?:overline|bar|dot)\{?\d+\}?")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?|(?<![a-zA-Z\\])[a-zA-Z]|\([^()]*\))\s*\^\\circ")
_UNREADABLE = re.compile(
    r"\\ldots|\\(?:circ|mid|to|text\{[^{}]*[ ,][^{}]*\})(?![a-zA-Z])|[\"?!]{2}|#|\d'"
)
_POINTS = 4

P = ParamSpec("P")


class UnreadableError(ValueError):
    """An expression that cannot be parsed."""


def _mixed(match: re.Match[str]) -> str:
    whole = int(match[1])
    top, bottom = int(match[2] or match[4]), int(match[3] or match[5])
    if match[2] and not 0 < top < bottom:
        return rf"{whole} \cdot \frac{{{top}}}{{{bottom}}}"
    return rf"\frac{{{whole * bottom + top}}}{{{bottom}}}"


def _repeated(match: re.Match[str]) -> str:
    value = number(match[0])
    return match[0] if value is None else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _prepared(text: str) -> str:
    """`text` with what the parser would misread in other words, or an `UnreadableError`."""
    if len(text) > _LONGEST:
        raise UnreadableError("too long")
    depth = deepest = 0
    for letter in text:
        if letter in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in ")}]":
            depth -= 1
    if deepest > _DEEPEST:
        raise UnreadableError("too deep")
    text = _REPEATING.sub(_repeated, text)
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = _MIXED.sub(_mixed, text)
    text = _DEGREES.sub(r"(\1 \\cdot \\frac{\\pi}{180})", text)
    text = re.sub(r"\\(log|ln)_([a-zA-Z0-9])(?![}a-zA-Z])", r"\\\1_{\2}", text)
    if _SIDE_BY_SIDE.search(text) or _UNREADABLE.search(text):
        raise UnreadableError("not an expression")
    text = re.sub(r"\\text\{\s*([a-zA-Z]+)\s*\}", r"\\text{\1}", text)
    # The parser takes a capital I for the imaginary unit and the small one for a variable.
    text = re.sub(r"(\\[a-zA-Z]+)|I", lambda match: match[1] or r"\Upsilon ", text)
    # A variable, not Euler's constant nor the function.
    text = re.sub(r"\\gamma(?![a-zA-Z])", r"\\varrho ", text)
    return text


@cache
def _reader() -> Any:
    """The parser's class with its guesses taken out."""
    import sympy
    from latex2sympy2_extended import (  # pyright: ignore[reportMissingTypeStubs]
        latex2sympy2,
        normalize_latex,
    )

    class Reader(latex2sympy2._Latex2Sympy):
        """Multiplies what stands side by side, where the original adds; decimals stay exact."""

        def convert_postfix_list(self, arr: Any, i: int = 0) -> Any:
            first = self.convert_postfix(arr[i])
            if i == len(arr) - 1 or not isinstance(first, sympy.Expr | sympy.MatrixBase):
                return super().convert_postfix_list(arr, i)
            rest = self.convert_postfix_list(arr, i + 1)
            if getattr(first, "is_Matrix", False) or getattr(rest, "is_Matrix", False):
                return self.mat_mul_flat(first, rest)
            return self.mul_flat(first, rest)

        def parse_number(self, text: str) -> Any:
            return sympy.Rational(text.replace(",", "").replace(" ", ""))

        def convert_atom(self, atom: Any) -> Any:
            subexpr = atom.number_subexpr()
            if subexpr is not None and subexpr.subexpr() is not None:
                raise UnreadableError("a number with an index")
            return super().convert_atom(atom)

    config = latex2sympy2.ConversionConfig(lowercase_symbols=False)
    rules = latex2sympy2.NormalizationConfig(malformed_operators=True, boxed="none")

    def read(text: str) -> Any:
        return Reader(None, True, convert_degrees=False, config=config).parse(
            normalize_latex(text, rules)
        )

    return read


@lru_cache(maxsize=8192)
def _parsed(text: str) -> Any:
    """The sympy expression, or the `UnreadableError` that `text` is worth."""
    import sympy

    value = number(text)
    if value is not None:
        return sympy.Rational(value.numerator, value.denominator)
    try:
        expression = _reader()(_prepared(text))
    except UnreadableError as error:
        return error
    # The parser raises bare Exceptions, and sympy's constructors all kinds.
    except Exception:
        return UnreadableError("not an expression")
    if not isinstance(expression, sympy.Expr | sympy.MatrixBase | sympy.MatrixExpr):
        return UnreadableError("not an expression")
    if expression.has(sympy.zoo, sympy.nan):
        return UnreadableError("not a number")
    imaginary = {s: sympy.I for s in expression.free_symbols if getattr(s, "name", "") == "i"}
    return expression.xreplace(imaginary) if imaginary else expression


def parse(text: str) -> Any:
    """Cleaned `text` as a sympy expression. Raises UnreadableError."""
    expression = _parsed(text)
    if isinstance(expression, UnreadableError):
        raise UnreadableError(str(expression))
    return expression


def check(text: str) -> None:
    """Raise UnreadableError unless `text` can be parsed; evaluate it once, which may take for ever.

    Where comparing would hang, so must this: the caller has the time limit.
    """
    expression = parse(text)
    if not _is_matrix(expression) and not _is_postponed(expression):
        _value(expression, next(_points(expression.free_symbols)))


def is_number(text: str) -> bool:
    """Whether `text` is an expression without variables."""
    if number(text) is not None:
        return True
    try:
        expression = parse(text)
    except UnreadableError:
        return False
    return not _is_matrix(expression) and expression.is_number


def _false_where_undefined(compare: Callable[P, bool]) -> Callable[P, bool]:
    """Make a comparison false that sympy breaks off.

    It finds out late that something has no value, and says so in all kinds of ways: the square of a
    vector, a function of too many arguments.
    """

    @wraps(compare)
    def compared(*args: P.args, **kwargs: P.kwargs) -> bool:
        try:
            return compare(*args, **kwargs)
        except (MemoryError, RecursionError):  # the worker's to count
            raise
        except Exception:
            return False

    return compared


@_false_where_undefined
def same_expression(a: str, b: str, *, ratio: Fraction = Fraction(1)) -> bool:
    """Whether a is the same as `ratio` times b. False where one of them cannot be read."""
    a_number, b_number = number(a), number(b)
    if a_number is not None and b_number is not None:
        return a_number == b_number * ratio
    if surely_different(a, b, ratio=ratio):
        return False
    try:
        left, right = parse(a), parse(b)
    except UnreadableError:
        return False
    if ratio != 1:
        right = right * _rational(ratio)
    return _same(left, right)


def _rational(value: Fraction) -> Any:
    import sympy

    return sympy.Rational(value.numerator, value.denominator)


def _is_matrix(expression: Any) -> bool:
    return getattr(expression, "is_Matrix", False)


def _is_postponed(expression: Any) -> bool:
    """Whether there is a sum, an integral or a limit to be worked out."""
    import sympy

    kinds = sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative
    return expression.has(*kinds)


def _same(a: Any, b: Any) -> bool:
    if _is_matrix(a) or _is_matrix(b):
        return _is_matrix(a) and _is_matrix(b) and _verified(a, b)
    if a == b:
        return True
    names = a.free_symbols | b.free_symbols
    if not names:
        return _same_constant(a, b)
    if _is_postponed(a) or _is_postponed(b):
        a, b = a.doit(), b.doit()
        if _is_postponed(a) or _is_postponed(b):  # series: their values take minutes
            return bool(a == b)
    verdicts = []
    for point in _points(names):
        values = [_value(expression, point) for expression in (a, b)]
        if any(value is None for value in values):
            continue
        verdicts.append(_close(*values))
        if not verdicts[-1]:
            return False
    return True if len(verdicts) >= 2 else _verified(a, b)


def _verified(a: Any, b: Any) -> bool:
    """math-verify's own opinion."""
    from math_verify import verify  # pyright: ignore[reportMissingTypeStubs]

    # It warns that the limits are off at each first use in a process.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return bool(verify(a, b, timeout_seconds=None))


# Positive and negative, small and large, without a pattern.
_COORDINATES = [
    Fraction(numerator, 10**9)
    for numerator in (
        1_732_050_811,
        -620_517_463,
        2_894_427_197,
        314_159_269,
        -1_414_213_571,
        777_215_669,
        -2_236_067_987,
        1_202_056_913,
        3_605_551_283,
        -141_421_369,
        577_215_679,
    )
]


def _points(names: Any) -> Iterator[dict[Any, Any]]:
    """Values for the variables; those of one name share one, whatever is assumed of them."""
    ordered = sorted({name.name for name in names})
    for shift in range(_POINTS):
        values = cycle(_COORDINATES[3 * shift % len(_COORDINATES) :] + _COORDINATES)
        chosen = {name: _rational(value) for name, value in zip(ordered, values, strict=False)}
        yield {name: chosen[name.name] for name in names}


_DIGITS = 80
_CLOSE = 60  # digits in which values that are equal agree


def _value(expression: Any, point: dict[Any, Any]) -> Any:
    """Value at a point, None where there is none."""
    import sympy

    try:
        value = expression.subs(point).evalf(_DIGITS) if point else expression.evalf(_DIGITS)
    except (ValueError, TypeError, ZeroDivisionError, AttributeError, RuntimeError):
        return None
    if value.is_number and value.is_finite:
        real, imaginary = value.as_real_imag()
        if isinstance(real, sympy.Number) and isinstance(imaginary, sympy.Number):
            return real, imaginary
    return None


def _close(a: Any, b: Any) -> bool:
    import sympy

    size = max(*(abs(part) for part in (*a, *b)))
    tolerance = size * sympy.Rational(1, 10**_CLOSE)
    return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


def _same_constant(a: Any, b: Any) -> bool:
    import sympy

    values = [_value(expression, {}) for expression in (a, b)]
    if any(value is None for value in values):
        # Infinity, or an integral that has to be worked out first.
        done = [expression.doit() for expression in (a, b)]
        if done == [a, b] or any(value.has(sympy.Integral, sympy.Sum) for value in done):
            return bool(done[0] == done[1])
        return _same_constant(*done) if done[0] != done[1] else True
    if not _close(*values):
        return False
    # Large integers agree in 60 digits and still differ in the last one.
    difference = (a - b).doit()
    if difference.is_Rational:
        return bool(difference == 0)
    left = _value(difference, {})
    return left is not None and _close((left[0] + 1, left[1]), (sympy.Integer(1), sympy.Integer(0)))


@_false_where_undefined
def same_equation(a: tuple[str, str], b: tuple[str, str], *, positive: bool = False) -> bool:
    """Whether two equations (left, right) say the same, up to a constant factor.

    positive: the factor must be positive, for inequalities.
    """
    try:
        left, right = (parse(x) - parse(y) for x, y in (a, b))
    except (UnreadableError, TypeError):
        return False
    names = left.free_symbols | right.free_symbols
    if not names or left.free_symbols != right.free_symbols:
        return False
    ratio: Any = None
    count = 0
    for point in _points(names):
        values = [_value(expression, point) for expression in (left, right)]
        if any(value is None for value in values):
            continue
        x, y = (real + 1j * imaginary if imaginary else real for real, imaginary in values)
        if y == 0 or x == 0:
            return False
        found = (x / y).evalf(_DIGITS).as_real_imag()
        if ratio is not None and not _close(found, ratio):
            return False
        if positive and not found[0] > 0:
            return False
        ratio, count = found, count + 1
    return count >= 2


def ordering_value(text: str) -> Any:
    """Real value of a constant expression for sorting, None for any other."""
    import sympy

    try:
        expression = parse(text)
    except UnreadableError:
        return None
    if expression in (sympy.oo, -sympy.oo):
        return expression
    if _is_matrix(expression) or expression.free_symbols:
        return None
    value = _value(expression, {})
    return value[0] if value is not None and abs(value[1]) < sympy.Rational(1, 10**_CLOSE) else None
