# SPDX-License-Identifier: Apache-2.0
"""Rows of data files and of hub data sets, one at a time: containers and encodings.

A row that cannot be read comes as the `BadRow` that says why; a file that cannot be read as a whole
(another encoding, cut short, a git-lfs pointer, a folder) is a ValueError in one line. Of a parquet
file only the needed columns are read, in batches of 1,024 rows. What the fields mean is `sources`.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from satori_fast.data.field_paths import paths_in, root_of
from satori_fast.data.values import BadRow, is_nested

GoodRow = Mapping[str, Any]
Row = GoodRow | BadRow

KNOWN_ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")
# Endings that make a name the name of a file, though it cannot be read: no hub name ends like that.
_OTHER_ENDINGS = (".tsv", ".txt", ".xlsx", ".arrow", ".ndjson", ".gz", ".zst", ".zip")
_BATCH_ROWS = 1024
_MAX_PATHS = 12  # in a message
_LFS_POINTER = b"version https://git-lfs"
# The longest marks first: UTF-32's begins with UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_NOT_JSON = "not valid JSON"
_LONGEST_CSV_VALUE = 100_000_000  # characters; the library's own limit cuts long solutions


@dataclass(frozen=True, slots=True)
class Fields:
    """The names of a data set's fields. nested: those that hold objects; paths: into these."""

    names: tuple[str, ...]
    nested: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"its fields are: {', '.join(sorted(self.names))}"
        if not self.nested:
            return text
        inside = ", ".join((self.paths or self.nested)[:_MAX_PATHS])
        return f"{text} (data.fields reaches into nested ones: {inside})"


def is_file_name(source: str | Path) -> bool:
    """Whether a source is meant as a file, be it there or not; else it is the name of a hub set."""
    name = str(source)
    return (
        isinstance(source, Path)
        or name.endswith(KNOWN_ENDINGS + _OTHER_ENDINGS)
        or name.startswith(("/", ".", "~"))
        or name.count("/") > 1
        or Path(name).exists()
    )


def file_stem(source: str | Path) -> str:
    """The name of a source without its folder and ending: "gsm8k" of "data/gsm8k.jsonl.gz"."""
    name = Path(source).name
    endings = sorted(KNOWN_ENDINGS, key=len, reverse=True)
    return next((name.removesuffix(e) for e in endings if name.endswith(e)), Path(name).stem)


def check_file(path: Path) -> None:
    """Raise ValueError for what is seen to be no data file before any row is read."""
    if path.is_dir():
        inside = data_files(path)
        found = f"name a file in it, such as {', '.join(inside[:3])}" if inside else "name a file"
        raise ValueError(f"data file {path} is a folder: {found}")
    if not path.is_file():
        raise ValueError(f"data file {path} does not exist{_nearest_file(path)}")
    if not path.name.endswith(KNOWN_ENDINGS):
        endings = ", ".join(KNOWN_ENDINGS)
        raise ValueError(f"data file {path}: its name must end in {endings}: convert or rename it")
    with _readable(path), path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if not start:
        raise ValueError(f"data file {path} is empty: no row to read")
    if start == _LFS_POINTER:
        raise ValueError(
            f"data file {path} is a git-lfs pointer, not the data: run `git lfs pull` in its folder"
        )


def _nearest_file(path: Path) -> str:
    """A data file of the same folder, for a message; "" without one."""
    names = data_files(path.parent)
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.0)
    return f"; the nearest in its folder is {near[0]}" if near else ""


def data_files(folder: Path) -> list[str]:
    """Names of the data files in a folder, in order; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.name.endswith(KNOWN_ENDINGS))


def file_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of every row. columns: of a parquet file, those that are read."""
    check_file(path)
    if path.name.endswith(".parquet"):
        return _parquet_rows(path, columns)
    return _text_rows(path)


def file_fields(path: Path) -> Fields:
    """The fields of a file: of a parquet file all, of another those of its first good rows."""
    check_file(path)
    if path.name.endswith(".parquet"):
        return _parquet_fields(path)
    return row_fields(row for _, row in islice(_text_rows(path), 100))


