# SPDX-License-Identifier: Apache-2.0
"""Benchmarks read from their files or the hub: every question is kept, whatever its gold is like.

Training data may skip a row that it cannot use (`data.sources`); a benchmark may not, because its
accuracy would be of another set. So a gold that is missing is said with the problem, and a set that
is not as published says how.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from satori_fast.data.field_mappings import FieldMapping
from satori_fast.data.rows import GoodRow, Row, file_rows, hub_rows
from satori_fast.data.sources import RowIds, answer_of, level_of, question_of
from satori_fast.data.values import BadRow, check_text, is_missing, plain, scalar_text, text_field
from satori_fast.evaluation.benchmarks import Benchmark
from satori_fast.types import Problem

ENDINGS = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
_PLACE = re.compile(r"\{(\w+)\}")
_CODE = ("output", "input")  # kinds whose gold is Python text: quotes and brackets are part of it


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark.

    problem:   its id, the question as it is asked, and its gold; None where the row has no gold.
    row:       number in the file, from 1.
    fault:     why the row has no gold, "" where it has one.
    choices:   texts of multiple choice, without letters. code: the function of CRUXEval.
    unit:      of the answer, "" if none is said. tolerance: how far off an answer may be.
    """

    problem: Problem
    row: int
    fault: str = ""
    choices: tuple[str, ...] = ()
    code: str = ""
    unit: str = ""
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class BenchmarkSet:
    """A benchmark as it was read.

    source:    the file, or hub name and revision.
    digest:    of its questions (`questions_digest`). golds: SHA-256 of ids and golds.
    faults:    in which ways it is not as published, a line each; empty for one that is.
    """

    benchmark: Benchmark
    items: tuple[Item, ...]
    source: str
    digest: str
    golds: str
    faults: tuple[str, ...]

    @property
    def is_partial(self) -> bool:
        """Whether it has fewer questions than published."""
        size = self.benchmark.size
        return size is not None and len(self.items) < size

    @property
    def without_gold(self) -> tuple[Item, ...]:
        """Items whose row has no gold."""
        return tuple(item for item in self.items if item.problem.answer is None)


