# SPDX-License-Identifier: Apache-2.0
"""A guess of which fields of an unknown data set hold question, answer and worked solution.

By their names and by what the first rows have there. Not for reading them (`sources`) or for data
sets that are known (`field_mappings`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from satori_fast.data.field_mappings import AnswerForm, FieldMapping
from satori_fast.grading import extract_answer

# The likeliest name first.
_QUESTIONS = ("question", "problem", "prompt", "query", "input", "instruction", "task", "messages")
_ANSWERS = (
    *("answer", "final_answer", "expected_answer", "ground_truth", "gold", "target", "label"),
    *("output", "solution", "response", "completion"),
)
_SOLUTIONS = (
    *("solution", "worked_solution", "generated_solution", "rationale", "reasoning"),
    *("explanation", "response", "completion", "chain_of_thought", "cot", "output", "answer"),
)
# A name that says nothing of its own: the one that holds it does.
_CONTAINED = frozenset({"content", "value", "text"})
_MAX_DEPTH = 3
_MOST = 0.8  # share of the rows that a guess must fit


@dataclass(frozen=True, slots=True)
class GuessedFields:
    """Fields, or paths to nested ones such as "prompt[0].content".

    answer_form: as of `FieldMapping`. response: None where no field looks like a worked solution.
    """

    question: str
    answer: str
    answer_form: AnswerForm
    response: str | None

    @property
    def mapping(self) -> FieldMapping:
        """The guess as a field mapping."""
        return FieldMapping(self.question, self.answer, self.answer_form, response=self.response)


def guess_fields(rows: Sequence[Mapping[str, Any]]) -> GuessedFields | None:
    """The guess for these rows; None where none has a question and an answer by its name."""
    flat = [dict(_leaves(row)) for row in rows]
    paths = list(dict.fromkeys(path for own in flat for path in own))
    filled = [p for p in paths if _share([p in own for own in flat]) >= _MOST]
    question = _named(filled, _QUESTIONS)
    if question is None:
        return None
    answer = _named([path for path in filled if path != question], _ANSWERS)
    if answer is None:
        return None
    form = _form([str(own[answer]) for own in flat if answer in own])
    others = [path for path in filled if path != question]
    if form == "plain":
        others.remove(answer)  # a bare answer is no solution
    return GuessedFields(question, answer, form, _named(others, _SOLUTIONS))


def _leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The values of a row by their paths; of a conversation the last turn of the user."""
    if isinstance(value, Mapping) and depth <= _MAX_DEPTH:
        for name, inner in cast("Mapping[str, Any]", value).items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name), depth + 1)
    elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        turns = cast("Sequence[Mapping[str, Any]]", value)
        asked = [i for i, turn in enumerate(turns) if turn.get("role") in (None, "user")]
        number = asked[-1] if asked else 0
        yield from _leaves(turns[number], f"{path}[{number}]", depth + 1)
    elif value is not None and value != "":
        yield path, value


def _named(paths: Sequence[str], names: Sequence[str]) -> str | None:
    """The path whose name stands first in `names`."""
    ranked = [(names.index(_name(p)), p.count("."), p) for p in paths if _name(p) in names]
    return min(ranked)[-1] if ranked else None


def _name(path: str) -> str:
    """The last part of a path that says what it holds, in lower case."""
    parts = [re.sub(r"\[-?\d+\]", "", part).casefold() for part in path.split(".")]
    return next((part for part in reversed(parts) if part not in _CONTAINED), parts[-1])


def _form(answers: Sequence[str]) -> AnswerForm:
    """The form of the answer in these fields."""
    if _share(["####" in text for text in answers]) >= _MOST:
        return "hashes"
    if _share([bool(extract_answer(text)) for text in answers]) >= _MOST:
        return "boxed"
    return "plain"


def _share(held: Sequence[bool]) -> float:
    return sum(held) / max(1, len(held))