def row_fields(rows: Iterable[Row]) -> Fields:
    """The fields that any of `rows` has; nested are those that hold nothing plain."""
    found: dict[str, list[str]] = {}  # the paths into each field
    plain: set[str] = set()
    for row in rows:
        if not isinstance(row, BadRow):
            for name, value in row.items():
                known = found.setdefault(name, [])
                if not known and is_nested(value):
                    known += paths_in(value, name) or [name]
                elif not (is_nested(value) or _is_empty(value)):
                    plain.add(name)
    nested = tuple(name for name, inside in found.items() if inside and name not in plain)
    return Fields(tuple(found), nested, tuple(path for name in nested for path in found[name]))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def hub_rows(
    hub_id: str,
    config: str | None,
    split: str,
    columns: Sequence[str],
    *,
    revision: str | None = None,
) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of a data set of the Hugging Face hub, streamed; revision: a branch, tag
    or commit of it."""
    import datasets  # pyright: ignore[reportMissingTypeStubs]

    hub: Any = datasets
    try:
        # Streaming: a few rows of a data set with millions should not download them all.
        rows: Any = hub.load_dataset(hub_id, config, split=split, streaming=True, revision=revision)
        known = rows.column_names
        if known is not None and {root_of(name, tuple(known)) for name in columns} <= set(known):
            rows = rows.select_columns([name for name in columns if name in known])
        yield from enumerate(rows, start=1)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load split {split!r} of {hub_id} from the hub: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's text: ours have one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _text_rows(path: Path) -> Iterator[tuple[int, Row]]:
    is_csv = path.name.removesuffix(".gz").endswith(".csv")
    return _csv_rows(path) if is_csv else _json_rows(path)


# --- CSV -----------------------------------------------------------------------------------------


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows under the header of a file with commas, semicolons or tabs; every value is text."""
    with _readable(path):
        with _opened(path) as file:
            encoding = _encoding(path, file.read(4096))
        number = 0
        with _opened(path) as file:
            try:
                text = io.TextIOWrapper(file, encoding, newline="")
                begin = text.readline()
                text.seek(0)
                csv.field_size_limit(_LONGEST_CSV_VALUE)
                reader = csv.reader(text, delimiter=max(",;\t", key=begin.count), strict=True)
                names = _header(path, next(reader, list[str]()))
                while (row := _csv_row(reader, names)) is not None:
                    if row:
                        number += 1
                        yield number, row
            except UnicodeDecodeError as error:
                raise _wrong_encoding(path, number + 1, error) from None


def _header(path: Path, names: list[str]) -> list[str]:
    names = [name.strip() for name in names]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None or not any(names):
        fault = f"names {twice!r} twice" if twice else "names no column"
        raise ValueError(f"data file {path}: its first row {fault}: give every column a name")
    return names


def _csv_row(reader: Iterator[list[str]], names: Sequence[str]) -> Row | None:
    """The next row, empty for an empty line; None at the end."""
    try:
        values = next(reader)
    except StopIteration:
        return None
    except csv.Error as error:
        return BadRow("not valid CSV", first_line(error))
    if not values:
        return {}
    if len(values) != len(names):
        return BadRow("another number of values than columns", f"{len(values)} of {len(names)}")
    # A column without a name is the index that pandas writes.
    return {name: value for name, value in zip(names, values, strict=True) if name}


