# SPDX-License-Identifier: Apache-2.0
"""Responses to benchmarks judged by three graders, by the kind of answer that is asked for.

The house grader is primary: it reads boxes and compares values. The strict one compares texts, the
lenient one follows the papers' evaluator (`grading.lenient`); they are there so that figures can be
compared; `Judgement.agrees` says where they differ. No problem is left out for its gold: one that
cannot be read is compared as text, one that is missing makes every answer wrong, and both say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from satori_fast.evaluation.benchmark_sets import BenchmarkSet, Item
from satori_fast.evaluation.benchmarks import AnswerKind, Labels
from satori_fast.evaluation.code_answers import CallRunner, bare_code, same_literal
from satori_fast.grading import (
    GradingPool,
    Verdict,
    extract_answer,
    lenient_answer,
    strict_equal,
)
from satori_fast.grading.forms import choice
from satori_fast.grading.spelling import clean, key, number

_LAST_LETTER = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])")
_WRAP = re.compile(r"\\(?:text(?:bf|it|tt)?|mathrm|mathbf|mathtt)\s*\{(.*)\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Verdicts of three graders on one response.

    answer:  that the house grader reads, None without a box. lenient_answer: the lenient one's.
    reason:  of the house verdict: "match", "mismatch", "no_answer", "timeout", "crash"; "no_gold"
             where the row has none; "text" where the gold cannot be read and texts were compared;
             for functions what happened to the call.
    """

    house: bool
    strict: bool
    lenient: bool
    answer: str | None
    lenient_answer: str | None
    reason: str

    @property
    def agrees(self) -> bool:
        """Whether all three say the same."""
        return self.house == self.strict == self.lenient


class Judge:
    """Judges responses to one benchmark.

    pool:       compares values in processes that can be killed.
    unreadable: why the golds of some problems cannot be read, by problem id (`golds`).
    runner:     runs functions of CRUXEval in a sandbox.
    """

    def __init__(
        self,
        benchmark: BenchmarkSet,
        pool: GradingPool,
        unreadable: Mapping[str, str],
        runner: CallRunner,
    ) -> None:
        self._kind: AnswerKind = benchmark.benchmark.kind
        self._labels = benchmark.benchmark.labels
        self._pool, self._unreadable, self._runner = pool, unreadable, runner

    def judge(self, responses: Sequence[tuple[Item, str]]) -> list[Judgement]:
        """Judge (item, text that its answer is read from), in order."""
        if self._kind == "math":
            return self._judge_math(responses)
        return [self._judge_one(item, text) for item, text in responses]

    def right(self, answers: Sequence[tuple[Item, str]]) -> list[bool]:
        """The house verdict alone, on (item, bare answer), in order."""
        if self._kind != "math":
            return [
                item.problem.answer is not None
                and self._is_right(item, answer, item.problem.answer)[0]
                for item, answer in answers
            ]
        verdicts = self._verdicts([(item, rf"\boxed{{{answer}}}") for item, answer in answers])
        return [
            self._of_values(item, verdict, lenient_answer=None, is_close=False).house
            for (item, _), verdict in zip(answers, verdicts, strict=True)
        ]

    def _verdicts(self, responses: Sequence[tuple[Item, str]]) -> list[Verdict]:
        return self._pool.grade_many(
            (text, _with_unit(item, item.problem.answer or "")) for item, text in responses
        )

    def _judge_math(self, responses: Sequence[tuple[Item, str]]) -> list[Judgement]:
        verdicts = self._verdicts(responses)
        answers = [lenient_answer(text) for _, text in responses]
        # What is right to the house grader is right to the lenient one.
        unsure = [i for i, verdict in enumerate(verdicts) if not verdict.correct]
        pairs = [(answers[i] or "", responses[i][0].problem.answer or "") for i in unsure]
        close = dict(zip(unsure, self._pool.compare_leniently(pairs), strict=True))
        return [
            self._of_values(item, verdict, lenient_answer=answer, is_close=close.get(i, False))
            for i, ((item, _), verdict, answer) in enumerate(
                zip(responses, verdicts, answers, strict=True)
            )
        ]

    def _of_values(
        self, item: Item, verdict: Verdict, *, lenient_answer: str | None, is_close: bool
    ) -> Judgement:
        """The judgement on a value, from what the graders found."""
        gold, answer = item.problem.answer, verdict.extracted
        house, reason = verdict.correct, str(verdict.reason)
        strict = gold is not None and answer is not None and strict_equal(answer, gold)
        if gold is None:
            house, reason = False, "no_gold"
        elif answer is not None and item.problem.problem_id in self._unreadable:
            house, reason = strict, "text"
        elif answer is not None and _same_number(answer, gold, within=item.tolerance):
            house, reason = True, "match"
        return Judgement(house, strict, house or is_close, answer, lenient_answer, reason)

    def _judge_one(self, item: Item, text: str) -> Judgement:
        gold, answer = item.problem.answer, extract_answer(text)
        other = answer if answer is not None else self._unboxed(text)
        if gold is None:
            return Judgement(False, False, False, answer, other, "no_gold")
        house, reason = False, "no_answer"
        if answer is not None:
            house, reason = self._is_right(item, answer, gold)
        bare = bare_code if self._kind in ("output", "input") else _bare
        strict = answer is not None and bare(answer) == gold.strip()
        lenient = house
        if not house and other is not None:
            lenient = self._is_right_leniently(item, other, gold, boxed=answer is not None)
        return Judgement(house, strict, lenient, answer, other, reason)

    def _is_right(self, item: Item, answer: str, gold: str) -> tuple[bool, str]:
        """The house verdict on an answer in a box, and its reason."""
        if self._kind == "input":
            fault = self._runner.fault(item.code, bare_code(answer), returns=gold)
            return not fault, fault or "match"
        if self._kind == "output":
            right = same_literal(bare_code(answer), gold)
        elif self._kind == "choice":
            right = chosen_letter(answer, item.choices) == gold
        elif self._kind == "label":
            right = label_of(answer, self._labels) == label_of(gold, self._labels)
        else:
            right = same_cells(answer, gold)
        return right, "match" if right else "mismatch"

    def _is_right_leniently(self, item: Item, answer: str, gold: str, *, boxed: bool) -> bool:
        if self._kind == "choice":
            letters = _LAST_LETTER.findall(answer)
            return bool(letters) and letters[-1] == gold
        if self._kind == "label":
            return last_label(answer, self._labels) == label_of(gold, self._labels)
        if self._kind == "cells":
            cells, golds = cells_of(answer), cells_of(gold)
            pairs = list(zip(cells, golds, strict=False))
            return len(cells) == len(golds) and all(self._pool.compare_leniently(pairs))
        return not boxed and self._is_right(item, answer, gold)[0]

    def _unboxed(self, text: str) -> str | None:
        """Text that the lenient grader reads where there is no box."""
        if self._kind in ("choice", "label"):
            return text.strip().splitlines()[-1][-400:] if text.strip() else None
        if self._kind in ("output", "input"):
            return text.strip().splitlines()[-1].strip("`* ") if text.strip() else None
        return lenient_answer(text)


