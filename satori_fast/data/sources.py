# SPDX-License-Identifier: Apache-2.0
"""Data sets to `Problem` and `Demonstration`: jsonl, json, csv and parquet files, or hub names.

A data set is read through a `FieldMapping`: a row of `FIELD_MAPPINGS`, one given by the caller, or
what the names of a file's columns say.

Not here: containers and encodings (`rows`), what counts as text or an answer (`values`), the books
about skipped rows (`collection`), grading (a checker of answers is passed in), prompts (`prompts`),
which problems are trained on (`problem_split`) and in which order (`cursor`), made-up problems
(`domains`).
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from satori_fast.data.collection import (
    CheckAnswers,
    FirstProblems,
    RowStream,
    Selection,
    SourceReport,
    collect,
    collect_mixed,
    joined,
    warn_of_a_common_answer,
)
from satori_fast.data.field_mappings import FIELD_MAPPINGS, FieldMapping, mapping_of_columns
from satori_fast.data.field_paths import root_of
from satori_fast.data.rows import (
    Fields,
    GoodRow,
    Row,
    check_file,
    data_files,
    file_fields,
    file_rows,
    file_stem,
    hub_rows,
    is_file_name,
)
from satori_fast.data.values import (
    BadRow,
    answer_text,
    check_text,
    field_value,
    is_missing,
    plain,
    refuse_sentinel,
    scalar_text,
    text_field,
)
from satori_fast.grading import extract_answer
from satori_fast.storage import digest
from satori_fast.types import Demonstration, Problem

logger = logging.getLogger(__name__)

__all__ = [
    "FIELD_MAPPINGS",
    "CheckAnswers",
    "FieldMapping",
    "PoolSource",
    "RowIds",
    "Selection",
    "SourceReport",
    "answer_of",
    "check_source",
    "level_of",
    "load_demonstrations",
    "load_pool",
    "load_problems",
    "question_of",
    "source_digest",
]

_LETTERS = "ABCDEFGHIJ"
_PROMPT_SUFFIX = re.compile(
    r"\s*(?:let's|please) (?:reason|think) step by step,? and (?:put|output) (?:your|the) final "
    r"answer (?:with)?in \\+boxed\{\}\.?\s*$",
    re.IGNORECASE,
)
_NUM_TRIED = 100  # rows of a file that may have no good one
_LONGEST_ANSWER = 300  # characters of an answer that nothing marks
_CALCULATION = re.compile(r"<<[^<>]*>>")
# Of the order in which the sources of a pool are mixed. It is no seed of a run: runs with different
# seeds have the same problems, and hold the same ones out, as they do with one source.
_POOL_SEED = 250202508


@dataclass(frozen=True, slots=True)
class PoolSource:
    """One data set of a pool: `source` and `mapping` as for `load_problems`, and its share.

    weight: relative; `collect_mixed` says of what.
    """

    source: str | Path
    mapping: FieldMapping | str | None = None
    weight: float = 1.0


def load_problems(
    source: str | Path,
    mapping: FieldMapping | str | None = None,
    *,
    name: str | None = None,
    split: str = "train",
    limit: int | None = None,
    selection: Selection | None = None,
    check_answers: CheckAnswers | None = None,
) -> tuple[list[Problem], SourceReport]:
    """Read a data set as problems.

    source:  a .jsonl, .json or .csv (also .gz) or .parquet file, a hub name, or a key of
             `FIELD_MAPPINGS`.
    mapping: fields to read, or a key of `FIELD_MAPPINGS`; None: found from the name of the source,
             or from columns such as question and answer.
    name:    start of the problem ids ("<name>/<id or row>"); default: the file's stem or the key.
    split:   for the hub only.
    limit:   stop after so many problems.
    selection: which problems are taken, instead of `limit`; the others are passed over silently.
    check_answers: why each of some answers cannot be graded; such rows are skipped.
    Errors: ValueError for a missing or unreadable file, an unknown kind of file or mapping, a field
    in no row, and when every row had to be skipped.
    """
    read = _Source(source, mapping, split, name=name)
    problems = collect(
        read.rows(),
        read.problem,
        read.report,
        check_fields=read.check_fields,
        selection=selection or FirstProblems(limit),
        check_answers=check_answers,
    )
    warn_of_a_common_answer(str(source), problems)
    return problems, read.report


def load_pool(
    sources: Sequence[PoolSource],
    *,
    selection: Selection | None = None,
    check_answers: CheckAnswers | None = None,
) -> tuple[list[Problem], SourceReport]:
    """Read several data sets as one pool of problems, mixed by weight in an order that is always
    the same; each is read no further than the pool needs it.

    The next problem of the pool is taken from a source with probability weight / (sum of the
    weights of the sources that are not exhausted): its next one that `selection` takes, so that
    repeated and too long questions cost a source no draw. A share is of problems taken, before
    those whose answers cannot be graded are left out. Ids begin with the name of their source, a
    number appended where two have the same. One source gives what `load_problems` gives.
    Arguments, report (of all sources together) and errors as for that.
    """
    names: set[str] = set()
    reads: list[_Source] = []
    for each in sources:
        read = _Source(each.source, each.mapping, "train", name=None)
        label, number = read.name, 2
        while read.name in names:
            read = _Source(each.source, each.mapping, "train", name=f"{label}-{number}")
            number += 1
        names.add(read.name)
        reads.append(read)
    problems = collect_mixed(
        [RowStream(read.rows(), read.problem, read.report, read.check_fields) for read in reads],
        [each.weight for each in sources],
        selection=selection or FirstProblems(None),
        check_answers=check_answers,
        seed=_POOL_SEED,
    )
    report = joined([read.report for read in reads])
    if len(reads) > 1:
        counts = ((read.report.source, read.report.num_used) for read in reads)
        logger.info("the pool has %s", ", ".join(f"{n} problems of {name}" for name, n in counts))
    warn_of_a_common_answer(report.source, problems)
    return problems, report


def load_demonstrations(
    source: str | Path,
    mapping: FieldMapping | str | None = None,
    *,
    name: str | None = None,
    split: str = "train",
    limit: int | None = None,
    check_answers: CheckAnswers | None = None,
    only_right: bool = False,
) -> tuple[list[Demonstration], SourceReport]:
    """Read a data set as worked solutions; arguments and errors as for `load_problems`.

    only_right: skip solutions that the data set itself grades as wrong (`FieldMapping.grade`).
    GSM8K solutions lose their ``<<48/2=24>>`` calculator marks and end in a boxed answer.
    """
    read = _Source(source, mapping, split, name=name, needs_response=True)
    demonstrations = collect(
        read.rows(),
        read.right_demonstration if only_right else read.demonstration,
        read.report,
        check_fields=read.check_fields,
        selection=FirstProblems(limit),
        check_answers=check_answers,
    )
    return demonstrations, read.report


def check_source(source: str, built_in: Sequence[str] = ()) -> None:
    """Raise ValueError for what cannot be a source: neither a name of `built_in`, nor a data file,
    nor a data set of the hub (a key of `FIELD_MAPPINGS` or "owner/name"). It names the nearest."""
    on_hub = [name for name, fields in FIELD_MAPPINGS.items() if fields.hub_id is not None]
    if source in built_in or source in on_hub:
        return
    if is_file_name(source):
        check_file(Path(source).expanduser())
        return
    if source.count("/") == 1 and all(source.split("/")):
        return  # only the hub knows
    names = [*built_in, *on_hub, *data_files(Path())]
    near = difflib.get_close_matches(source, names, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"{source!r} is neither a built-in domain, nor a data file, nor a data set of the hub "
        f"(owner/name); the nearest is {near!r}"
    )


def source_digest(source: str) -> str | None:
    """SHA-256 of a data file; None for a data set of the hub. ValueError for no data file."""
    if not is_file_name(source):
        return None
    path = Path(source).expanduser()
    check_file(path)
    return digest(path)


class _Source:
    """A data set that is about to be read: its mapping, its rows, and what is made of a row."""

    def __init__(
        self,
        source: str | Path,
        mapping: FieldMapping | str | None,
        split: str,
        *,
        name: str | None,
        needs_response: bool = False,
    ) -> None:
        self.source, self._split = source, split
        self._path = Path(source).expanduser() if is_file_name(source) else None
        if self._path is not None:
            check_file(self._path)
        self.fields, label = _resolve_mapping(source, mapping, self._path)
        self.name = name or label
        self._ids = RowIds(self.name, self.fields.problem_id)
        self.report = SourceReport(str(source))
        fields = self.fields
        if needs_response and fields.response is None:
            raise ValueError(
                f"{source}: its field mapping names no `response`, so it demonstrates nothing: "
                "choose a mapping with worked solutions"
            )
        needed = [fields.question, fields.answer, fields.choices]
        needed += [fields.response] if needs_response else []
        self.needed = [name for name in needed if name is not None]

    def rows(self) -> Iterator[tuple[int, Row]]:
        fields = self.fields
        also = (fields.problem_id, fields.level, fields.grade)
        columns = [*self.needed, *map(root_of, self.needed)]  # a field may be called "a.b"
        columns = [*dict.fromkeys([*columns, *(name for name in also if name is not None)])]
        if self._path is None:
            hub_id = str(self.source) if "/" in str(self.source) else fields.hub_id
            if hub_id is None:
                raise ValueError(f"{self.source} is neither a data file nor a name on the hub")
            return hub_rows(hub_id, fields.hub_config, self._split, columns)
        if self._path.name.endswith(".parquet"):
            self.check_fields(file_fields(self._path))
        return file_rows(self._path, columns)

    def problem(self, row: GoodRow, number: int) -> Problem:
        return _problem(row, self.fields, self._ids.make(row, number))

    def demonstration(self, row: GoodRow, number: int) -> Demonstration:
        problem = self.problem(row, number)
        assert self.fields.response is not None
        response = text_field(row, self.fields.response)
        if self.fields.answer_form == "hashes":
            steps = _CALCULATION.sub("", response.rpartition("####")[0]).rstrip()
            response = f"{steps}\nThe final answer is \\boxed{{{problem.answer}}}."
        return Demonstration(problem, response)

    def right_demonstration(self, row: GoodRow, number: int) -> Demonstration:
        """`demonstration`, but `BadRow` for one that is graded as wrong, or in another way."""
        if self.fields.grade is not None:
            _check_grade(row, self.fields.grade)
        return self.demonstration(row, number)

    def check_fields(self, found: Fields) -> None:
        """ValueError for a needed field that is in no row."""
        for name in self.needed:
            if root_of(name, found.names) not in found.names:
                raise ValueError(
                    f"{self.source}: no row has the field {name!r}; {found}{_fitting(found)}"
                )


def _resolve_mapping(
    source: str | Path, mapping: FieldMapping | str | None, path: Path | None
) -> tuple[FieldMapping, str]:
    """The mapping and the default start of problem ids."""
    stem = file_stem(source)
    if isinstance(mapping, FieldMapping):
        return mapping, stem
    if mapping is not None:
        candidates = [mapping]
    else:
        # "gsm8k_train" is read as "gsm8k"; the longest key wins.
        candidates = [key for key, known in FIELD_MAPPINGS.items() if known.hub_id == str(source)]
        candidates += sorted(
            (k for k in FIELD_MAPPINGS if stem.startswith(k)), key=len, reverse=True
        )
    found = file_fields(path) if path is not None and mapping is None else None
    by_columns = mapping_of_columns(set(found.names) - set(found.nested)) if found else None
    for key in candidates:
        known = FIELD_MAPPINGS.get(key)
        # A name is a guess: "math_mine.csv" may have other columns than "math".
        if known and (by_columns is None or found is None or known.fits(found.names)):
            return known, key if path is None else stem
    if by_columns is not None:
        columns = f"{by_columns.question!r} and {by_columns.answer!r}"
        logger.info("%s: read by its columns %s", source, columns)
        return by_columns, stem
    problem = f"no field mapping {f'named {mapping!r}' if mapping else 'known for it'}"
    if path is None:
        raise ValueError(
            f"{source}: {problem}; choose one of: {', '.join(FIELD_MAPPINGS)}, or name its fields "
            "in data.fields"
        )
    found = found or file_fields(path)
    if not found.names:
        _refuse_unreadable(str(source), path)
    raise ValueError(f"{source}: {problem}; {found}{_fitting(found)}")


def _refuse_unreadable(source: str, path: Path) -> None:
    """ValueError, with the reasons, where none of the first rows of a file can be read."""
    report = SourceReport(source)
    for number, row in islice(file_rows(path, ()), _NUM_TRIED):
        report.num_rows += 1
        if isinstance(row, BadRow):
            report.skip(number, row)
    report.finish()


def _fitting(found: Fields) -> str:
    """Known mappings that fit the fields of a data set."""
    fitting = [
        key
        for key, known in FIELD_MAPPINGS.items()
        if known.fits(set(found.names) - set(found.nested))
    ]
    if fitting:
        return f"; choose a mapping that fits: {', '.join(fitting)}"
    return "; name those of the question and of the answer in data.fields"


class RowIds:
    """Problem ids "<name>/<id or row number>"; an id met again gets its row number appended."""

    def __init__(self, name: str, id_field: str | None) -> None:
        self._name, self._field = name, id_field
        self._seen: set[str] = set()

    def make(self, row: GoodRow, number: int) -> str:
        """The id of a row that is read from file as number `number`, from 1."""
        own = plain(row.get(self._field), self._field) if self._field else None
        if is_missing(own) or not isinstance(own, str | int | float):
            own = number
        problem_id = f"{self._name}/{own}"
        check_text(problem_id, self._field or "")
        if problem_id in self._seen:
            problem_id += f"#{number}"
        self._seen.add(problem_id)
        return problem_id


def _problem(row: GoodRow, fields: FieldMapping, problem_id: str) -> Problem:
    question, choices = question_of(row, fields)
    answer = answer_of(row, fields, num_choices=len(choices))
    refuse_sentinel(answer, fields.answer)
    return Problem(problem_id, question, answer, level=level_of(row, fields.level))


def question_of(row: GoodRow, fields: FieldMapping) -> tuple[str, list[str]]:
    """The question of a row, its choices written below it, and these choices, without letters.

    A prompt suffix ("Please reason step by step ...") is taken off. `BadRow` where it is missing.
    """
    question = text_field(row, fields.question)
    if question.endswith(("{}", "{}.")):  # the search is slow: not for every question
        question = _PROMPT_SUFFIX.sub("", question).strip()
    if not question:
        raise BadRow(f"empty field {fields.question!r}")
    choices = _choices(row, fields.choices) if fields.choices is not None else []
    question += "".join(f"\n{x}. {choice}" for x, choice in zip(_LETTERS, choices, strict=False))
    check_text(question, fields.choices or fields.question)
    return question, choices


def _choices(row: GoodRow, name: str) -> list[str]:
    values = field_value(row, name)
    if not isinstance(values, list):
        raise BadRow(f"{name} is not a list")
    choices = [plain(value, name) for value in cast("list[Any]", values)]
    if len(choices) > len(_LETTERS) or any(map(is_missing, choices)):
        raise BadRow(f"{name} has an empty choice or more than {len(_LETTERS)}")
    # Text stays as it is published, spaces included.
    return [c if isinstance(c, str) else scalar_text(c, name) for c in choices]


def level_of(row: GoodRow, name: str | None) -> str:
    """A data set's word for how hard a problem is; nothing depends on it, so it may be anything."""
    value = plain(row.get(name), name) if name is not None else None
    if is_missing(value) or not isinstance(value, str | int | float):
        return ""
    return scalar_text(value, name or "")


