# SPDX-License-Identifier: Apache-2.0
"""Whether an answer equals the gold answer, and whether a gold answer can be graded at all.

Two cheap tests (the same text, the same plain number) settle most answers in the caller. The others
are read form by form (`forms`, `equality`), their expressions by math-verify's parser (`algebra`);
`spelling` brings both sides to one spelling first. Nothing here has a time limit: see `pool`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

from satori_fast.grading.algebra import UnreadableError
from satori_fast.grading.boxes import extract_answer
from satori_fast.grading.equality import check_readable, same_answer
from satori_fast.grading.finders import AnswerFinder
from satori_fast.grading.spelling import clean, key, number

Reason = Literal["match", "mismatch", "no_answer", "timeout", "crash"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The grade of one response.

    extracted: the answer that was found, None when there is none.
    reason:    only "match" is right; "timeout" and "crash": the grading had to be killed, or died.
    """

    correct: bool
    extracted: str | None
    reason: Reason


class Grader(Protocol):
    """Grades many responses; `GradingPool` is one."""

    @property
    def finder(self) -> AnswerFinder:
        """The place of the answer in a response."""
        ...

    def grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]: ...


# An answer that is much longer than the gold one is wrong: nobody writes it, and reading it costs
# seconds ("1,1,1,..." to the end of the response).
_SHORT_ANSWER, _LONGER_THAN_GOLD = 1_000, 4
_SHORT_INTEGER = 16  # digits; most answers to word problems need no spelling looked at


def too_long(answer: str, gold: str) -> bool:
    """Whether an answer is so long that it is wrong unread."""
    return len(answer) > _SHORT_ANSWER + _LONGER_THAN_GOLD * len(gold)


def _is_short_integer(text: str) -> bool:
    return len(text) < _SHORT_INTEGER and text.isascii() and text.isdigit()


def decided_cheaply(answer: str, gold: str) -> bool | None:
    """Equality where it is cheap to see; None where the answers must be read."""
    if _is_short_integer(answer) and _is_short_integer(gold):
        return int(answer) == int(gold)
    if not gold.strip() or not answer.strip():
        return False
    if too_long(answer, gold):
        return False
    answer, gold = clean(answer), clean(gold)
    if not gold or not answer:
        return False
    if key(answer) == key(gold):
        return True
    answer_number, gold_number = number(answer), number(gold)
    if answer_number is not None and gold_number is not None:
        return answer_number == gold_number
    return None


@lru_cache(maxsize=65_536)
def equivalent(answer: str, gold: str) -> bool:
    """Whether `answer` equals `gold`. Both are bare answers, without box or dollar signs (allowed).

    Runs in the caller, without a time limit: use `GradingPool` for answers that a model wrote.
    """
    decided = decided_cheaply(answer, gold)
    return same_answer(clean(answer), clean(gold)) if decided is None else decided


def check_gold(gold: str) -> None:
    """Raise ValueError unless `gold` can be graded: a plain number, plain words or an expression.

    Meant for load time: an answer that cannot be read would count every response as wrong. Runs in
    the caller, without a time limit: `GradingPool.check_golds` for many.
    """
    fault = gold_fault(gold)
    if fault is not None:
        raise ValueError(f"the gold answer {gold[:200]!r} {fault}")


def gold_fault(gold: str) -> str | None:
    """Reason why `gold` cannot be graded, None where it can."""
    cleaned = clean(gold)
    if not cleaned:
        return "is empty"
    try:
        check_readable(cleaned)
    except UnreadableError:
        return "cannot be read as an expression"
    except RecursionError:
        return "is too deep to read"
    return None


def grade(response: str, gold: str) -> Verdict:
    """Grade a whole response in the caller, without a time limit (see `GradingPool`)."""
    answer = extract_answer(response)
    if answer is None:
        return Verdict(False, None, "no_answer")
    return verdict_of(answer, equivalent(answer, gold))


def verdict_of(answer: str, same: bool) -> Verdict:
    return Verdict(same, answer, "match" if same else "mismatch")
