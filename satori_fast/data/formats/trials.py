# SPDX-License-Identifier: Apache-2.0
"""Trials: solve, verify, solve, verify, ... until the answer is trusted (S2R, arXiv 2502.12853).

No special tokens: plain words open an action, and the last words of a verification are its verdict.

    s1  Wait, let me recheck my solution. v1  Let me try again. s2  Wait, ... v2

The first action of a response is a solution. A separator belongs to the action that it opens. Two
dialects say the same: the paper's sentences, and the single words of the built-in domains, whose
tokenizer knows no others.

This module reads text. Whether a solution is right is `grading`'s, what an action earns
`rewards.process`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np

from satori_fast.data.formats.format import ResponseFormat, TokenText, split_at_bytes
from satori_fast.grading import extract_answer
from satori_fast.types import Prefix, Segment, SegmentKind, Trajectory

SOLVE, VERIFY = SegmentKind.SOLVE, SegmentKind.VERIFY

# What can be wrong with the shape of a response, by the name after "malformed/" in the metrics.
FAULTS = ("unverified", "two_in_a_row", "empty", "unboxed", "no_verdict", "cut")


@dataclass(frozen=True, slots=True)
class Trial:
    """A solution and what was said of it; verification is "" where nothing was. No separators."""

    solution: str
    verification: str = ""


@dataclass(frozen=True)
class Dialect:
    """The words that open actions and give verdicts.

    verify, retry: separators, as they are written. opening: finds them, spaces around included; its
    groups "verify" and "retry" tell them apart. judging: finds verdicts; its groups "right" and
    "wrong" are those that decide, a match of neither takes the one before it back.
    words: those that a tokenizer of whole words has to know.
    """

    name: str
    verify: str
    retry: str
    opening: re.Pattern[str]
    judging: re.Pattern[str]
    words: tuple[str, ...] = ()
    opening_bytes: re.Pattern[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Tokens may hold a part of a character, so that places are counted in bytes.
        object.__setattr__(self, "opening_bytes", re.compile(self.opening.pattern.encode()))

    def verdict(self, verification: str) -> bool | None:
        """Read what a verification says of the solution: the last match decides, None without one.

        >>> PAPER.verdict("2 + 2 is 4. Therefore, the answer is correct.")
        True
        >>> PAPER.verdict("The first answer is correct, the final answer is incorrect.")
        False
        """
        found = None
        for match in self.judging.finditer(verification):
            found = None if match.lastgroup is None else match.lastgroup == "right"
        return found

    def content(self, action: str) -> str:
        """Text of an action without the separator that opens it and the spaces around."""
        opened = self.opening.match(action)
        return action[opened.end() if opened else 0 :].strip()

    def join_trials(self, trials: Sequence[Trial]) -> str:
        """Write trials as a response; `split_trials` reads them back.

        >>> WORDS.join_trials([Trial("3", "2 + 2 = 4 wrong"), Trial("4", "2 + 2 = 4 right")])
        '3 wait 2 + 2 = 4 wrong again 4 wait 2 + 2 = 4 right'
        """
        text = ""
        for number, trial in enumerate(trials):
            text += f"{self.retry if number else ''}{trial.solution}"
            text += f"{self.verify}{trial.verification}" if trial.verification else ""
        return text

    def split_trials(self, text: str) -> list[Trial]:
        """Read trials from a response: a verification belongs to the solution before it.

        Without a solution before it, that solution is ""; of two in a row the second is one of a
        solution "" too.
        """
        trials: list[Trial] = []
        for kind, action in self.actions(text):
            content = self.content(action)
            if kind is SOLVE:
                trials.append(Trial(content))
            elif trials and not trials[-1].verification:
                trials[-1] = Trial(trials[-1].solution, content)
            else:
                trials.append(Trial("", content))
        return trials

    def actions(self, text: str) -> list[tuple[SegmentKind, str]]:
        """Cut text into actions; joined they are the text."""
        opened = opened_at(self.opening.finditer(text))
        stops = [*(start for start, _ in opened[1:]), len(text)]
        return [
            (kind, text[start:stop])
            for (start, kind), stop in zip(opened, stops, strict=True)
            if start < stop
        ]


def opened_at(separators: Iterable[re.Match[Any]]) -> list[tuple[int, SegmentKind]]:
    """Find where actions begin, and their kinds; the first at 0, a solution unless one opens there.

    separators: matches of a dialect's `opening`, in order.
    """
    opened = [(m.start(), VERIFY if m.lastgroup == "verify" else SOLVE) for m in separators]
    return opened if opened and opened[0][0] == 0 else [(0, SOLVE), *opened]


def _dialect(name: str, *, verify: str, retry: str, judging: str, words: str = "") -> Dialect:
    # Spaces of ASCII alone: the same places are found in text and in its bytes.
    def sentence(text: str) -> str:
        return rf"\b{re.escape(text.strip().removesuffix('.'))}\b\.?"

    opening = (
        rf"[ \t\r\n]*(?:(?P<verify>{sentence(verify)})|(?P<retry>{sentence(retry)}))[ \t\r\n]*"
    )
    return Dialect(
        name,
        verify=verify,
        retry=retry,
        opening=re.compile(opening),
        judging=re.compile(judging, flags=re.IGNORECASE),
        words=tuple(words.split()),
    )


PAPER = _dialect(
    "paper",
    verify="\n\nWait, let me recheck my solution.\n\n",
    retry="\n\nLet me try again.\n\n",
    # Verifications of the paper's data end with "Therefore, the answer is correct", "incorrect" or
    # "cannot be verified"; models say the same in other words.
    judging=r"\b(?:answer|solution|result)\b[^.\n]{0,80}?\bis (?:indeed |also |therefore |thus )?"
    r"(?:(?P<wrong>incorrect|not correct|not right|wrong)|(?P<right>correct|right))\b"
    r"|\b(?:cannot|can not|can't) (?:be )?verif(?:y|ied)\b",
)
WORDS = _dialect(
    "words",
    verify=" wait ",
    retry=" again ",
    judging=r"\b(?:(?P<right>right)|(?P<wrong>wrong|over|under))\b",
    words="wait again right wrong",
)
DIALECTS: Mapping[str, Dialect] = MappingProxyType({d.name: d for d in (PAPER, WORDS)})


class Trials(ResponseFormat):
    """S2R's format: solutions and verifications by turns, cut at separators of plain text."""

    name = "trials"
    self_corrects = True
    has_verifications = True
    has_dialects = True
    colours = MappingProxyType({SOLVE: "#3f6fb5", VERIFY: "#c9892f"})

    def __init__(self, dialect: Dialect = PAPER) -> None:
        self.dialect = dialect

    @property
    def words(self) -> tuple[str, ...]:
        """Words that a tokenizer of whole words needs beside those of its domain."""
        return self.dialect.words

    @property
    def full_name(self) -> str:
        """Name of the format and its dialect."""
        return f"{self.name}/{self.dialect.name}"

    def in_dialect(self, name: str) -> Trials:
        """Give the format with other separators and verdicts, a name of `DIALECTS`."""
        return Trials(DIALECTS[name])

    def segments(
        self, ids: np.ndarray, tokens: TokenText, *, prefix: Prefix | None
    ) -> tuple[Segment, ...]:
        """Cut at the separators, by bytes: a token that straddles one belongs to the action that it
        starts in. The verdict of a verification is read here, once."""
        spelled = tokens.token_bytes(ids)
        opened = opened_at(self.dialect.opening_bytes.finditer(b"".join(spelled)))
        starts = split_at_bytes(ids, tokens, [start for start, _ in opened])
        stops = [*starts[1:], len(ids)]
        made: list[Segment] = []
        for (_, kind), start, stop in zip(opened, starts, stops, strict=True):
            if start == stop:  # one token holds the whole separator, and the next one too
                continue
            text = b"".join(spelled[start:stop]).decode(errors="replace")
            verdict = self.dialect.verdict(text) if kind is VERIFY else None
            made.append(Segment(kind, start, stop, text, verdict))
        return tuple(made)

    def pieces(self, text: str) -> list[tuple[SegmentKind, str]]:
        """Cut the text of a prefix at the separators."""
        return self.dialect.actions(text)

    def attempts(self, text: str) -> list[str]:
        """List the boxed answers of all solutions but the last, where they have one.

        >>> Trials(WORDS).attempts(r"\\boxed{1} wait wrong again \\boxed{2} wait right")
        ['1']
        """
        *before, _ = [trial.solution for trial in self.dialect.split_trials(text)]
        answers = [extract_answer(solution) for solution in before]
        return [answer for answer in answers if answer is not None]

    def metrics(self, trajectory: Trajectory) -> Mapping[str, float]:
        """Count solutions, and say what is wrong with the shape of the response (`faults`)."""
        found = self.faults(trajectory)
        shares = {f"malformed/{fault}": float(fault in found) for fault in FAULTS}
        num_solutions = sum(segment.kind is SOLVE for segment in trajectory.segments)
        return {"trials": float(num_solutions), "malformed": float(bool(found)), **shares}

    def faults(self, trajectory: Trajectory) -> set[str]:
        """Find what is wrong with the shape of a response, of `FAULTS`:

        unverified: the last solution has no verification. two_in_a_row: solutions, or
        verifications. empty: nothing follows a separator. unboxed: a solution without an answer.
        no_verdict: a verification that decides nothing. cut: ended by the length limit.
        """
        segments = trajectory.segments
        solutions = [segment for segment in segments if segment.kind is SOLVE]
        judged = [segment for segment in segments if segment.kind is VERIFY]
        given = {
            "unverified": segments[-1].kind is SOLVE,
            "two_in_a_row": any(a.kind is b.kind for a, b in pairwise(segments)),
            "empty": any(not self.dialect.content(segment.text) for segment in segments),
            "unboxed": any(not extract_answer(segment.text) for segment in solutions),
            "no_verdict": any(segment.verdict is None for segment in judged),
            "cut": trajectory.finish == "length",
        }
        return {fault for fault, is_so in given.items() if is_so}


TRIALS = Trials()