def chosen_letter(answer: str, choices: Sequence[str]) -> str | None:
    r"""The letter that an answer names, or that of the one choice whose text it is.

    >>> chosen_letter(r"\text{(B)}", ["red", "blue"]), chosen_letter("Blue", ["red", "blue"])
    ('B', 'B')
    """
    cleaned = clean(answer)
    named = choice(cleaned)
    if named is not None:
        return named[0]
    texts, own = [_caseless(each) for each in choices], _caseless(answer)
    return "ABCDEFGHIJ"[texts.index(own)] if texts.count(own) == 1 else None


def label_of(answer: str, labels: Labels) -> str | None:
    r"""The label that an answer is, None for another word.

    >>> label_of(r"\text{Unknown}", (("True",), ("Uncertain", "unknown")))
    'Uncertain'
    """
    word = _bare(answer).casefold()
    return next((names[0] for names in labels if word in map(str.casefold, names)), None)


def last_label(text: str, labels: Labels) -> str | None:
    """The last word of a text that is a label, or means one."""
    words = re.findall(r"[a-z]+", text.casefold())
    found = (label_of(word, labels) for word in reversed(words))
    return next((label for label in found if label is not None), None)


def cells_of(answer: str) -> list[str]:
    """Cells of an answer: a comma between digits of a number separates nothing.

    >>> cells_of("1,300, Red Bull"), cells_of("3,4")
    (['1,300', 'Red Bull'], ['3', '4'])
    """
    pieces = re.split(r",\s*(?!(?<=\d,)\d{3}(?!\d))", _bare(answer))
    return [piece.strip() for piece in pieces]


def same_cells(answer: str, gold: str) -> bool:
    """Whether two lists of cells are the same, one by one: as numbers, or as texts."""
    cells, golds = cells_of(answer), cells_of(gold)
    return len(cells) == len(golds) and all(
        bool(a) and (_caseless(a) == _caseless(g) or _same_number(a, g))
        for a, g in zip(cells, golds, strict=True)
    )


def _caseless(text: str) -> str | tuple[str, ...]:
    return key(clean(text).casefold())


def _bare(answer: str) -> str:
    """An answer without what a model wraps words in."""
    text = answer.strip().strip("$").strip()
    wrapped = _WRAP.fullmatch(text)
    return (wrapped[1] if wrapped else text).strip().strip("()*.").strip()


def _with_unit(item: Item, gold: str) -> str:
    """The gold with the unit that its row names, for the house grader: a unit may be missing in the
    answer, and must not be another."""
    if not item.unit or not re.fullmatch(r"[\w$.{}\\/ ]+", gold):
        return gold
    unit = item.unit.strip("$")
    if unit.startswith(("^", "%", "\\")):
        return f"{gold.strip('$')}{unit.replace('%', chr(92) + '%')}"
    name, _, power = unit.partition("^")
    return f"{gold.strip('$')}\\text{{ {name}}}{'^' + power if power else ''}"


def _same_number(answer: str, gold: str, *, within: float = 0.0) -> bool:
    """Whether two plain numbers are the same, or no further apart than the row allows."""
    a, g = number(clean(answer)), number(clean(gold))
    return a is not None and g is not None and abs(a - g) <= Fraction(within)
