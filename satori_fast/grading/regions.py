# SPDX-License-Identifier: Apache-2.0
r"""Sets of real numbers: intervals, inequalities, unions and set builders brought to one form.

``x < 1 \text{ or } x > 2``, ``(-\infty,1) \cup (2,\infty)`` and ``\mathbb{R} \setminus [1,2]`` are
the same set. Ends that are numbers are sorted and merged; others are compared as they stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from satori_fast.grading.algebra import ordering_value, same_expression
from satori_fast.grading.forms import (
    Chain,
    Collection,
    Condition,
    Form,
    NamedSet,
    Region,
    Scalar,
    Sequence,
    read,
)

_LOW, _HIGH = r"-\infty", r"\infty"
_LOW_ENDS = frozenset((_LOW, r"- \infty"))
_HIGH_ENDS = frozenset((_HIGH, r"+\infty", r"+ \infty"))


@dataclass(frozen=True, slots=True)
class Piece:
    """One interval. open: are the low and the high end left out?"""

    low: str
    high: str
    low_open: bool
    high_open: bool


@dataclass(frozen=True, slots=True)
class RealSet:
    """Pieces in ascending order. name: of the variable, "" where none is named.

    is_surely_set: False for "(1,2)", which may be a point as well.
    """

    pieces: tuple[Piece, ...]
    name: str = ""
    is_surely_set: bool = True


ALL = RealSet((Piece(_LOW, _HIGH, True, True),))


def same_region(a: RealSet, b: RealSet) -> bool:
    """Whether two sets of real numbers are the same. Two pairs of numbers are never intervals."""
    if not a.is_surely_set and not b.is_surely_set:
        return False
    if a.name and b.name and a.name != b.name:
        return False
    return len(a.pieces) == len(b.pieces) and all(
        x.low_open == y.low_open
        and x.high_open == y.high_open
        and _same_end(x.low, y.low)
        and _same_end(x.high, y.high)
        for x, y in zip(a.pieces, b.pieces, strict=True)
    )


def _same_end(a: str, b: str) -> bool:
    if a in _LOW_ENDS or a in _HIGH_ENDS or b in _LOW_ENDS or b in _HIGH_ENDS:
        return (a in _LOW_ENDS and b in _LOW_ENDS) or (a in _HIGH_ENDS and b in _HIGH_ENDS)
    return same_expression(a, b)


def region_of(form: Form) -> RealSet | None:
    """The set of real numbers that a form describes, None where it describes none."""
    match form:
        case NamedSet("R"):
            return ALL
        case NamedSet(""):
            return RealSet(())
        case Sequence((Scalar(low), Scalar(high)), brackets):
            return RealSet(
                (_piece(low, high, brackets[0] == "(", brackets[1] == ")"),),
                is_surely_set=brackets != "()" or _LOW in low or _HIGH in high,
            )
        case Collection(items, is_set, joiner):
            return _of_collection(items, is_set=is_set, joiner=joiner)
        case Chain():
            return _of_chain(form)
        case Condition(inner, name):
            found = region_of(inner)
            if found is None or (found.name and name and found.name != name):
                return None
            return RealSet(found.pieces, name or found.name)
        case Region(operation, parts):
            found = [region_of(part) for part in parts]
            known = [part for part in found if part is not None]
            return _combined(operation, known) if len(known) == len(found) else None
        case _:
            return None


def _of_collection(items: tuple[Form, ...], *, is_set: bool, joiner: str) -> RealSet | None:
    if is_set:  # single numbers
        points = [item.text for item in items if isinstance(item, Scalar)]
        if len(points) != len(items):
            return None
        return _combined("cup", [RealSet((Piece(p, p, False, False),)) for p in points])
    if not all(isinstance(item, Chain | Condition) for item in items):
        return None
    found = [region_of(item) for item in items]
    known = [part for part in found if part is not None]
    if len(known) < len(found) or len({part.name for part in known}) > 1:
        return None
    # x > 1, x < 3 means both, x = 1, x = 3 either; x < 1, x > 3 only "or" would mean.
    if joiner == "or":
        return _combined("cup", known)
    return _combined("cap", known)


def _of_chain(chain: Chain) -> RealSet | None:
    """a < x <= b, x > 1, x != 3, with a variable at one place."""
    relations = list(chain.relations)
    members = list(chain.members)
    if set(relations) <= {">", ">="}:
        members.reverse()
        relations = [relation.replace(">", "<") for relation in reversed(relations)]
    if relations == ["!="]:
        name, value = members if _is_variable(members[0]) else members[::-1]
        if not _is_variable(name) or ordering_value(value) is None:
            return None
        point = RealSet((Piece(value, value, False, False),), name)
        return _combined("setminus", [RealSet(ALL.pieces, name), point])
    if not relations or not set(relations) <= {"<", "<="}:
        return None
    if len(members) == 2:
        if _is_variable(members[0]):
            members, relations = [_LOW, *members], ["<", *relations]
        else:
            members, relations = [*members, _HIGH], [*relations, "<"]
    if len(members) != 3 or not _is_variable(members[1]):
        return None
    low, name, high = members
    if any(not isinstance(read(end), Scalar) for end in (low, high)):
        return None
    piece = _piece(low, high, relations[0] == "<", relations[1] == "<")
    return RealSet((piece,), name)


def _is_variable(text: str) -> bool:
    stripped = text.strip().removeprefix("\\")
    return (
        len(text) <= 12
        and stripped.split("_")[0].isalpha()
        and (len(stripped.split("_")[0]) == 1 or text.startswith("\\"))
        and stripped not in ("pi", "infty", "e")
    )


def _piece(low: str, high: str, low_open: bool, high_open: bool) -> Piece:
    return Piece(low, high, low_open or low in _LOW_ENDS, high_open or high in _HIGH_ENDS)


# --- putting sets together -----------------------------------------------------------------------

# An end is (value, side): a low end that is open starts just above its value (side 1), a high end
# that is open stops just below it (side -1).
_Span = tuple[tuple[Any, int], tuple[Any, int], Piece]


def _spans(pieces: tuple[Piece, ...]) -> list[_Span] | None:
    """Pieces with numbers for their ends, None if one is no number; empty ones left out."""
    spans: list[_Span] = []
    for piece in pieces:
        low, high = ordering_value(piece.low), ordering_value(piece.high)
        if low is None or high is None:
            return None
        start, stop = (low, 1 if piece.low_open else 0), (high, -1 if piece.high_open else 0)
        if _before(start, stop) or start == stop:
            spans.append((start, stop, piece))
    return spans


def _before(a: tuple[Any, int], b: tuple[Any, int]) -> bool:
    return bool(a[0] < b[0]) or (bool(a[0] == b[0]) and a[1] < b[1])


def _combined(operation: str, parts: list[RealSet]) -> RealSet | None:
    names = {part.name for part in parts if part.name}
    if len(names) > 1:
        return None
    name = names.pop() if names else ""
    if operation == "cup":
        pieces = _union(tuple(piece for part in parts for piece in part.pieces))
        return None if pieces is None else RealSet(pieces, name)
    result = parts[0].pieces
    for part in parts[1:]:
        other = _complement(part.pieces) if operation == "setminus" else part.pieces
        if other is None:
            return None
        both = _intersection(result, other)
        if both is None:
            return None
        result = both
    return RealSet(result, name)


def _union(pieces: tuple[Piece, ...]) -> tuple[Piece, ...] | None:
    spans = _spans(pieces)
    if spans is None:
        return None
    merged: list[_Span] = []
    for start, stop, piece in _sorted(spans):
        if merged and not _apart(merged[-1][1], start):
            last_start, last_stop, last = merged[-1]
            if _before(last_stop, stop):
                joined = Piece(last.low, piece.high, last.low_open, piece.high_open)
                merged[-1] = (last_start, stop, joined)
        else:
            merged.append((start, stop, piece))
    return tuple(piece for _, _, piece in merged)


def _sorted(spans: list[_Span]) -> list[_Span]:
    ordered: list[_Span] = []
    for span in spans:
        place = next((i for i, other in enumerate(ordered) if _before(span[0], other[0])), None)
        ordered.insert(len(ordered) if place is None else place, span)
    return ordered


def _apart(stop: tuple[Any, int], start: tuple[Any, int]) -> bool:
    """Whether there is a number between the end of one span and the start of the next."""
    if bool(stop[0] < start[0]):
        return True
    return bool(stop[0] == start[0]) and stop[1] == -1 and start[1] == 1


def _complement(pieces: tuple[Piece, ...]) -> tuple[Piece, ...] | None:
    union = _union(pieces)
    if union is None:
        return None
    gaps: list[Piece] = []
    low, low_open = _LOW, True
    for piece in union:
        if piece.low not in _LOW_ENDS:
            gaps.append(_piece(low, piece.low, low_open, not piece.low_open))
        low, low_open = piece.high, not piece.high_open
    if low not in _HIGH_ENDS:
        gaps.append(_piece(low, _HIGH, low_open, True))
    return tuple(gaps)


def _intersection(a: tuple[Piece, ...], b: tuple[Piece, ...]) -> tuple[Piece, ...] | None:
    first, second = _spans(a), _spans(b)
    if first is None or second is None:
        return None
    shared: list[_Span] = []
    for start_a, stop_a, piece_a in first:
        for start_b, stop_b, piece_b in second:
            start, low = (start_b, piece_b) if _before(start_a, start_b) else (start_a, piece_a)
            stop, high = (stop_a, piece_a) if _before(stop_a, stop_b) else (stop_b, piece_b)
            if _before(start, stop) or start == stop:
                both = Piece(low.low, high.high, low.low_open, high.high_open)
                shared.append((start, stop, both))
    return tuple(piece for _, _, piece in _sorted(shared))
