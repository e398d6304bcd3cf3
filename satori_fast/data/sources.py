# SPDX-License-Identifier: Apache-2.0
"""Data sets to `Problem` and `Demonstration`: local jsonl, json and parquet files, or hub names.

A data set is read through a `FieldMapping`, a row of `FIELD_MAPPINGS` or one given by the caller. A
malformed row is reported with file and row number, counted in the `SourceReport` and skipped; a
file in which no row has a needed field is an error.

Not here: grading (a checker of answers is passed in), prompts (`coat`), which problems are trained
on (`problem_split`) and in which order (`cursor`), made-up problems (`arithmetic`).
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from satori_fast.data.field_mappings import FIELD_MAPPINGS, FieldMapping
from satori_fast.types import Demonstration, Problem

__all__ = [
    "FIELD_MAPPINGS",
    "FieldMapping",
    "SourceReport",
    "load_demonstrations",
    "load_problems",
]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_NUM_ROWS_REPORTED = 5
_PROMPT_SUFFIX = re.compile(
    r"\s*(?:let's|please) (?:reason|think) step by step,? and (?:put|output) (?:your|the) final "
    r"answer (?:with)?in \\+boxed\{\}\.?\s*$",
    re.IGNORECASE,
)
_CALCULATION = re.compile(r"<<[^<>]*>>")


@dataclass(slots=True)
class SourceReport:
    """What happened to the rows of one source. reasons: how many rows were skipped for each."""

    source: str
    num_rows: int = 0
    num_used: int = 0
    num_skipped: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])

    def skip(self, row_number: int, reason: str, *, detail: str = "") -> None:
        self.num_skipped += 1
        self.reasons[reason] += 1
        if self.num_skipped <= _NUM_ROWS_REPORTED:
            logger.warning(
                "%s, row %d skipped: %s%s",
                self.source,
                row_number,
                reason,
                detail and f": {detail}",
            )

    def finish(self) -> None:
        if self.num_skipped > _NUM_ROWS_REPORTED:
            logger.warning(
                "%s: %d of %d rows skipped in all: %s",
                self.source,
                self.num_skipped,
                self.num_rows,
                ", ".join(f"{count} x {reason}" for reason, count in self.reasons.most_common()),
            )


class _BadRow(Exception):
    """A row that cannot be used: the reason (counted) and a detail (shown)."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def load_problems(
    source: str | Path,
    mapping: FieldMapping | str | None = None,
    *,
    name: str | None = None,
    split: str = "train",
    limit: int | None = None,
    select: Callable[[Problem], bool] | None = None,
    check_answer: Callable[[str], None] | None = None,
) -> tuple[list[Problem], SourceReport]:
    """Read a data set as problems.

    source:  a .jsonl, .json or .parquet file, a hub name, or a key of `FIELD_MAPPINGS`.
    mapping: fields to read, or a key of `FIELD_MAPPINGS`; None: found from the name of the source.
    name:    start of the problem ids ("<name>/<id or row>"); default: the file's stem or the key.
    split:   for the hub only.
    limit:   stop after so many problems.
    select:  whether a problem is taken; the others are passed over, without a word.
    check_answer: raises ValueError for an answer that cannot be graded (`grading.check_gold`); such
             rows are skipped.
    Errors: ValueError for a missing file, an unknown kind of file or mapping, a field in no row.
    """
    fields, label = _resolve_mapping(source, mapping)
    rows = _rows(source, fields, split)
    needed = [fields.question, fields.answer, *([fields.choices] if fields.choices else [])]

    def make(row: Mapping[str, Any], problem_id: str) -> Problem | None:
        problem = _problem(row, fields, problem_id)
        if select is not None and not select(problem):
            return None
        _check_answer(problem, check_answer)
        return problem

    return _collect(str(source), rows, needed, make, _Ids(name or label, fields.problem_id), limit)