def _check_grade(row: GoodRow, name: str) -> None:
    """`BadRow` for a solution that is graded as wrong, or as neither right nor wrong."""
    value = plain(row.get(name), name)
    if is_missing(value):
        return
    grade = scalar_text(value, name)
    if grade.casefold() == "no":
        raise BadRow(f"{name} says that the solution is wrong", repr(value))
    if grade.casefold() != "yes":
        raise BadRow(f"{name} is neither Yes nor No", repr(value)[:80])


def answer_of(row: GoodRow, fields: FieldMapping, *, num_choices: int) -> str:
    """The gold answer of a row, as its field holds it; a letter for one of the choices. `BadRow`
    where there is none."""
    name, value = fields.answer, field_value(row, fields.answer)
    if fields.answer_form == "choice":
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 0 <= value < num_choices:
            raise BadRow(f"no choice index in {name!r}", f"{value!r} of {num_choices} choices")
        return _LETTERS[value]
    if fields.answer_form == "boxed":
        answer = extract_answer(text_field(row, name))
        if not answer:
            raise BadRow(f"no boxed answer in {name!r}")
        return answer
    if fields.answer_form == "hashes":
        _, marker, answer = text_field(row, name).rpartition("####")
        if not marker or not answer.strip():
            raise BadRow(f"no '####' answer in {name!r}")
        return answer.strip().replace(",", "")
    if fields.answer_form == "any" and isinstance(value, str):
        return _answer_anywhere(value, name)
    return answer_text(value, name)


def _answer_anywhere(text: str, name: str) -> str:
    """The boxed answer of a text, or that after ``####``, or the text, if it is short."""
    check_text(text, name)
    boxed = extract_answer(text)
    if boxed:
        return boxed
    _, marker, marked = text.rpartition("####")
    if marker and marked.strip():
        return marked.strip().replace(",", "")
    if len(text) > _LONGEST_ANSWER:
        raise BadRow(f"{name} is a long text without a box or '####'", f"{len(text)} characters")
    return answer_text(text, name)
