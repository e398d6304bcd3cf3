# SPDX-License-Identifier: Apache-2.0
"""Containers and encodings of data files; what each says when it cannot be read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from satori_fast.data.rows import Fields, Row, file_fields, file_rows, file_stem, is_file_name
from satori_fast.data.values import BadRow

ROWS = [{"q": "caf\u00e9 \U0001f600\u2028?", "a": "1"}, {"q": "b", "a": "2"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
# Without a time in its header: pytest's workers must agree in the names of tests.
CUT_GZIP = gzip.compress(LINES.encode() * 99, mtime=0)[:-20]


def read(path: Path) -> list[Row]:
    numbered = list(file_rows(path, ["q", "a"]))
    assert [number for number, _ in numbered] == list(range(1, len(numbered) + 1))
    return [row for _, row in numbered]


def reasons(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.reason, row.detail) for row in rows if isinstance(row, BadRow)]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-32-be"]
)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".jsonl.gz", ".json.gz"])
@pytest.mark.parametrize("whole", [False, True])
def test_lines_and_lists_in_every_encoding_that_says_itself(
    tmp_path: Path, encoding: str, ending: str, whole: bool
) -> None:
    """The ending may be the wrong one of the two: what is in the file decides."""
    mark = "\ufeff" if encoding.endswith("-be") else ""
    data = (mark + (json.dumps(ROWS, indent=1) if whole else LINES)).encode(encoding)
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    assert read(path) == ROWS
    assert file_fields(path) == Fields(("q", "a"))


def test_the_list_of_an_object(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "tags": ["x"], "data": ROWS}))
    assert read(path) == ROWS
    path.write_text(json.dumps({"data": ROWS, "more": ROWS}))
    with pytest.raises(ValueError, match="an object with the keys data, more"):
        read(path)
    path.write_text(json.dumps({"q": ["a", "b"], "a": [1, 2]}))
    with pytest.raises(ValueError, match="one object with one such list: it holds an object"):
        read(path)


def test_lines_that_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    deep = "[" * 100_000
    path.write_bytes(b'{"q": 1},\n\n[1]\n{"q": \n' + deep.encode() + b'\n{"q": "caf\xc3')
    numbered = list(file_rows(path, []))
    assert [number for number, _ in numbered] == [1, 3, 4, 5, 6]
    found = reasons([row for _, row in numbered])
    assert [reason for reason, _ in found] == ["not valid JSON", "not a JSON object"] + 3 * [
        "not valid JSON"
    ]
    assert found[0][1] == "trailing comma" and found[4][1] == "cut off"
    assert "\n" not in "".join(detail for _, detail in found)


def test_numbers_keep_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1e400, "b": 0.1, "c": 123456789012345678901234567890}\n')
    assert read(path) == [{"a": Decimal("1e400"), "b": 0.1, "c": 123456789012345678901234567890}]


def pointer() -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", '{"q": 1}\n{"q": "\u00e9"}\n'.encode("latin-1"), "row 2: byte 0xe9 is not UTF"),
        ("a.json", '[{"q":\n"\u00e9"}]\n'.encode("latin-1"), r"row 2: byte 0xe9 .*`iconv -f WIND"),
        ("a.jsonl", LINES.encode("utf-16-le"), "UTF-16 or UTF-32 without a byte order mark"),
        ("a.jsonl", LINES.encode("utf-16")[:-1], "about row 2: byte 0x0a is not utf-16"),
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.jsonl", pointer(), "git-lfs pointer, not the data: run `git lfs pull`"),
        ("a.parquet", pointer(), "git-lfs pointer"),
        ("a.parquet", b"PAR1 and no more", "is not valid parquet"),
        (
            "a.jsonl.gz",
            gzip.compress(LINES.encode() * 99, mtime=0)[:-20],
            "cannot be read: .*end-of-stream",
        ),
        ("a.jsonl.gz", LINES.encode(), "cannot be read: Not a gzipped file"),
        ("a.json", b"{", "is not valid JSON: Expecting"),
        ("a.json", b"5", "must hold a JSON list of objects, .* it holds int"),
        ("a.tsv", b"q\ta\n", r"must end in \.jsonl, \.json, \.csv, \.parquet, \.jsonl\.gz"),
        ("a.csv", b"q,q\n1,2\n", r"its first row names 'q' twice: give every column a name"),
        ("a.csv", b"\n1,2\n", r"its first row names no column"),
        ("a.csv", b"q,a\n1,caf\xe9\n", r"row 1: byte 0xe9 is not UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.jsonl does not exist"):
        read(tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match="is a folder: name a file"):
        read(tmp_path)
    (tmp_path / "part.parquet").touch()
    with pytest.raises(ValueError, match=r"is a folder: name a file in it, such as part\.parquet"):
        read(tmp_path)


def test_what_is_meant_as_a_file() -> None:
    for source in (
        "a.jsonl",
        "a.csv",
        "a.json.gz",
        "a.zst",
        "/x/y",
        "./x",
        "~/x",
        "a/b/c",
        Path("x"),
    ):
        assert is_file_name(source), source
    for source in ("openai/gsm8k", "simplescaling/s1K-1.1", "gsm8k"):
        assert not is_file_name(source), source
    assert file_stem("x/gsm8k.v2.jsonl.gz") == "gsm8k.v2"
    assert file_stem("openai/gsm8k") == "gsm8k"


# --- parquet -------------------------------------------------------------------------------------

WritesParquet = Callable[[dict[str, Any]], Path]


@pytest.fixture
def write_parquet(tmp_path: Path) -> WritesParquet:
    import pyarrow
    import pyarrow.parquet

    def write(columns: dict[str, Any]) -> Path:
        table = pyarrow.table(columns)
        path = tmp_path / "a.parquet"
        pyarrow.parquet.write_table(table, path, use_dictionary=False, compression="none")
        return path

    return write


def test_parquet_reads_the_named_columns(write_parquet: WritesParquet) -> None:
    path = write_parquet({"q": ["a", "b"], "a": [1.5, None], "more": [{"x": 1}, {"x": 2}]})
    assert read(path) == [{"q": "a", "a": 1.5}, {"q": "b", "a": None}]
    assert file_fields(path) == Fields(("q", "a", "more"), nested=("more",), paths=("more.x",))
    assert "data.fields reaches into nested ones: more.x" in str(file_fields(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_of_every_spelling(tmp_path: Path, encoding: str, delimiter: str) -> None:
    """By hand: quotes, doubled quotes, line breaks and delimiters inside a value."""
    text = 'q;a\r\n"say ""caf\u00e9"";\n2 + 2";4\r\n\r\nb;\r\n'.replace(";", delimiter)
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode(encoding))
    first = {"q": f'say "caf\u00e9"{delimiter}\n2 + 2', "a": "4"}
    assert read(path) == [first, {"q": "b", "a": ""}]
    assert file_fields(path) == Fields(("q", "a"))
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(text.encode(encoding)))
    assert read(packed) == read(path)


def test_csv_rows_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(',q,a\n0,x,1\n1,y\n2,"z"z,3\n3,w,4\n4,"no end,5\n')
    found = read(path)
    assert found[0] == {"q": "x", "a": "1"} and found[3] == {"q": "w", "a": "4"}
    assert reasons(found) == [
        ("another number of values than columns", "2 of 3"),
        ("not valid CSV", "',' expected after '\"'"),
        ("not valid CSV", "unexpected end of data"),
    ]


def test_long_values_of_a_csv_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("q,a\n" + "x" * 300_000 + ",1\n")
    assert read(path) == [{"q": "x" * 300_000, "a": "1"}]


def test_a_parquet_file_that_was_cut(write_parquet: WritesParquet) -> None:
    path = write_parquet({"q": ["a"] * 100, "a": list(range(100))})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"a\.parquet is not valid parquet"):
        read(path)


def test_text_that_is_not_utf8_costs_its_row(write_parquet: WritesParquet) -> None:
    import pyarrow

    broken = pyarrow.array([b"x", b"\xff", b"y"]).view(pyarrow.string())
    found = read(write_parquet({"q": broken, "a": ["1", "2", "3"]}))
    assert [row for row in found if not isinstance(row, BadRow)] == [
        {"q": "x", "a": "1"},
        {"q": "y", "a": "3"},
    ]
    assert [reason for reason, _ in reasons(found)] == ["text that is not UTF-8"]


def test_columns_that_are_not_needed_cost_no_memory(write_parquet: WritesParquet) -> None:
    """Reading the column of 120 MB beside them would double what the process holds."""
    import numpy as np
    import pyarrow

    num_rows, width = 2000, 7500
    values = pyarrow.array(np.zeros(num_rows * width))
    offsets = pyarrow.array(np.arange(num_rows + 1) * width, pyarrow.int32())
    wide = pyarrow.ListArray.from_arrays(offsets, values)
    path = write_parquet({"q": ["a"] * num_rows, "a": ["1"] * num_rows, "wide": wide})
    assert path.stat().st_size > 110 * 2**20
    program = (
        "import resource, sys; from pathlib import Path; import pyarrow.parquet\n"
        "from satori_fast.data.rows import file_rows\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "assert sum(1 for _ in file_rows(Path(sys.argv[1]), ['q', 'a'])) == 2000\n"
        "print((peak() - before) // 1024)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 80  # MiB