def load_demonstrations(
    source: str | Path,
    mapping: FieldMapping | str | None = None,
    *,
    name: str | None = None,
    split: str = "train",
    limit: int | None = None,
    check_answer: Callable[[str], None] | None = None,
) -> tuple[list[Demonstration], SourceReport]:
    """Read a data set as worked solutions; arguments and errors as for `load_problems`.

    GSM8K solutions lose their ``<<48/2=24>>`` calculator marks and end in a boxed answer.
    """
    fields, label = _resolve_mapping(source, mapping)
    if fields.response is None:
        raise ValueError(
            f"{source}: its field mapping names no `response`, so it demonstrates nothing"
        )
    response_field = fields.response
    rows = _rows(source, fields, split)
    needed = [fields.question, fields.answer, response_field]

    def make(row: Mapping[str, Any], problem_id: str) -> Demonstration:
        problem = _problem(row, fields, problem_id)
        _check_answer(problem, check_answer)
        response = _text(row, response_field)
        if fields.answer_form == "hashes":
            steps = _CALCULATION.sub("", response.rpartition("####")[0]).rstrip()
            response = f"{steps}\nThe final answer is \\boxed{{{problem.answer}}}."
        return Demonstration(problem, response)

    return _collect(str(source), rows, needed, make, _Ids(name or label, fields.problem_id), limit)


def _resolve_mapping(
    source: str | Path, mapping: FieldMapping | str | None
) -> tuple[FieldMapping, str]:
    """The mapping and the default start of problem ids."""
    stem = Path(source).stem
    if _is_file_name(source) and not Path(source).is_file():
        raise ValueError(f"data file {source} does not exist")
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
    for key in candidates:
        if key in FIELD_MAPPINGS:
            is_file = _is_file_name(source)
            return FIELD_MAPPINGS[key], stem if is_file else key
    known_keys = ", ".join(FIELD_MAPPINGS)
    raise ValueError(
        f"{source}: no field mapping {f'named {mapping!r}' if mapping else 'known for it'}; "
        f"name its fields or one of: {known_keys}"
    )


def _is_file_name(source: str | Path) -> bool:
    path = Path(source)
    return path is source or path.suffix in (".jsonl", ".json", ".parquet") or path.exists()


Row = Mapping[str, Any] | _BadRow


