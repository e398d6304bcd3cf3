# SPDX-License-Identifier: Apache-2.0
"""Lines that survive a kill: torn ends, broken middles, two writers, and a real SIGKILL."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from satori_fast.record_file import RecordFile


def records(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with closing(RecordFile(path, lambda record, place: found.append(record))):
        return found


def write(path: Path, *texts: str) -> list[int]:
    with closing(RecordFile(path, lambda record, place: None)) as file:
        return [file.append({"text": text}) for text in texts]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.jsonl"
    write(path, "one", "line\nbreak and \u4e2d", "three")
    write(path, "four")
    texts = [record["text"] for record in records(path)]
    assert texts == ["one", "line\nbreak and \u4e2d", "three", "four"]


def test_a_place_finds_its_record(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    first = write(path, "one", "\u00e9\u00e9", "three")
    seen: list[int] = []
    with closing(RecordFile(path, lambda record, place: seen.append(place))) as file:
        assert seen == first
        assert [file.read(place)["text"] for place in first] == ["one", "\u00e9\u00e9", "three"]
        assert file.read(file.append({"text": "four"}))["text"] == "four"


@pytest.mark.parametrize("lost", range(1, 24))
def test_a_torn_last_line_is_dropped(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "file.jsonl"
    write(path, "one", "two \u4e2d\u4e2d")
    content = path.read_bytes()
    path.write_bytes(content[:-lost])
    assert [record["text"] for record in records(path)] == ["one"]
    write(path, "again")
    assert [record["text"] for record in records(path)] == ["one", "again"]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    write(path, "one", "two")
    whole = path.read_bytes()
    for damaged in (b'{"text": "on', b'{"text": "ONE"'):
        path.write_bytes(whole.replace(b'{"text": "one"', damaged))
        with pytest.raises(
            ValueError, match=r"file\.jsonl:1 is damaged: remove it and what follow"
        ):
            records(path)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    with (
        closing(RecordFile(path, lambda record, place: None)),
        pytest.raises(ValueError, match="another process works on this run"),
    ):
        RecordFile(path, lambda record, place: None)
    assert records(path) == []


def test_a_killed_writer_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    program = (
        "import itertools, pathlib, sys\n"
        "from satori_fast.record_file import RecordFile\n"
        "file = RecordFile(pathlib.Path(sys.argv[1]), lambda record, place: None)\n"
        "for number in itertools.count():\n"
        "    file.append({'number': number, 'text': 'x' * 500})\n"
        "    print(number, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(200):
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate(timeout=30)
    last = max([last, *(int(line) for line in rest.split("\n")[:-1] if line)])
    numbers = [record["number"] for record in records(path)]
    assert numbers == list(range(len(numbers))) and numbers[-1] >= last
    assert all(json.loads(line) for line in path.read_text().splitlines())
