# SPDX-License-Identifier: Apache-2.0
r"""Whether a cleaned answer and a cleaned gold answer are the same thing: form by form.

A false "right" is worse than a false "wrong", because a policy finds it: what is not understood is
wrong unless the texts are the same. Leniency, each with a reason:

- units may be missing or extra, never different; "12m" is 12 only where 12 is the gold answer;
- with a percent sign on one side only, 50\% is 50 and 0.5: published golds mean either;
- an answer may name what it gives ("x = 3", "m+n = 3", "f(x) = 2x"), and a gold answer may;
- decimals are exact: 0.33 is not 1/3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Many
from fractions import Fraction

from satori_fast.grading.algebra import (
    UnreadableError,
    check,
    is_number,
    ordering_value,
    same_equation,
    same_expression,
)
from satori_fast.grading.forms import (
    Chain,
    Collection,
    Condition,
    Form,
    Matrix,
    NamedSet,
    Ratio,
    Region,
    Scalar,
    Sequence,
    Words,
    choice,
    is_name,
    read,
    same_text,
)
from satori_fast.grading.regions import region_of, same_region
from satori_fast.grading.spelling import decimal_comma, number
from satori_fast.grading.units import Quantity, quantity, same_unit

_MOST_PAIRS = 40  # items of a collection that are matched in pairs; longer ones must look alike


def same_answer(answer: str, gold: str) -> bool:
    """Whether the cleaned `answer` is right where the cleaned `gold` is."""
    if same_text(answer, gold):
        return True
    gold_choice, answer_choice = choice(gold), choice(answer)
    if answer_choice is not None and gold_choice is not None:
        same_letter = answer_choice[0] == gold_choice[0]
        rests = answer_choice[1], gold_choice[1]
        return same_letter and (not all(rests) or same_answer(*rests))
    if answer_choice is not None and answer_choice[1]:
        return same_answer(answer_choice[1], gold)
    if gold_choice is not None and gold_choice[1]:
        return False
    return same_form(read(answer), read(gold))


def same_form(answer: Form, gold: Form) -> bool:
    """Whether the form of an answer is the same thing as the gold one."""
    if isinstance(answer, Scalar) != isinstance(gold, Scalar):
        answer, gold = _as_list(answer), _as_list(gold)
    match answer, gold:
        case Words(a), Words(g):
            return same_text(a, g)
        case Scalar(a), Scalar(g):
            return same_text(a, g) or _same_scalar(a, g)
        case NamedSet(a), NamedSet(g):
            return a == g
        case Matrix(a), Matrix(g):
            return _same_rows(a, g)
        case Ratio(a), Ratio(g):
            return _same_ratio(a, g)
        case Sequence(), Sequence():
            return _same_sequence(answer, gold)
        case Collection(), Collection() if _same_collection(answer, gold):
            return True
        case Chain(), Chain():
            return _same_chain(answer, gold) or _same_mixed(answer, gold)
        case Chain(), _ if (value := _named_value(answer)) is not None:
            return same_form(value, gold)
        case _, Chain() if (value := _named_value(gold, strict=True)) is not None:
            return same_form(answer, value)
        case _:
            return _same_mixed(answer, gold)
    return _same_mixed(answer, gold)


def _as_list(form: Form) -> Form:
    """Two numbers where "1,2" could be a decimal, but the other side says that it is not."""
    if not isinstance(form, Scalar) or decimal_comma(form.text) is None:
        return form
    return Collection(tuple(Scalar(piece) for piece in form.text.split(",")), False)


def _same_mixed(answer: Form, gold: Form) -> bool:
    """Forms of different kinds that can be the same thing all the same."""
    match answer, gold:
        case Scalar(a), Collection(items, is_set):  # 2,5 and 2.5; \{3\} and 3
            if is_set and len(items) == 1:
                return same_form(answer, items[0])
            return False
        case Sequence(), Matrix(rows) if answer.brackets == "()":
            return _is_vector(rows) and _same_items(answer.items, _entries(rows))
        case Matrix(rows), Sequence() if gold.brackets == "()":
            return _is_vector(rows) and _same_items(_entries(rows), gold.items)
        case Collection(items, False), Sequence() if gold.brackets == "()":
            return answer.joiner == "," and _same_items(items, gold.items)
        case (Ratio((top, bottom)), Scalar(g)) if not _is_time((top, bottom)):
            return same_expression(rf"\frac{{{top}}}{{{bottom}}}", g)
        case (Scalar(a), Ratio((top, bottom))) if not _is_time((top, bottom)):
            return same_expression(a, rf"\frac{{{top}}}{{{bottom}}}")
        case _:
            pass
    kinds = Chain | Collection | Condition | NamedSet | Region | Sequence
    if not isinstance(answer, kinds) or not isinstance(gold, kinds):
        return False
    a, g = region_of(answer), region_of(gold)
    return a is not None and g is not None and same_region(a, g)


# --- scalars -------------------------------------------------------------------------------------


def _same_scalar(answer: str, gold: str) -> bool:
    plain_answer, plain_gold = number(answer), number(gold)
    if plain_answer is not None and plain_gold is not None:
        return plain_answer == plain_gold
    # 3,5 is 3.5, but a list where both sides have the comma.
    comma_answer, comma_gold = decimal_comma(answer), decimal_comma(gold)
    if comma_answer is not None or comma_gold is not None:
        a = comma_answer if comma_answer is not None else plain_answer
        g = comma_gold if comma_gold is not None else plain_gold
        if comma_answer is not None and comma_gold is not None:
            return sorted(map(int, answer.split(","))) == sorted(map(int, gold.split(",")))
        return a is not None and a == g
    if re.fullmatch(r"\d+_\S+|\\text\{.*\}", gold) or re.fullmatch(r"\d+_\S+", answer):
        return False  # numbers in another base, whose texts differ
    a = quantity(answer, letters=plain_gold is not None or r"\text{" in gold)
    g = quantity(gold, letters=r"\text{" in answer)
    # "12m" may be metres on both sides or a product on both.
    if a.value == answer and g.value != gold and not g.percent:
        g_bare = quantity(gold)
        g = g if g_bare.value != gold or answer == g.value else g_bare
    return _same_quantity(a, g)


def _same_value(a: Quantity, g: Quantity, ratio: Fraction = Fraction(1)) -> bool:
    """Whether a's value is `ratio` times g's. Scale words count."""
    a_form, g_form = read(a.value), read(g.value)
    if isinstance(a_form, Ratio) or isinstance(g_form, Ratio):
        return ratio == 1 and same_form(a_form, g_form)
    if not isinstance(a_form, Scalar) or not isinstance(g_form, Scalar):
        return False
    return same_expression(a.value, g.value, ratio=ratio * g.words / a.words)


def _same_quantity(a: Quantity, g: Quantity) -> bool:
    if a.binding != g.binding:
        return False
    if a.percent or g.percent:
        if _same_value(a, g):
            return not (a.unit or g.unit)
        if a.percent and g.percent:
            return False
        return _same_value(a, g, Fraction(100) if a.percent else Fraction(1, 100))
    degrees, radians = (("degree", 1),), (("radian", 1),)
    if a.unit and g.unit:
        if {a.unit, g.unit} == {degrees, radians}:
            return same_expression(_in_radians(a), _in_radians(g))
        if not same_unit(a, g):
            return False
        if a.unit != g.unit:
            return _same_value(a, g)
        return _same_value(a, g, (g.scale / g.words) / (a.scale / a.words))
    if _same_value(a, g):
        return True
    if degrees in (a.unit, g.unit):  # 60^\circ and \pi/3
        return r"\pi" in a.value + g.value and same_expression(_in_radians(a), _in_radians(g))
    return False


def _in_radians(q: Quantity) -> str:
    return rf"({q.value}) \cdot \frac{{\pi}}{{180}}" if q.unit == (("degree", 1),) else q.value


# --- ratios, sequences, matrices -----------------------------------------------------------------


def _is_time(parts: tuple[str, ...]) -> bool:
    """Could the two parts be hours and minutes?"""
    return (
        len(parts) == 2
        and re.fullmatch(r"\d\d?", parts[0]) is not None
        and re.fullmatch(r"[0-5]\d", parts[1]) is not None
        and int(parts[0]) <= 24
    )


def _same_ratio(answer: tuple[str, ...], gold: tuple[str, ...]) -> bool:
    if len(answer) != len(gold):
        return False
    if _is_time(gold) or _is_time(answer):
        return all(number(a) == number(g) is not None for a, g in zip(answer, gold, strict=True))
    first_a, first_g = answer[0], gold[0]
    return all(
        same_expression(rf"({a}) \cdot ({first_g})", rf"({g}) \cdot ({first_a})")
        for a, g in zip(answer[1:], gold[1:], strict=True)
    ) and same_expression(f"0 \\cdot ({first_a})", "0")


def _is_vector(rows: tuple[tuple[str, ...], ...]) -> bool:
    return len(rows) == 1 or len(rows[0]) == 1


def _entries(rows: tuple[tuple[str, ...], ...]) -> tuple[Form, ...]:
    return tuple(read(entry) for row in rows for entry in row)


def _same_rows(answer: tuple[tuple[str, ...], ...], gold: tuple[tuple[str, ...], ...]) -> bool:
    if (len(answer), len(answer[0])) != (len(gold), len(gold[0])):
        return False
    return _same_items(_entries(answer), _entries(gold))


def _same_items(answer: Many[Form], gold: Many[Form]) -> bool:
    """Item by item, in order."""
    return len(answer) == len(gold) and all(
        same_form(a, g) for a, g in zip(answer, gold, strict=True)
    )


def _same_sequence(answer: Sequence, gold: Sequence) -> bool:
    return answer.brackets == gold.brackets and _same_items(answer.items, gold.items)


# --- lists and sets ------------------------------------------------------------------------------


def _same_collection(answer: Collection, gold: Collection) -> bool:
    if answer.is_set or gold.is_set:
        return _covers(answer.items, gold.items) and _covers(gold.items, answer.items, swap=True)
    if len(answer.items) != len(gold.items):
        return False
    if _names(answer.items) != _names(gold.items):
        # x = 2, y = 3 and a bare 2, 3: only the order says which is which.
        return _same_items(answer.items, gold.items)
    left = list(gold.items)
    for a in answer.items:
        if a in left:
            left.remove(a)
            continue
        if len(answer.items) > _MOST_PAIRS:
            return False
        found = next((g for g in left if same_form(a, g)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _covers(items: Many[Form], others: Many[Form], *, swap: bool = False) -> bool:
    """Whether each item is one of the others."""
    for item in items:
        if item in others:
            continue
        if max(len(items), len(others)) > _MOST_PAIRS:
            return False
        if not any(same_form(other, item) if swap else same_form(item, other) for other in others):
            return False
    return True


def _names(items: Many[Form]) -> frozenset[str]:
    """Names that items give values to; fewer than two say nothing about the order."""
    names = {i.members[0] for i in items if isinstance(i, Chain) and is_name(i.members[0])}
    return frozenset(names) if len(names) > 1 else frozenset()


# --- relations -----------------------------------------------------------------------------------


def _named_value(chain: Chain, *, strict: bool = False) -> Form | None:
    r"""Value that a chain of equalities gives, None where it gives none.

    Its first member is a name or the same number as the last; numbers in between must be the last
    one too, so that "x = 2 = 3" is not 3.

    strict: expressions in between must be the last one as well, else the chain is kept whole.
    """
    *before, last = chain.members
    if len(before) == 1 and is_name(last) and not is_name(before[0]):  # 3 = x
        before, last = [last], before[0]
    relations = set(chain.relations)
    if not relations <= {"=", "~"}:
        return None
    if "~" in relations:
        # x \approx 3 is 3; in \frac{22}{7} \approx 3.14 the value comes first.
        cut = chain.relations.index("~")
        exact = chain.members[: cut + 1]
        if not _roughly(exact[-1], chain.members[cut + 1]):
            return None
        if len(exact) == 1 and not is_name(exact[0]):
            return read(exact[0])
        if len(exact) > 1:
            return _named_value(Chain(exact, chain.relations[:cut]), strict=strict)
        *before, last = chain.members[: cut + 2]
    value = read(last)
    if not isinstance(value, Scalar):
        return value if all(is_name(member) for member in before) else None
    for place, member in enumerate(before):
        if _same_scalar(member, last) and is_number(quantity(member).value):
            continue
        if is_number(quantity(member).value) or (place == 0 and not is_name(member)):
            return None
        if strict and place > 0:
            return None
    return value


def _roughly(a: str, b: str) -> bool:
    """Within 5 %, where both are numbers: "4 \\approx 5" hedges."""
    x, y = (ordering_value(quantity(text).value) for text in (a, b))
    return x is None or y is None or bool(abs(x - y) <= abs(x) / 20)


def _same_chain(answer: Chain, gold: Chain) -> bool:
    a, g = _ascending(answer), _ascending(gold)
    if a.relations == g.relations and _same_members(a, g):
        return True
    if len(a.relations) != 1 or a.relations != g.relations:
        return _same_values(answer, gold)
    ends = (a.members[0], a.members[1]), (g.members[0], g.members[1])
    if a.relations == ("=",):
        if _same_members(a, g, backwards=True) or same_equation(*ends):
            return True
        return _same_values(answer, gold)
    if a.relations == ("!=",):
        return _same_members(a, g, backwards=True) or same_equation(*ends)
    return a.relations[0] in ("<", "<=") and same_equation(*ends, positive=True)


def _same_values(answer: Chain, gold: Chain) -> bool:
    """x = 6/2 = 3 and x = 3: the same name, the same value."""
    if not set(answer.relations) | set(gold.relations) <= {"=", "~"}:
        return False
    if not same_text(answer.members[0], gold.members[0]) or not is_name(gold.members[0]):
        return False
    a, g = _named_value(answer), _named_value(gold, strict=True)
    return a is not None and g is not None and same_form(a, g)


def _same_members(a: Chain, g: Chain, *, backwards: bool = False) -> bool:
    members = a.members[::-1] if backwards else a.members
    return all(
        same_text(x, y) or same_form(read(x), read(y))
        for x, y in zip(members, g.members, strict=True)
    )


def _ascending(chain: Chain) -> Chain:
    """The same inequalities, written with < only."""
    if not chain.relations or not set(chain.relations) <= {">", ">="}:
        return chain
    flipped = tuple(relation.replace(">", "<") for relation in reversed(chain.relations))
    return Chain(chain.members[::-1], flipped)


# --- gold answers --------------------------------------------------------------------------------


def check_readable(gold: str) -> None:
    """Raise UnreadableError unless every part of a cleaned gold answer can be compared."""
    picked = choice(gold)
    _check_form(read(picked[1] if picked is not None and picked[1] else gold))


def _check_form(form: Form) -> None:
    match form:
        case Scalar(text):
            _check_scalar(text)
        case Words(text):
            if not re.fullmatch(r"[a-zA-Z' -]+", re.sub(r"\\text\{([^{}]*)\}", r"\1", text)):
                raise UnreadableError("not an expression")
        case Sequence() | Collection():
            for item in form.items:
                _check_form(item)
        case Matrix(rows):
            for entry in _entries(rows):
                _check_form(entry)
        case Chain(members, _):
            for member in members:
                if not is_name(member):
                    _check_form(read(member))
        case Ratio(parts) | Region(_, parts):
            for part in parts:
                _check_form(read(part) if isinstance(part, str) else part)
        case Condition():
            if region_of(form) is None:
                raise UnreadableError("a set that cannot be read")
        case NamedSet():
            pass


def _check_scalar(text: str) -> None:
    if number(text) is not None or decimal_comma(text) is not None:
        return
    if re.fullmatch(r"\d+_\{?\w+\}?|\d+_\\text\{\w+\}", text):
        return
    value = quantity(text).value
    form = read(value)
    if value != text and not isinstance(form, Scalar):
        _check_form(form)
    elif value not in (r"\infty", r"-\infty", r"+\infty"):
        check(value)