def find_file(benchmark: Benchmark, folder: Path) -> Path | None:
    """The data file of a benchmark in a folder, None without one."""
    paths = (folder / (benchmark.file + ending) for ending in ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def load_benchmark(
    benchmark: Benchmark, folder: Path | None, *, limit: int | None = None, strict: bool = False
) -> BenchmarkSet:
    """Read a benchmark from its file in `folder`, or from the hub without a folder.

    limit: the first so many questions only; the set is then partial, and says so. strict: what is
    not as published, or has no gold, is an error and not a fault. ValueError where it is not there,
    cannot be read, or has no question at all.
    """
    path = None if folder is None else find_file(benchmark, folder)
    if folder is not None and path is None:
        raise ValueError(
            f"benchmark {benchmark.name}: {folder} holds no {benchmark.file}{ENDINGS[0]} (or "
            f"{', '.join(ENDINGS[1:])}): put it there, or leave --data-dir out to ask the hub"
        )
    source = str(path) if path is not None else _hub_name(benchmark)
    reader = _Reader(benchmark, source)
    for number, row in _rows(benchmark, path):
        reader.add(number, row)
    read = reader.result(limit)
    if strict and (read.faults or read.without_gold):
        lines = [*read.faults, *(f"{item.problem.problem_id}: {item.fault}" for item in read.items)]
        first = next(line for line in lines if not line.endswith(": "))
        raise ValueError(f"benchmark {benchmark.name} (--strict): {first}")
    return read


def questions_digest(questions: Sequence[Sequence[str]]) -> str:
    """SHA-256 of questions, in any order: each is the texts that its row asks with."""
    lines = sorted(json.dumps(list(texts), ensure_ascii=False) for texts in questions)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def problem_set(name: str, problems: Sequence[Problem]) -> BenchmarkSet:
    """Made-up problems as a benchmark, which nobody has published."""
    fields = FieldMapping("question", "answer")
    row = Benchmark(name=name, title=name, kind="math", fields=fields, file="", size=None)
    golds = json.dumps([[problem.problem_id, problem.answer] for problem in problems])
    return BenchmarkSet(
        row,
        tuple(Item(problem, row=number) for number, problem in enumerate(problems, start=1)),
        "built in",
        questions_digest([[problem.question] for problem in problems]),
        hashlib.sha256(golds.encode()).hexdigest(),
        (),
    )


class _Reader:
    """Rows to items, and what is wrong with them."""

    def __init__(self, benchmark: Benchmark, source: str) -> None:
        self._benchmark, self._source = benchmark, source
        self._ids = RowIds(benchmark.name, benchmark.fields.problem_id)
        self._items: list[Item] = []
        self._questions: list[tuple[str, ...]] = []
        self._faults: list[str] = []

    def add(self, number: int, row: Row) -> None:
        """Read a row; one that asks nothing is a fault."""
        try:
            if isinstance(row, BadRow):
                raise row
            if not _belongs(row, self._benchmark):
                return
            question, texts = _asked(row, self._benchmark)
        except BadRow as bad:
            detail = f" ({bad.detail})" if bad.detail else ""
            self._faults.append(f"{self._source}: row {number} asks nothing: {bad.reason}{detail}")
            return
        self._questions.append(texts)
        self._items.append(self._item(row, number, question))

    def _item(self, row: GoodRow, number: int, question: str) -> Item:
        benchmark = self._benchmark
        fields = benchmark.fields
        _, choices = question_of(row, fields)
        answer, unit, tolerance, fault = None, "", 0.0, ""
        try:
            unit = _field_text(row, benchmark.unit)
            tolerance = _tolerance(_field_text(row, benchmark.error))
            answer = _gold(row, benchmark, num_choices=len(choices))
        except BadRow as bad:
            fault = f"row {number} has no gold: {bad.reason}"
        problem_id = self._ids.make(row, number)
        level = level_of(row, fields.level)
        return Item(
            Problem(problem_id, question, answer, level=level),
            row=number,
            fault=fault,
            choices=tuple(choices),
            code=text_field(row, fields.question) if benchmark.kind in _CODE else "",
            unit=unit,
            tolerance=tolerance,
        )

    def result(self, limit: int | None) -> BenchmarkSet:
        """The set, compared with what is published. ValueError without any question."""
        benchmark, faults = self._benchmark, list(self._faults)
        if not self._items:
            why = f": {faults[0]}" if faults else ""
            raise ValueError(f"benchmark {benchmark.name}: {self._source} holds no question{why}")
        size, digest = benchmark.size, questions_digest(self._questions)
        found = len(self._items)
        if size is not None and found != size:
            what = "partial" if found < size else "too large"
            faults.append(f"{self._source} is {what}: {found} questions, {size} are published")
        elif benchmark.questions is not None and digest != benchmark.questions:
            faults.append(
                f"{self._source} has other questions than the published set: their SHA-256 begins "
                f"with {digest[:12]}, not {benchmark.questions[:12]}"
            )
        items = tuple(self._items[:limit])
        if len(items) < found:
            faults.append(f"partial: the first {len(items)} of {found} questions were asked for")
        golds = json.dumps([[item.problem.problem_id, item.problem.answer] for item in items])
        return BenchmarkSet(
            benchmark,
            items,
            self._source,
            digest,
            hashlib.sha256(golds.encode()).hexdigest(),
            tuple(faults),
        )


def _hub_name(benchmark: Benchmark) -> str:
    hub_id = benchmark.fields.hub_id
    if hub_id is None:
        raise ValueError(
            f"benchmark {benchmark.name} is not on the hub: name the folder of its file "
            f"{benchmark.file}{ENDINGS[0]} with --data-dir"
        )
    return f"{hub_id}@{benchmark.revision or 'main'}"


def _rows(benchmark: Benchmark, path: Path | None) -> Iterator[tuple[int, Row]]:
    columns = sorted(_columns(benchmark))
    if path is not None:
        return file_rows(path, columns)
    fields = benchmark.fields
    assert fields.hub_id is not None
    return hub_rows(
        fields.hub_id, fields.hub_config, benchmark.split, columns, revision=benchmark.revision
    )


def _columns(benchmark: Benchmark) -> set[str]:
    """Fields that are read."""
    fields = benchmark.fields
    named = (fields.question, fields.answer, fields.choices, fields.problem_id, fields.level)
    named += (benchmark.unit, benchmark.error, *benchmark.only, *_PLACE.findall(benchmark.asks))
    return {name for name in named if name is not None} - {"question"} | {fields.question}


def _belongs(row: GoodRow, benchmark: Benchmark) -> bool:
    return all(
        name in row and str(plain(row[name], name)) in values
        for name, values in benchmark.only.items()
    )


def _asked(row: GoodRow, benchmark: Benchmark) -> tuple[str, tuple[str, ...]]:
    """The question as it is asked, and the texts of the row that it is made of."""
    question, _ = question_of(row, benchmark.fields)
    texts = {"question": question}
    for name in _PLACE.findall(benchmark.asks):
        if name not in texts:
            texts[name] = _field_text(row, name)
    asked = _PLACE.sub(lambda place: texts[place[1]], benchmark.asks)
    check_text(asked, benchmark.fields.question)
    if not all(texts.values()):
        asked = re.sub(r"\n{3,}", "\n\n", asked).strip()
    return asked, tuple(texts.values())


def _field_text(row: GoodRow, name: str | None) -> str:
    """Text of a field that a row may lack: a list line by line, a table row by row."""
    value = plain(row.get(name), name) if name is not None else None
    if isinstance(value, str) and value.lstrip().startswith('{"columns"'):
        value = json.loads(value)
    if isinstance(value, Mapping):
        return _table_text(cast("Mapping[str, Any]", value), name or "")
    if isinstance(value, list | tuple):
        return "\n".join(scalar_text(plain(line, ""), name or "") for line in cast("Any", value))
    return "" if is_missing(value) else scalar_text(value, name or "")


def _table_text(table: Mapping[str, Any], name: str) -> str:
    """A table of {"columns": [...], "data": [[...], ...]}, a line for each row."""
    try:
        lines = [table["columns"], *table["data"]]
    except KeyError as missing:
        raise BadRow(f"{name} is a table without {missing}") from None
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _gold(row: GoodRow, benchmark: Benchmark, *, num_choices: int) -> str:
    if benchmark.kind in _CODE:
        return text_field(row, benchmark.fields.answer)
    return answer_of(row, benchmark.fields, num_choices=num_choices)


def _tolerance(text: str) -> float:
    """Error that an answer may have, as OlympiadBench writes it; 0 where it says nothing."""
    try:
        return float(text or 0.0)
    except ValueError:
        raise BadRow("the error of the answer is no number", repr(text)) from None
