# SPDX-License-Identifier: Apache-2.0
r"""Two other graders, to compare figures with: a strict one, by text, and a lenient one of papers.

The lenient one follows the evaluator of Qwen2.5-Math, which Satori, S2R and SRL were measured with:
numbers within 1e-4 of each other, a hundred times or a hundredth of the gold one as well (for lost
percent signs), brackets of any kind, and the last number of a text without a box. It says right to
300 for 3: for rewards and for accuracies that are ours there is `verdict` alone. What `equivalent`
calls right is right to it, so that it is never below.

Nothing here has a time limit: see `pool`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Many
from fractions import Fraction
from typing import Any

from satori_fast.grading.algebra import ordering_value
from satori_fast.grading.boxes import extract_answer
from satori_fast.grading.forms import Collection, Form, Matrix, Scalar, Sequence, choice, read
from satori_fast.grading.spelling import clean, key, number
from satori_fast.grading.units import quantity
from satori_fast.grading.verdict import equivalent, too_long

_RELATIVE = Fraction(1, 10_000)
_SCALES = (Fraction(1), Fraction(100), Fraction(1, 100))
_STATED = re.compile(r"[hH]e (?:final )?answer is:?\s*([^\n]{1,400})")
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_BRACKETS = re.compile(r"\\?[\[\](){}]")


def strict_equal(answer: str, gold: str) -> bool:
    r"""Whether two answers are the same text after `spelling.clean`; blank ones equal nothing.

    >>> strict_equal(r"$\dfrac12$", r"\frac{1}{2}"), strict_equal("0.5", r"\frac{1}{2}")
    (True, False)
    """
    if too_long(answer, gold):
        return False
    answer, gold = clean(answer), clean(gold)
    return bool(answer and gold) and key(answer) == key(gold)


def lenient_answer(text: str) -> str | None:
    r"""The answer that the papers' evaluator reads: the last box, else what follows "the answer
    is", else the last number; None without any.

    >>> lenient_answer("It is 12, or 1,300 in all.")
    '1300'
    """
    boxed = extract_answer(text)
    if boxed is not None:
        return boxed
    stated = _STATED.findall(text)
    if stated:
        return _SENTENCE_END.split(stated[-1], maxsplit=1)[0].strip() or None
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def lenient_cheaply(answer: str, gold: str) -> bool | None:
    """`lenient_equal` where it is cheap to see; None where the answers must be read."""
    if not answer.strip() or not gold.strip() or too_long(answer, gold):
        return False
    answer, gold = clean(answer), clean(gold)
    if not answer or not gold:
        return False
    if key(answer) == key(gold):
        return True
    numbers = number(answer), number(gold)
    if numbers[0] is not None and numbers[1] is not None:
        return _close_numbers(numbers[0], numbers[1])
    return None


def lenient_equal(answer: str, gold: str) -> bool:
    """Whether the papers' evaluator would take `answer` for `gold`, as far as it is followed here.

    >>> lenient_equal("50", "0.5"), lenient_equal("9999.5", "10000"), lenient_equal("51", "0.5")
    (True, True, False)
    """
    decided = lenient_cheaply(answer, gold)
    if decided is not None:
        return decided
    if equivalent(answer, gold):
        return True
    answer, gold = clean(answer), clean(gold)
    chosen = choice(answer)
    if re.fullmatch("[A-E]", gold) and chosen is not None:
        return chosen[0] == gold
    if _BRACKETS.sub("", answer).split() == _BRACKETS.sub("", gold).split():
        return True
    return _close_forms(read(answer), read(gold))


def _close_forms(answer: Form, gold: Form) -> bool:
    """Item by item, whatever the brackets, and numbers by their distance."""
    match answer, gold:
        case Scalar(a), Scalar(g):
            return _close_scalars(a, g)
        case Matrix(a), Matrix(g):
            rows = zip(a, g, strict=False)
            return len(a) == len(g) and all(_close_texts(x, y) for x, y in rows)
        case ((Sequence() | Collection()), (Sequence() | Collection())):
            pairs = zip(answer.items, gold.items, strict=False)
            return len(answer.items) == len(gold.items) and all(
                x == y or _close_forms(x, y) for x, y in pairs
            )
        case _:
            return False


def _close_texts(answer: Many[str], gold: Many[str]) -> bool:
    pairs = zip(answer, gold, strict=False)
    return len(answer) == len(gold) and all(x == y or _close_scalars(x, y) for x, y in pairs)


def _close_scalars(answer: str, gold: str) -> bool:
    a, g = quantity(answer), quantity(gold)
    if a.binding or g.binding:  # 4:30 PM
        return False
    plain = number(a.value), number(g.value)
    if plain[0] is not None and plain[1] is not None:
        return _close_numbers(
            plain[0] / (100 if a.percent else 1), plain[1] / (100 if g.percent else 1)
        )
    values = ordering_value(a.value), ordering_value(g.value)
    return None not in values and _is_close(*values)


def _close_numbers(answer: Fraction, gold: Fraction) -> bool:
    return any(_is_close(answer, gold * scale) for scale in _SCALES)


def _is_close(a: Any, b: Any) -> bool:
    """Whether two numbers, fractions or sympy's, are within 1e-4 of the larger one."""
    if a == b or not all(getattr(each, "is_finite", True) for each in (a, b)):
        return bool(a == b)
    return bool(abs(a - b) * _RELATIVE.denominator <= max(abs(a), abs(b)))
