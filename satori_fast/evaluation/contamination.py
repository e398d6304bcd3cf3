# SPDX-License-Identifier: Apache-2.0
"""Benchmark questions that training files hold: runs of 13 words that both have.

One pass over files of any size, a chunk in memory at a time. Words are compared without capitals
(of ASCII) and punctuation. It finds what was copied, not what was told in other words; near
duplicates of training questions are `data.near_duplicates`.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from satori_fast.data.rows import GoodRow, file_fields, file_rows
from satori_fast.data.values import BadRow

NUM_WORDS = 13
_CHUNK_BYTES = 2**20
_BETWEEN_ROWS = b" \x00 "  # a word of no question
_BASE = np.uint64(0x9E3779B97F4A7C15)
_UNKNOWN = 0
_FIRST_BITS = 24
_SHIFT = np.uint64(64 - _FIRST_BITS)
_TABLE = bytes.maketrans(
    (string.ascii_uppercase + string.punctuation).encode(),
    (string.ascii_lowercase + " " * len(string.punctuation)).encode(),
)

Words = Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Overlap:
    """A run of words of a question that stands in a row of a training file.

    text: the words, as they are compared; at least `NUM_WORDS` of them.
    """

    problem_id: str
    file: str
    row: int
    text: str


@dataclass(frozen=True, slots=True)
class ContaminationReport:
    """Overlaps of questions with files, the longest of each question and file.

    num_rows, num_bytes: that were read. too_short: questions with fewer than `NUM_WORDS` words,
    which nothing is said about.
    """

    overlaps: tuple[Overlap, ...]
    num_rows: int
    num_bytes: int
    too_short: tuple[str, ...]

    @property
    def problem_ids(self) -> frozenset[str]:
        """Problems with an overlap."""
        return frozenset(overlap.problem_id for overlap in self.overlaps)


def find_overlaps(questions: Mapping[str, str], files: Iterable[Path]) -> ContaminationReport:
    """Look for questions in files of rows; every text of a row is read, whatever its field.

    questions: by problem id, as published, without what a protocol adds.

    >>> find_overlaps({"a": "too short"}, []).too_short
    ('a',)
    """
    index = _Index(questions)
    longest: dict[tuple[str, str], Overlap] = {}
    num_rows = num_bytes = 0
    for file in files:
        for first_row, texts in _chunks(file):
            num_rows += len(texts)
            num_bytes += sum(map(len, texts))
            for overlap in index.search(texts, str(file), first_row):
                place = overlap.problem_id, overlap.file
                if place not in longest or len(overlap.text) > len(longest[place].text):
                    longest[place] = overlap
    found = sorted(longest.values(), key=lambda o: (o.problem_id, o.file))
    return ContaminationReport(tuple(found), num_rows, num_bytes, tuple(index.too_short))


def words_of(text: str) -> list[bytes]:
    """The words of a text as they are compared.

    >>> words_of("What's 2+2, Bob?")
    [b'what', b's', b'2', b'2', b'bob']
    """
    return text.encode(errors="replace").translate(_TABLE).split()


class _Index:
    """Runs of words of the questions, by a number that stands for each."""

    def __init__(self, questions: Mapping[str, str]) -> None:
        words = {name: words_of(text) for name, text in questions.items()}
        self.too_short = [name for name, own in words.items() if len(own) < NUM_WORDS]
        vocabulary = dict.fromkeys(word for own in words.values() for word in own)
        self._numbers = {word: number for number, word in enumerate(vocabulary, start=1)}
        self._runs: dict[tuple[bytes, ...], list[str]] = {}
        for name, own in words.items():
            for start in range(len(own) - NUM_WORDS + 1):
                names = self._runs.setdefault(tuple(own[start : start + NUM_WORDS]), [])
                if name not in names:
                    names.append(name)
        known = [self._hashes(self._ids(own)) for own in words.values() if len(own) >= NUM_WORDS]
        self._known = np.unique(np.concatenate(known)) if known else np.zeros(0, np.uint64)
        # Most runs of a training text are told apart by the first bits of their number alone.
        self._first_bits = np.zeros(2**_FIRST_BITS, bool)
        self._first_bits[self._known >> _SHIFT] = True

    def search(self, texts: Sequence[bytes], file: str, first_row: int) -> Iterator[Overlap]:
        """Overlaps with the texts of rows that follow one another."""
        words = _BETWEEN_ROWS.join(texts).translate(_TABLE).split()
        if len(words) < NUM_WORDS or not len(self._known):
            return
        ids = self._ids(words)
        # A run with a word that no question has is none; of the others the hash decides.
        unknown = np.concatenate([[0], np.cumsum(ids == _UNKNOWN)])
        whole = np.flatnonzero(unknown[NUM_WORDS:] == unknown[:-NUM_WORDS])
        if not len(whole):
            return
        hashes = self._hashes(ids)[whole]
        likely = self._first_bits[hashes >> _SHIFT]
        whole, hashes = whole[likely], hashes[likely]
        places = np.minimum(np.searchsorted(self._known, hashes), len(self._known) - 1)
        hits = whole[self._known[places] == hashes]
        rows = np.cumsum([word == b"\x00" for word in words]) if len(hits) else np.zeros(0, int)
        yield from self._joined(hits.tolist(), words, rows, file, first_row)

    def _joined(
        self, hits: Sequence[int], words: Words, rows: np.ndarray, file: str, first_row: int
    ) -> Iterator[Overlap]:
        """Runs that overlap joined, question by question."""
        open_runs: dict[str, tuple[int, int]] = {}
        for start in hits:
            for name in self._runs.get(tuple(words[start : start + NUM_WORDS]), ()):
                begin, last = open_runs.get(name, (start, start))
                if start > last + 1:
                    yield self._overlap(name, begin, last, words, rows, file, first_row)
                    begin = start
                open_runs[name] = (begin, start)
        for name, (begin, last) in open_runs.items():
            yield self._overlap(name, begin, last, words, rows, file, first_row)

    def _overlap(
        self,
        name: str,
        begin: int,
        last: int,
        words: Words,
        rows: np.ndarray,
        file: str,
        first_row: int,
    ) -> Overlap:
        text = b" ".join(words[begin : last + NUM_WORDS]).decode(errors="replace")
        return Overlap(name, file, first_row + int(rows[begin]), text)

    def _ids(self, words: Words) -> npt.NDArray[np.uint64]:
        numbers = map(self._numbers.get, words, repeat(_UNKNOWN))
        return np.fromiter(numbers, np.uint64, len(words))

    def _hashes(self, ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """A number for each run of words: the sum of id x base^place, modulo 2^64."""
        size = len(ids) - NUM_WORDS + 1
        found = np.zeros(size, np.uint64)
        for place in range(NUM_WORDS):
            found = found * _BASE + ids[place : place + size]
        return found


def _chunks(file: Path) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first row, texts of rows that follow) of a file, about a megabyte at a time.

    A row that cannot be read has no text.
    """
    texts: list[bytes] = []
    first, size = 1, 0
    columns = file_fields(file).names if file.name.endswith(".parquet") else ()
    for number, row in file_rows(file, columns):
        texts += [b""] * (number - first - len(texts))  # lines that are blank have no row
        texts.append(b"" if isinstance(row, BadRow) else _text(row))
        size += len(texts[-1])
        if size >= _CHUNK_BYTES:
            yield first, texts
            first, texts, size = number + 1, [], 0
    if texts:
        yield first, texts


def _text(row: GoodRow) -> bytes:
    return " ".join(_strings(row)).replace("\x00", " ").encode(errors="replace")


def _strings(value: Any) -> Iterator[str]:
    """Every text inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in cast("Mapping[str, Any]", value).values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in cast("Sequence[Any]", value):
            yield from _strings(inner)
