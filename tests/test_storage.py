# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there, folders that replace one another, digests that find a bit."""

from __future__ import annotations

import threading
import time
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
    storage.recover_folder(target)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_a_kill_moved_aside_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "model"
    (tmp_path / "model.replaced").mkdir()
    (tmp_path / "model.replaced" / "a").write_text("1")
    (tmp_path / "model.partial").mkdir()
    storage.recover_folder(target)
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
    path.write_text("1\n2\n")
    assert list(storage.json_lines(path)) == [1, 2]
    path.write_bytes(b'1\n"\xff"\n')
    with pytest.raises(storage.DamagedFile, match=f"{path} is damaged: line 2"):
        list(storage.json_lines(path))


def test_a_file_that_shows_late_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "late"
    timer = threading.Timer(0.3, path.touch)
    timer.start()
    assert storage.wait_for_file(path, patience_s=60.0).exists()
    timer.join()


def test_a_file_that_never_shows_is_waited_for_to_the_end(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert storage.wait_for_file(tmp_path / "no" / "file", patience_s=0.2).name == "file"
    assert time.monotonic() >= begin + 0.2