# --- JSON ----------------------------------------------------------------------------------------


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a JSON list or of JSON lines: what is in the file decides, its ending is a hint."""
    ends_in_json = path.name.removesuffix(".gz").endswith(".json")
    with _readable(path):
        with _opened(path) as file:
            start = file.read(4096)
        encoding = _encoding(path, start)
        text = start.decode(encoding, errors="ignore").lstrip()
        rows = None
        if ends_in_json or text.startswith("["):
            rows = _whole_file(path, encoding, must_be_whole=ends_in_json)
        if rows is None:
            yield from _lines(path, encoding)
            return
    for number, value in enumerate(rows, start=1):
        yield number, _as_row(value)


def _whole_file(path: Path, encoding: str, *, must_be_whole: bool) -> list[Any] | None:
    """The list of a file that is one JSON value; None for JSON lines."""
    with _opened(path) as file:
        data = file.read()
    try:
        value = _DECODER.decode(data.decode(encoding))
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, data.count(b"\n", 0, error.start) + 1, error) from None
    except (ValueError, RecursionError) as error:
        if not must_be_whole or (
            isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        ):
            return None
        raise ValueError(f"data file {path} is not valid JSON: {first_line(error)}") from None
    if isinstance(value, list):
        return cast("list[Any]", value)
    found = type(value).__name__
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        lists: list[Any] = [v for v in members.values() if isinstance(v, list) and is_nested(v)]
        if len(lists) == 1:
            return lists[0]
        found = f"an object with the keys {', '.join(list(members)[:10]) or '(none)'}"
    raise ValueError(
        f"data file {path} must hold a JSON list of objects, or one object with one such list: "
        f"it holds {found}"
    )


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, Row]]:
    for number, line in _decoded_lines(path, encoding):
        if isinstance(line, BadRow):
            yield number, line
        elif bare := line.strip():
            yield number, _parsed(bare)


def _decoded_lines(path: Path, encoding: str) -> Iterator[tuple[int, str | BadRow]]:
    number = 0
    with _opened(path) as file:
        if encoding not in ("utf-8", "utf-8-sig"):
            try:
                for line in io.TextIOWrapper(file, encoding, newline="\n"):
                    number += 1
                    yield number, line
            except UnicodeDecodeError as error:
                raise _wrong_encoding(path, number + 1, error) from None
            return
        for data in file:
            number += 1
            data = data.removeprefix(codecs.BOM_UTF8) if number == 1 else data
            try:
                yield number, data.decode()
            except UnicodeDecodeError as error:
                if error.reason != "unexpected end of data":
                    raise _wrong_encoding(path, number, error) from None
                yield number, BadRow(_NOT_JSON, "cut off")


def _parsed(line: str) -> Row:
    try:
        return _as_row(_DECODER.decode(line))
    except (ValueError, RecursionError) as error:
        if line.endswith(",") and _is_json(line[:-1]):
            return BadRow(_NOT_JSON, "trailing comma")
        return BadRow(_NOT_JSON, first_line(error))


def _is_json(text: str) -> bool:
    try:
        _DECODER.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _as_row(value: Any) -> Row:
    return cast("Row", value) if isinstance(value, dict) else BadRow("not a JSON object")


def _number(text: str) -> float | Decimal:
    """A float, or where that is too small a type (1e400) a Decimal: the file names a number."""
    value = float(text)
    return value if value not in (float("inf"), float("-inf")) else Decimal(text)


_DECODER = json.JSONDecoder(parse_float=_number)


def _encoding(path: Path, start: bytes) -> str:
    """Encoding by the byte order mark; without one it can only be UTF-8."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return encoding
    if b"\0" in start[:4]:
        raise ValueError(
            f"data file {path} looks like UTF-16 or UTF-32 without a byte order mark: convert it "
            "to UTF-8"
        )
    return "utf-8"


def _wrong_encoding(path: Path, row: int, error: UnicodeDecodeError) -> ValueError:
    byte = f"byte 0x{error.object[error.start]:02x}"
    if error.encoding.startswith("utf-8") or error.encoding == "utf8":
        return ValueError(
            f"data file {path}, row {row}: {byte} is not UTF-8, it may be latin-1 or Windows-1252: "
            "convert the file, e.g. with `iconv -f WINDOWS-1252 -t UTF-8`"
        )
    return ValueError(
        f"data file {path}, about row {row}: {byte} is not {error.encoding}, as its byte order "
        "mark says: convert the file to UTF-8"
    )


@contextmanager
def _readable(path: Path) -> Generator[None]:
    """Message of the system or gzip about a file, as one line with its name."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise ValueError(f"data file {path} cannot be read: {reason}") from None


def _opened(path: Path) -> BinaryIO:
    if path.name.endswith(".gz"):
        return cast("BinaryIO", gzip.open(path, "rb"))
    return path.open("rb")


# --- parquet -------------------------------------------------------------------------------------


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    number = 0
    with _parquet(path) as file:
        wanted = [name for name in columns if name in file.schema_arrow.names]
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted, use_threads=False)
        for batch in batches:
            for row in _batch_rows(batch):
                number += 1
                yield number, row


def _parquet_fields(path: Path) -> Fields:
    with _parquet(path) as file:
        schema = file.schema_arrow
        nested = [f.name for f in schema if "struct<" in str(f.type) or "map<" in str(f.type)]
        batches = file.iter_batches(batch_size=1, columns=nested, use_threads=False)
        first = next(batches, None) if nested else None
        rows = [] if first is None else list(_batch_rows(first))
    return Fields(tuple(schema.names), tuple(nested), row_fields(rows).paths)


@contextmanager
def _parquet(path: Path) -> Generator[Any]:
    import pyarrow.parquet as parquet  # pyright: ignore[reportMissingTypeStubs]

    reader: Any = parquet
    try:
        # A buffer: without one, the column chunks of a row group are read whole.
        with reader.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            yield file
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise ValueError(f"data file {path} is not valid parquet: {first_line(error)}") from None


def _batch_rows(batch: Any) -> Iterator[Row]:
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:  # a writer need not check that its text is UTF-8
        pass
    for i in range(batch.num_rows):
        try:
            yield from batch.slice(i, 1).to_pylist()
        except UnicodeDecodeError as error:
            yield BadRow("text that is not UTF-8", first_line(error))