def _rows(source: str | Path, fields: FieldMapping, split: str) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of every row; a row that cannot be read is the _BadRow that says so."""
    if not _is_file_name(source):
        return _hub_rows(str(source), fields, split)
    path = Path(source)
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise ValueError(f"data file {path}: its name must end in {', '.join(readers)}")
    return readers[path.suffix](path)


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, _as_row(json.loads(line))
                except ValueError as error:  # bad JSON or bad UTF-8
                    yield number, _BadRow("not valid JSON", str(error))


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        rows: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"data file {path} is not valid JSON: {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"data file {path} must hold a JSON list of objects")
    for number, row in enumerate(cast("list[Any]", rows), start=1):
        yield number, _as_row(row)


def _as_row(value: Any) -> Row:
    return cast("Row", value) if isinstance(value, dict) else _BadRow("not a JSON object")


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]

    number = 0
    try:
        file: Any = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise ValueError(f"data file {path} is not valid parquet: {error}") from None


def _hub_rows(source: str, fields: FieldMapping, split: str) -> Iterator[tuple[int, Row]]:
    import datasets  # pyright: ignore[reportMissingTypeStubs]

    hub: Any = datasets
    hub_id = source if "/" in source else fields.hub_id
    if hub_id is None:
        raise ValueError(f"{source} is neither a data file nor a name on the hub")
    try:
        # Streaming: a few rows of a data set with millions should not download them all.
        rows: Any = hub.load_dataset(hub_id, fields.hub_config, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load split {split!r} of {hub_id} from the hub: {error}"
        ) from error
    yield from enumerate(rows, start=1)


class _Ids:
    """Problem ids "<name>/<id or row number>"; an id met again gets its row number appended."""

    def __init__(self, name: str, id_field: str | None) -> None:
        self._name, self._field = name, id_field
        self._seen: set[str] = set()

    def make(self, row: Mapping[str, Any], number: int) -> str:
        problem_id = f"{self._name}/{row.get(self._field, number) if self._field else number}"
        if problem_id in self._seen:
            problem_id += f"#{number}"
        self._seen.add(problem_id)
        return problem_id


def _collect(
    source: str,
    rows: Iterable[tuple[int, Row]],
    needed: Sequence[str],
    make: Callable[[Mapping[str, Any], str], Item | None],
    ids: _Ids,
    limit: int | None,
) -> tuple[list[Item], SourceReport]:
    """Make an item of every good row, report the others; None of `make` is neither."""
    items: list[Item] = []
    report = SourceReport(source)
    present: Counter[str] = Counter()
    for number, row in rows:
        if limit is not None and len(items) >= limit:
            break
        report.num_rows += 1
        try:
            if isinstance(row, _BadRow):
                raise row
            present.update(row.keys())
            item = make(row, ids.make(row, number))
        except _BadRow as bad:
            report.skip(number, bad.reason, detail=bad.detail)
        else:
            if item is not None:
                items.append(item)
    report.num_used = len(items)
    for name in needed:
        if present and not present[name]:
            fields = ", ".join(sorted(present))
            raise ValueError(f"{source}: no row has the field {name!r}; its fields are: {fields}")
    report.finish()
    return items, report


def _problem(row: Mapping[str, Any], fields: FieldMapping, problem_id: str) -> Problem:
    question = _PROMPT_SUFFIX.sub("", _text(row, fields.question)).strip()
    if fields.choices is not None:
        lettered = zip("ABCDEFGHIJ", _field(row, fields.choices), strict=False)
        question += "".join(f"\n{letter}. {choice}" for letter, choice in lettered)
    level = row.get(fields.level) if fields.level else None
    level = "" if level is None else _plain(level)
    return Problem(problem_id, question, _answer(row, fields), level=level)


def _check_answer(problem: Problem, check_answer: Callable[[str], None] | None) -> None:
    if check_answer is not None:
        try:
            check_answer(problem.answer or "")
        except ValueError as error:
            raise _BadRow("answer cannot be graded", str(error)) from None


def _answer(row: Mapping[str, Any], fields: FieldMapping) -> str:
    value = _field(row, fields.answer)
    if fields.answer_form == "choice":
        if not isinstance(value, int) or not 0 <= value < 10:
            raise _BadRow(f"no choice index in {fields.answer!r}", repr(value))
        return "ABCDEFGHIJ"[value]
    if fields.answer_form == "boxed":
        answer = _last_box(_text(row, fields.answer))
        if not answer:
            raise _BadRow(f"no boxed answer in {fields.answer!r}")
        return answer
    if fields.answer_form == "hashes":
        _, marker, answer = _text(row, fields.answer).rpartition("####")
        if not marker or not answer.strip():
            raise _BadRow(f"no '####' answer in {fields.answer!r}")
        return answer.strip().replace(",", "")
    values: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    answer = ", ".join(_plain(v) for v in values)
    if not answer:
        raise _BadRow(f"empty field {fields.answer!r}")
    return answer


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _field(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise _BadRow(f"no field {name!r}")
    if row[name] is None:
        raise _BadRow(f"empty field {name!r}")
    return row[name]


def _text(row: Mapping[str, Any], name: str) -> str:
    value = _field(row, name)
    if not isinstance(value, str):
        raise _BadRow(f"field {name!r} is not text", repr(value)[:80])
    if not value.strip():
        raise _BadRow(f"empty field {name!r}")
    return value.strip()


def _last_box(solution: str) -> str | None:
    r"""Content of the last ``\boxed{}`` of a published solution (`grading` looks at responses)."""
    start = solution.rfind(r"\boxed{") + len(r"\boxed{")
    if start < len(r"\boxed{"):
        return None
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", solution[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return solution[start : start + brace.start()].strip()
    return None
