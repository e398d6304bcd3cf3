# SPDX-License-Identifier: Apache-2.0
r"""Kinds of answers: a list, a pair, a set, an interval, a chain of relations, a
ratio, a matrix, a choice, words or a single expression.

Read from the outside in, by brackets and separators alone, so that a list can never be taken for a
number ("1,2,3" for 3) nor ``[3,3]`` for 3. Whether two forms are equal: `equality`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from satori_fast.grading.spelling import decimal_comma, key, number, unwrapped, words
from satori_fast.grading.units import quantity


@dataclass(frozen=True, slots=True)
class Scalar:
    """One expression, perhaps with a unit."""

    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """Plain words, or text that nothing else fits; compared by its key."""

    text: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """Items between brackets, in order: a pair, a point, an interval. brackets: such as "(]"."""

    items: tuple[Form, ...]
    brackets: str


@dataclass(frozen=True, slots=True)
class Collection:
    """Items without an order: a set, or a list without brackets.

    is_set: braces around it. joiner: "or" and "and" where words stand between the items.
    """

    items: tuple[Form, ...]
    is_set: bool
    joiner: str = ","


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries."""

    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """Members with relations between them: members[0] relations[0] members[1] ..."""

    members: tuple[str, ...]
    relations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """a:b, a:b:c or a time of the day."""

    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """A set of real numbers put together from others. operation: "cup", "cap" or "setminus"."""

    operation: str
    parts: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """The set of all numbers for which something holds. name: of the variable, "" if not said."""

    form: Form
    name: str


@dataclass(frozen=True, slots=True)
class NamedSet:
    """The real numbers "R", the integers "Z", the empty set "" and so on."""

    name: str


Form = (
    Scalar | Words | Sequence | Collection | Matrix | Chain | Ratio | Region | Condition | NamedSet
)

_TOKEN = re.compile(
    r"\\begin\s*\{[a-z*]+\}|\\end\s*\{[a-z*]+\}|\\text\s*\{[^{}]*\}|\\[{}]|\\[a-zA-Z]+|\\.|.",
    re.DOTALL,
)
_OPENING = {"(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"}
_CLOSING = {")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"}
_RELATIONS = {
    "=": "=",
    "<": "<",
    ">": ">",
    r"\leq": "<=",
    r"\geq": ">=",
    r"\neq": "!=",
    r"\approx": "~",
    r"\equiv": "mod",
    r"\in": "in",
    r"\notin": "notin",
    r"\to": "to",
    r"\mapsto": "to",
    r"\rightarrow": "to",
    r"\Rightarrow": "to",
    r"\sim": "sim",
    r"\subset": "sub",
    r"\subseteq": "sub",
    r"\mid": "divides",
    r"\parallel": "par",
    r"\perp": "perp",
}
_JOINER = re.compile(r"\\text\{\s*,?\s*(or|and)\s*:?\s*\}")
_BARE_JOINER = re.compile(r"(?<=[\s\d)}\]]),?\s*\b(or|and)\s+(?=[^\s])")
_DEEPEST = 12
_MOST_ITEMS = 1000


def tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """(token, where it starts, depth of brackets around it)."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _CLOSING or token.startswith(r"\end"):
            depth -= 1
        yield token, match.start(), depth
        if token in _OPENING or token.startswith(r"\begin"):
            depth += 1


def split_top(text: str, separators: set[str]) -> tuple[list[str], list[str]]:
    """Pieces of `text` between separators outside all brackets, and the separators."""
    pieces: list[str] = []
    found: list[str] = []
    start = 0
    for token, position, depth in tokens(text):
        if depth == 0 and token in separators:
            pieces.append(text[start:position].strip())
            found.append(token)
            start = position + len(token)
    pieces.append(text[start:].strip())
    return pieces, found


@lru_cache(maxsize=16_384)
def read(text: str) -> Form:
    """The form of a cleaned answer."""
    return _read(text.strip(), 0)


def _read(text: str, depth: int) -> Form:
    if depth > _DEEPEST:
        return Words(text)
    if number(text) is not None or decimal_comma(text) is not None:
        return Scalar(text)
    split = quantity(text)
    if split.binding or (split.value != text and number(split.value) is not None):
        return Scalar(text)  # 1,200 dollars, 3:45 PM
    for reader in (
        _read_named_set,
        _read_words,
        _read_joined,
        _read_list,
        _read_region,
        _read_chain,
        _read_matrix,
        _read_brackets,
        _read_ratio,
        _read_signs,
    ):
        form = reader(text, depth)
        if form is not None:
            return form
    return Scalar(text)


_ALL_REALS = re.compile(
    r"(?:the )?(?:set of )?(?:all )?(?:the )?(?:reals?|real numbers?)"
    r"|all (?:values of \w|real values(?: of \w)?|numbers)"
)
_NOTHING = re.compile(
    r"(?:there (?:is|are) )?(?:no (?:real )?(?:solutions?|values?|roots?)|(?:the )?empty(?: set)?)"
    r"(?: exists?)?|none exist"
)


def _read_named_set(text: str, _: int) -> Form | None:
    plain = re.sub(r"\s+", " ", unwrapped(text)).strip().casefold()
    named = re.fullmatch(r"(?:\w\s*\\in\s*)?\\mathbb\s*\{?\s*([A-Z])\s*\}?", text)
    if named is not None:
        return NamedSet(named[1])
    if re.fullmatch(r"\\emptyset|\\\{\s*\\\}|\{\s*\}", text) or _NOTHING.fullmatch(plain):
        return NamedSet("")
    if _ALL_REALS.fullmatch(plain):
        return NamedSet("R")
    return None


def _read_words(text: str, _: int) -> Form | None:
    plain = words(text)
    if plain is None:
        return None
    # Letters one beside the other are a product, but capital letters name points.
    if len(plain) == 1 and len(unwrapped(text)) <= 3 and not plain[0].isupper():
        return Words(text) if plain[0] in ("yes", "no", "odd", "all", "any") else None
    return Words(text)


def _read_joined(text: str, depth: int) -> Form | None:
    """Items with "or" or "and" between them."""
    marked = _JOINER.sub(lambda match: f"\x00{match[1]}\x00", text)
    if marked == text:
        marked = _BARE_JOINER.sub(lambda match: f"\x00{match[1]}\x00", text)
    if "\x00" not in marked:
        return None
    pieces = re.split(r"\x00(or|and)\x00", marked)
    items = [piece.strip().strip(",;").strip() for piece in pieces[::2]]
    if not all(items) or not all(_is_balanced(item) for item in items):
        return None
    forms: list[Form] = []
    for item in items:
        form = _read(item, depth + 1)
        is_list = isinstance(form, Collection) and not form.is_set
        forms.extend(form.items if is_list and isinstance(form, Collection) else [form])
    joiners = set(pieces[1::2])
    return Collection(tuple(forms), False, joiners.pop() if len(joiners) == 1 else ",")


def _is_balanced(text: str) -> bool:
    depth = 0
    for token, _, depth in tokens(text):
        if depth < 0:
            return False
        depth += token in _OPENING or token.startswith(r"\begin")
    return depth == 0


def _read_list(text: str, depth: int) -> Form | None:
    for separator in (";", ","):
        pieces, found = split_top(text, {separator})
        if not found:
            continue
        pieces = [piece for piece in pieces if piece]
        if len(pieces) > _MOST_ITEMS:
            return Words(text)
        if len(pieces) == 1:
            return _read(pieces[0], depth + 1)
        forms: list[Form] = []
        for piece in pieces:
            form = _read(piece, depth + 1)
            # 2, \pm 3
            is_pair = isinstance(form, Collection) and not form.is_set
            forms.extend(form.items if is_pair and isinstance(form, Collection) else [form])
        return Collection(tuple(forms), False)
    return None


def _read_region(text: str, depth: int) -> Form | None:
    for operation in (r"\setminus", r"\cup", r"\cap"):
        separators = {operation}
        pieces, found = split_top(text, separators)
        if operation == r"\cup" and not found:
            # A bare U between two intervals.
            pieces = re.split(r"(?<=[)\]}])\s*U\s*(?=[(\[\\])", text)
            found = [operation] * (len(pieces) - 1)
        if not found:
            continue
        pieces, relation = _without_membership(pieces)
        if not all(pieces) or len(pieces) > 60:
            return Words(text)
        region = Region(operation[1:], tuple(_read(piece, depth + 1) for piece in pieces))
        return Condition(region, relation) if relation else region
    return None


def _without_membership(pieces: list[str]) -> tuple[list[str], str]:
    """Pieces without the "x \\in" before the first one, and the x."""
    member = re.match(r"([a-zA-Z])\s*\\in(?![a-zA-Z])\s*", pieces[0])
    if member is None:
        return pieces, ""
    return [pieces[0][member.end() :], *pieces[1:]], member[1]


def _read_chain(text: str, depth: int) -> Form | None:
    members, found = split_top(text, set(_RELATIONS))
    relations = tuple(_RELATIONS[token] for token in found)
    if not relations:
        return None
    if relations[0] == "~" and not members[0]:  # \approx 3
        return _read(members[1], depth + 1) if len(members) == 2 else Words(text)
    if relations[0] == "=" and not members[0] and re.search(r"[\d\\]", text):  # = 5
        return _read(text.split("=", 1)[1].strip(), depth + 1)
    if not all(members) or len(members) > 20:
        return Words(text)
    if relations == ("in",):
        inner = _read(members[1], depth + 1)
        if isinstance(inner, Collection | Sequence | Region | NamedSet | Condition):
            return Condition(inner, members[0])
        return Words(text)
    if len(relations) == 1 and r"\pm" in members[1]:
        both = _both_signs(members[1])
        return Collection(tuple(Chain((members[0], item), relations) for item in both), False)
    return Chain(tuple(members), relations)


def _both_signs(text: str) -> tuple[str, str]:
    swapped = text.replace(r"\pm", "\x00").replace(r"\mp", r"\pm").replace("\x00", r"\mp")
    plus = re.sub(r"^\+\s*", "", text.replace(r"\pm", "+").replace(r"\mp", "-").strip())
    minus = re.sub(r"^\+\s*", "", swapped.replace(r"\pm", "+").replace(r"\mp", "-").strip())
    return plus, minus


def _read_signs(text: str, _: int) -> Form | None:
    if r"\pm" not in text and r"\mp" not in text:
        return None
    plus, minus = _both_signs(text)
    return Collection((Scalar(plus), Scalar(minus)), False)


_MATRIX = re.compile(
    r"\[?\(?\s*\\begin\s*\{([pbBvV]?matrix|smallmatrix|array)\}\s*(?:\{[lcr| ]*\})?"
    r"(.*)\\end\s*\{\1\}\s*\]?\)?",
    re.DOTALL,
)


def _read_matrix(text: str, _: int) -> Form | None:
    match = _MATRIX.fullmatch(text)
    if match is None or r"\begin" in match[2] or match[1] in ("vmatrix", "Vmatrix"):
        return None
    rows = [row.strip() for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr", match[2])]
    entries = tuple(
        tuple(entry.strip() for entry in split_top(row.replace(r"\hline", ""), {"&"})[0])
        for row in rows
        if row
    )
    return Matrix(entries) if entries and len({len(row) for row in entries}) == 1 else Words(text)


def _read_brackets(text: str, depth: int) -> Form | None:
    """Content of one pair of brackets that encloses everything."""
    stream = list(tokens(text))
    if len(stream) < 2 or any(level <= 0 for _, _, level in stream[1:-1]):
        return None
    first, last = stream[0][0], stream[-1][0]
    if first not in _OPENING or last not in _CLOSING or stream[-1][2] != 0:
        return None
    inside = text[len(first) : stream[-1][1]].strip()
    if first == r"\{" and last == r"\}":
        return _read_set(inside, depth)
    if not inside or first in ("{", r"\lfloor", r"\lceil") or last == "}":
        return None
    if number(text[1:-1].strip()) is not None and "," in inside:  # (1,234) is a pair
        pieces = inside.split(",")
    else:
        pieces = split_top(inside, {";"})[0]
        pieces = pieces if len(pieces) > 1 else split_top(inside, {","})[0]
    if len(pieces) > _MOST_ITEMS:
        return Words(text)
    if len(pieces) == 1 and first == "(" and last == ")":
        return _read(inside, depth + 1)
    brackets = "()" if first == r"\langle" else first + last
    return Sequence(tuple(_read(piece.strip(), depth + 1) for piece in pieces), brackets)


_BUILDER = re.compile(
    r"\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid(?![a-zA-Z])|:|\|)\s*(.+)", re.DOTALL
)


def _read_set(inside: str, depth: int) -> Form:
    builder = _BUILDER.fullmatch(inside)
    if builder is not None:
        condition = re.sub(r",?\s*[a-zA-Z]\s*\\in\s*\\mathbb\s*\{?R\}?\s*$", "", builder[2]).strip()
        return Condition(_read(condition, depth + 1), builder[1])
    if not inside:
        return NamedSet("")
    form = _read(inside, depth + 1)
    if isinstance(form, Collection) and not form.is_set:
        return Collection(form.items, True)
    if decimal_comma(inside) is not None or (number(inside) is not None and "," in inside):
        return Collection(tuple(Scalar(piece.strip()) for piece in inside.split(",")), True)
    return Collection((form,), True)


def _read_ratio(text: str, _: int) -> Form | None:
    parts, found = split_top(text, {":"})
    if not found or not all(parts) or len(parts) > 8:
        return None
    return Ratio(tuple(parts))


# --- choices -------------------------------------------------------------------------------------

_CHOICE = re.compile(
    r"(?:\\text\{\s*)?(?:\(\s*(?P<a>[A-J])\s*\)|(?P<b>[A-J])\s*[).](?=[\s}]|$)|(?P<c>[A-J])\s*:(?=\s))"
    r"\s*\}?\s*(?P<rest>.*)",
    re.DOTALL,
)
_OTHER_LABEL = re.compile(r"(?<![a-zA-Z\\])\(?[A-J](?:[).:]|$)")


def choice(text: str) -> tuple[str, str] | None:
    """(letter, what follows) of a cleaned answer such as "(A) 5" or "B. red"; None for others."""
    match = _CHOICE.fullmatch(text)
    if match is None:
        plain = unwrapped(text)
        return (plain, "") if re.fullmatch("[A-J]", plain) else None
    rest = match["rest"].strip().removesuffix("}") if "{" not in match["rest"] else match["rest"]
    rest = rest.strip()
    # (A)(B), (A) + 1 and "A. or B."
    if re.match(r"[-+*/^_(=<>|]|\\(?:cup|cap|cdot|times|in|text\{\s*(?:or|and))", rest):
        return None
    if _OTHER_LABEL.search(rest):
        return None
    return next(filter(None, (match["a"], match["b"], match["c"]))), rest


# --- names ---------------------------------------------------------------------------------------

_INDEX = re.compile(r"_\s*(?:\{[^{}]*\}|\w)|'+|\^\s*\{\s*-1\s*\}(?=\s*\()")
_NAME = re.compile(
    r"\\?[a-zA-Z]+|\\text\{[^{}\d]*\}|[a-zA-Z]\s*\([^()]*\)"
    r"|\(\s*[a-zA-Z]\s*(?:,\s*[a-zA-Z]\s*){1,3}\)"
    r"|(?:m\s*)?\\(?:angle|triangle|measuredangle|overline|vec|hat|bar|tilde)\s*\{?\s*[a-zA-Z]+\s*\}?"
    r"|\|\s*(?:\\vec\s*\{)?[A-Z]{2}\}?\s*\||\\frac\{[a-zA-Z]+\}\{[a-zA-Z]+\}"
    r"|\\(?:sin|cos|tan|cot|log|ln|arg|deg|det)\s*\(?(?:\\?[a-zA-Z]+|\\angle [A-Z]+)\)?"
)


def is_name(text: str) -> bool:
    r"""Whether `text` can be given a value: ``x``, ``f(x)``, ``\angle ABC``, ``m+n``."""
    bare = _INDEX.sub("", text).strip()
    if len(bare) > 60:
        return False
    pieces = re.split(r"\s*[+*/-]\s*|\s*\\cdot\s*", bare)
    return all(_NAME.fullmatch(piece.strip()) is not None for piece in pieces)


def same_text(a: str, b: str) -> bool:
    """Whether two cleaned texts say the same, letter for letter."""
    return key(a) == key(b)
