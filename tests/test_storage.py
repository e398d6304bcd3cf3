# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there, folders that replace one another, digests that find a bit."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from satori_fast import storage


def test_text_and_bytes_are_written_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    storage.write_atomically(path, "one")
    storage.write_atomically(path, b"two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["state.json"]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    storage.write_atomically(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.write_atomically(path, "new")
    assert path.read_text() == "old"


def test_a_folder_is_replaced_only_when_its_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with storage.replaced_folder(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(RuntimeError), storage.replaced_folder(target) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (target / "a").read_text() == "1"
    (tmp_path / "mine.partial").write_text("a file of somebody's")
    storage.clear_leftovers(tmp_path, ["mod*"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.partial", "model"]


def test_a_folder_that_a_kill_moved_aside_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "model"
    (tmp_path / "model.replaced").mkdir()
    (tmp_path / "model.replaced" / "a").write_text("1")
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "state.json.partial").write_text("{")
    storage.clear_leftovers(tmp_path, ["model", "state.json"])
    assert (target / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_digests_find_a_bit_a_cut_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    weights = tmp_path / "sub" / "weights"
    content = bytes(range(256)) * 40
    weights.write_bytes(content)
    recorded = storage.digests(tmp_path)
    assert list(recorded) == ["sub/weights"]
    storage.check_digests(tmp_path, recorded)
    for damaged in (content[:5000] + b"\x01" + content[5001:], content[:-1], b""):
        weights.write_bytes(damaged)
        with pytest.raises(storage.DamagedFile, match="sub/weights is damaged"):
            storage.check_digests(tmp_path, recorded)
    weights.unlink()
    with pytest.raises(storage.DamagedFile, match="sub/weights is missing"):
        storage.check_digests(tmp_path, recorded)


def test_a_changed_character_of_a_sealed_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    value = {"finished": ["supervised"], "wall_s": 1.25, "text": "\u00e9\n"}
    storage.write_sealed(path, value)
    assert storage.read_sealed(path) == value
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        if content[place : place + 1].isspace():  # outside the values nothing is told by a space
            continue
        with pytest.raises(storage.DamagedFile, match=r"state\.json"):
            storage.read_sealed(path)
    for damaged in (b"", b"[]", content[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(storage.DamagedFile, match=r"state\.json"):
            storage.read_sealed(path)
    path.unlink()
    with pytest.raises(storage.DamagedFile, match=r"state\.json is missing"):
        storage.read_sealed(path)


def test_a_changed_character_of_a_sealed_line_is_found() -> None:
    record = {"question": "1 + 1 \u2260 3", "ids": [1, 2], "crc32": "mine"}
    line = storage.sealed_line(record).encode()
    assert storage.unsealed(line, "file:1") == record
    for place in range(len(line) - 1):
        damaged = line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]
        with pytest.raises(storage.DamagedFile, match="file:1 is damaged"):
            storage.unsealed(damaged, "file:1")


def test_waiting_for_a_file_that_another_process_writes(tmp_path: Path) -> None:
    """First it is missing, then an old one, then the one that was promised."""
    path = tmp_path / "a"
    storage.write_atomically(tmp_path / "promised", "new")
    recorded = storage.digest(tmp_path / "promised")

    def write() -> None:
        storage.write_atomically(path, "old")
        storage.write_atomically(path, "new")

    timer = threading.Timer(0.2, write)
    timer.start()
    storage.wait_for_file(path, recorded=recorded)
    assert path.read_text() == "new"
    timer.join()
    storage.wait_for_file(path)


def test_a_file_that_does_not_come_is_named(tmp_path: Path) -> None:
    with pytest.raises(storage.DamagedFile, match=r"missing\.jsonl is missing after 0\.05 s"):
        storage.wait_for_file(tmp_path / "missing.jsonl", timeout_s=0.05)
    storage.write_atomically(tmp_path / "other", "text")
    with pytest.raises(storage.DamagedFile, match="other is not the file that was written"):
        storage.wait_for_file(tmp_path / "other", recorded="0", timeout_s=0.05)


def test_json_is_read_or_its_file_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert storage.read_json(path) == {"a": 1}
    for damage in (b"", b'{"a": ', b"\xff"):
        path.write_bytes(damage)
        with pytest.raises(storage.DamagedFile, match=f"{path} is damaged: not JSON"):
            storage.read_json(path)


def test_lines_are_read_or_the_wrong_one_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    storage.write_sealed_records(path, ({"a": number} for number in (1, 2)))
    assert list(storage.sealed_records(path)) == [{"a": 1}, {"a": 2}]
    path.write_text(path.read_text().replace('{"a": 2', '{"a": 3'))
    with pytest.raises(storage.DamagedFile, match=f"{path}:2 is damaged"):
        list(storage.sealed_records(path))
