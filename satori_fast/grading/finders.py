# SPDX-License-Identifier: Apache-2.0
"""Places in a response where its final answer may stand: a box, ``####``, a pattern, a number.

The one that a run goes by (`reward.answer`) serves training rewards and evaluation alike. Boxes are
`boxes`, comparing answers is `verdict`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

from satori_fast.grading.boxes import extract_answer

# A minus is a sign where no number, name or bracket ends before it: "x = -3", not "5-3".
_SIGN = r"(?:(?<![\w.)\]}])[-\u2212+])?"
_NUMBER = re.compile(
    rf"{_SIGN}\$?(?<![\w.])\d+(?:,\d{{3}})*(?:\.\d+)?(?:[eE][-+]?\d+)?(?:/\d+(?:\.\d+)?)?"
)
_HASHES = "####"


@dataclass(frozen=True, slots=True)
class AnswerFinder:
    r"""One way to find the final answer of a response.

    name:    as `reward.answer` has it. find: the answer in a text, None where there is none.
    shown:   what a response with an answer has, for messages: "a \\boxed{}".
    is_marked: the response says itself that this is its answer; else a response that was cut off
             ends with a number that is no answer.
    """

    name: str
    find: Callable[[str], str | None]
    shown: str
    is_marked: bool = True

    def answer(self, text: str, *, is_cut: bool = False) -> str | None:
        """The final answer of a response. is_cut: it ended at the length limit."""
        return None if is_cut and not self.is_marked else self.find(text)


def last_number(text: str) -> str | None:
    """The last number of a text: digits, with sign, thousands' commas, decimals, exponent, or a
    fraction of two of them; a dollar sign is no part of it.

    >>> last_number("It costs 3 * $1,250.50.")
    '1,250.50'
    """
    found = None
    for match in _NUMBER.finditer(text):
        found = match
    return None if found is None else found[0].replace("$", "").replace("\u2212", "-")


def after_hashes(text: str) -> str | None:
    """The rest of the line after the last ``####``, as GSM8K marks answers; None if there is none.

    >>> after_hashes("1,000 + 200 = 1,200" + chr(10) + "#### 1,200")
    '1,200'
    """
    _, marker, rest = text.rpartition(_HASHES)
    if not marker:
        return None
    line, _, _ = rest.strip(" \t").partition("\n")
    return line.strip().strip("$") or None


BOXED = AnswerFinder("boxed", extract_answer, r"a \boxed{}")
_FINDERS = {
    "boxed": BOXED,
    "last_number": AnswerFinder("last_number", last_number, "a number", is_marked=False),
    "hashes": AnswerFinder("hashes", after_hashes, "an answer after ####"),
}


def answer_finder(name: str) -> AnswerFinder:
    """The finder of a name, or of a pattern: a regular expression with one group, the answer, whose
    last match in a response counts. ValueError for what is neither."""
    if name in _FINDERS:
        return _FINDERS[name]
    known = ", ".join(_FINDERS)
    near = difflib.get_close_matches(name, _FINDERS, n=1)
    hint = f"; the nearest is {near[0]!r}" if near else ""
    try:
        pattern = re.compile(name)
    except re.error as error:
        raise ValueError(
            f"{name!r} is none of {known}{hint}, and no regular expression either: {error}"
        ) from None
    if pattern.groups != 1:
        raise ValueError(
            f"{name!r} is none of {known}{hint}; a pattern has one group in parentheses, the "
            r"answer: 'Answer: (.+)'"
        )
    return AnswerFinder(name, _by_pattern(pattern), f"a match of {name!r}")


def _by_pattern(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    def find(text: str) -> str | None:
        found: str | None = None
        for match in pattern.finditer(text):
            found = match[1]
        return (found or "").strip() or None

    return find
