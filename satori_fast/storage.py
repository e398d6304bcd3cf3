# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are there whole or not at all, and digests that tell what changed.

Everything that decides how a run goes on is written beside its place, synced to disk and renamed:
a kill, a full disk or a power cut leaves the old one or the new one, never half of one. Small JSON
files and single lines carry a seal of their own, so that a changed character is found at reading.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

# What is being written, and what a finished one replaces: a kill may leave either.
PARTIAL, REPLACED = ".partial", ".replaced"


class DamagedFile(ValueError):
    """A file that is missing, cut short or changed since it was written; the message names it."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to `path` in one piece, on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    data = content.encode() if isinstance(content, str) else content
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A fresh folder to fill; it takes the place of `target` only when the block ends well."""
    partial = begin_folder(target)
    yield partial
    finish_folder(target)


def begin_folder(target: Path) -> Path:
    """An empty folder beside `target`, for `finish_folder`; what a kill left there is removed."""
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def finish_folder(target: Path) -> None:
    """Sync the folder of `begin_folder` to disk, and put it in the place of `target`."""
    partial = target.with_name(target.name + PARTIAL)
    replaced = target.with_name(target.name + REPLACED)
    sync_tree(partial)
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def clear_leftovers(folder: Path, patterns: Sequence[str]) -> None:
    """Clean up after kills inside the writers above, for the places in `folder` that match.

    patterns: of finished files and folders, as for `Path.glob`. What was being written is removed;
    what was just being replaced comes back, if its successor is not there.
    """
    for pattern in patterns:
        for replaced in folder.glob(pattern + REPLACED):
            target = replaced.with_name(replaced.name.removesuffix(REPLACED))
            if not target.exists():
                replaced.rename(target)
        for leftover in (*folder.glob(pattern + PARTIAL), *folder.glob(pattern + REPLACED)):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def sync_tree(folder: Path) -> None:
    """Have the disk hold every file and folder below `folder`, and `folder` itself."""
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root) / name, os.O_RDONLY)
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names in `folder`."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. DamagedFile when it is missing."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DamagedFile(f"{path} is missing") from None


def file_names(place: Path) -> list[str]:
    """Every file below a folder, relative to it, sorted; "." for a place that is a file itself."""
    if place.is_file():
        return ["."]
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def digests(place: Path, names: Sequence[str] | None = None) -> dict[str, str]:
    """SHA-256 of each file below `place`, or of `names` only, by path relative to it."""
    names = file_names(place) if names is None else names
    with ThreadPoolExecutor(max_workers=8) as pool:  # hashing leaves the interpreter's lock alone
        return dict(zip(names, pool.map(lambda name: digest(place / name), names), strict=True))


def check_digests(place: Path, expected: Mapping[str, str]) -> None:
    """DamagedFile, naming the first file below `place` that is missing or not what it was."""
    for name, found in digests(place, list(expected)).items():
        if found != expected[name]:
            raise DamagedFile(f"{place / name} is damaged: its content is not what was written")


def write_sealed(path: Path, value: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Write a JSON object with a digest of itself, for `read_sealed`."""
    sealed = {**value, "sha256": _digest_of_value(value)}
    write_atomically(path, json.dumps(sealed, indent=indent) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote. DamagedFile, naming the file, for anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} is damaged: it holds no JSON object")
    if value.pop("sha256", None) != _digest_of_value(value):
        raise DamagedFile(f"{path} is damaged: its content is not what was written")
    return value


def _digest_of_value(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_sealed_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON objects, one a line and each with its checksum, for `sealed_records`; all or
    none."""
    write_atomically(path, "".join(map(sealed_line, records)))


def sealed_line(record: Mapping[str, Any]) -> str:
    """A JSON object as one line of a file that grows, with a checksum as its last field."""
    text = json.dumps(record, allow_nan=False)
    assert len(text) > 2, "a record has fields"
    return f'{text[:-1]}{_SEAL}{zlib.crc32(text.encode()):08x}"}}\n'


_SEAL = ', "crc32": "'


def unsealed(line: bytes, place: str) -> dict[str, Any]:
    """The record of a `sealed_line`. DamagedFile, naming `place` (file and number of the line)."""
    text, found, seal = line.rstrip(b"\n").rpartition(_SEAL.encode())
    text += b"}"
    if not found or seal != f'{zlib.crc32(text):08x}"}}'.encode():
        raise DamagedFile(f"{place} is damaged: remove it and what follows, it is made again")
    return json.loads(text)


def sealed_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of sealed lines. DamagedFile names the line that is not as written."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield unsealed(line, f"{path}:{number}")


def read_json(path: Path) -> Any:
    """Read a JSON file. DamagedFile, naming it, when it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedFile(f"{path} is missing") from None
    except ValueError as error:  # UnicodeDecodeError is one too
        raise DamagedFile(f"{path} is damaged: not JSON: {error}") from None


def wait_for_file(path: Path, *, recorded: str | None = None, timeout_s: float = 30.0) -> Path:
    """`path`, once it is there, with the digest `recorded` if one is given.

    On a network file system a file that another machine has just written, or replaced, can be
    missing, or the old one, for seconds. DamagedFile after `timeout_s` seconds of wall-clock time.
    """
    end = time.monotonic() + timeout_s
    while True:
        try:
            found = digest(path) if recorded is not None else path.is_file() or None
        except DamagedFile:
            found = None
        if found is not None and recorded in (None, found):
            return path
        if time.monotonic() >= end:
            what = "is missing" if found is None else "is not the file that was written"
            raise DamagedFile(f"{path} {what} after {timeout_s:g} s: do all machines share it?")
        # Listing a folder has a network file system ask its server again.
        with os.scandir(path.parent) if path.parent.is_dir() else nullcontext():
            time.sleep(min(0.1, timeout_s))
