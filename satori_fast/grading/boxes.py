# SPDX-License-Identifier: Apache-2.0
r"""Finding ``\boxed{}`` answers in a response, in one pass that copies nothing.

It runs in the trainer's process on whatever a model wrote. There is no fallback to the last number:
"#### 5" and "Answer: 5" are no answers. Other places of an answer are `finders`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# A doubled backslash before "boxed" is an escape too many, not a row's end.
_BOX_TOKENS = re.compile(r"\\+(?P<box>(?:boxed|fbox)(?![a-zA-Z]))?|[{}]")
# What a box without braces takes in: a number, a command with its arguments, a letter.
_UNBRACED = re.compile(
    r"\s*(?P<answer>[-+]?\\?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?|\\[a-zA-Z]+\s*(?:\{[^{}]*\}){1,2}"
    r"|[-+]?\\pi(?![a-zA-Z])|[a-zA-Z](?![a-zA-Z]))"
)
_BRACE = re.compile(r"\s*\{")


@dataclass(slots=True)
class _Box:
    """Begin and end of the content of a box. end: None while it is open."""

    start: int
    end: int | None
    encloses: bool = False

    def content(self, text: str) -> str | None:
        return None if self.end is None else text[self.start : self.end].strip() or None


def _scan_boxes(text: str, cuts: Sequence[int] = ()) -> tuple[list[_Box], list[str | None]]:
    """Boxes of `text` in order of opening, and the answer that stands at each of `cuts`.

    One pass that copies nothing but the standing answers, because a degenerate response can open
    thousands of boxes, one in the other. The last box to open is never around another one: its
    content is the answer.
    """
    boxes: list[_Box] = []
    standing: list[str | None] = []
    braces: list[_Box | None] = []  # the box that each open brace opened, None: a plain brace
    open_boxes: list[_Box] = []
    known: tuple[_Box | None, str | None] = (None, None)

    def record(until: int | None) -> None:
        nonlocal known
        while len(standing) < len(cuts) and (until is None or cuts[len(standing)] <= until):
            last = boxes[-1] if boxes else None
            if last is None or last.end is None:
                standing.append(None)
                continue
            if known[0] is not last:
                known = (last, last.content(text))
            standing.append(known[1])

    position = 0
    while (token := _BOX_TOKENS.search(text, position)) is not None:
        position = token.end()
        record(token.start())
        if token["box"] is not None:
            opened = _open_box(text, position)
            if opened is None:
                continue
            if open_boxes:  # boxes further out are marked already
                open_boxes[-1].encloses = True
            boxes.append(opened)
            position = opened.end or opened.start
            if opened.end is None:
                braces.append(opened)
                open_boxes.append(opened)
        elif token[0].startswith("\\"):
            position += len(token[0]) % 2  # an odd run of backslashes escapes what follows
        elif token[0] == "{":
            braces.append(None)
        elif token[0] == "}" and braces and (box := braces.pop()) is not None:
            open_boxes.pop()
            box.end = token.start()
    record(None)
    return boxes, standing


def _open_box(text: str, position: int) -> _Box | None:
    """The box whose command ends at `position`; None for a word about boxes."""
    brace = _BRACE.match(text, position)
    if brace is not None:
        return _Box(brace.end(), None)
    unbraced = _UNBRACED.match(text, position)
    return _Box(*unbraced.span("answer")) if unbraced is not None else None


def extract_answer(text: str) -> str | None:
    r"""Content of the last ``\boxed{}`` in `text`, stripped; None if missing, empty or unclosed.

    ``\fbox{5}`` and ``\boxed 5`` are boxes too.

    >>> extract_answer(r"\boxed{1} no, \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    """
    boxes, _ = _scan_boxes(text)
    return boxes[-1].content(text) if boxes else None


def extract_answers(text: str) -> list[str]:
    """Contents of all closed, non-empty boxes of `text`, in order, stripped.

    A box around another box is left out.
    """
    return [content for content, _ in closed_boxes(text)]


def closed_boxes(text: str) -> list[tuple[str, int]]:
    r"""`extract_answers`, each with the place in `text` at which its box is closed.

    >>> closed_boxes(r"\boxed{5} or \boxed 7")
    [('5', 9), ('7', 21)]
    """
    found: list[tuple[str, int]] = []
    for box in _scan_boxes(text)[0]:
        content = box.content(text)
        if content is not None and box.end is not None and not box.encloses:
            found.append((content, box.end + text.startswith("}", box.end)))
    return found


def standing_answers(text: str, cuts: Sequence[int]) -> list[str | None]:
    """`extract_answer(text[:cut])` of each of the ascending `cuts`, in one pass."""
    return _scan_boxes(text, cuts)[1]
