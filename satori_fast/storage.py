# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are there whole or not at all, and digests that tell what changed.

Everything that decides how a run goes on is written beside its place, synced to disk and renamed:
a kill, a full disk or a power cut leaves the old one or the new one, never half of one. Not for
files that grow by lines (`synthesis.record_file`, `profiling.metrics`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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


def recover_folder(target: Path) -> None:
    """Clean up after a kill inside `finish_folder`: a `target` that was moved aside comes back.

    Folders that were being written or replaced are removed."""
    replaced = target.with_name(target.name + REPLACED)
    if replaced.is_dir() and not target.exists():
        replaced.rename(target)
    for leftover in (replaced, target.with_name(target.name + PARTIAL)):
        shutil.rmtree(leftover, ignore_errors=True)


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


def file_names(folder: Path) -> list[str]:
    """Every file below `folder`, relative to it, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def digests(folder: Path, names: Sequence[str] | None = None) -> dict[str, str]:
    """SHA-256 of each file below `folder`, or of `names` only, by path relative to `folder`."""
    return {name: digest(folder / name) for name in (names or file_names(folder))}


def check_digests(
    folder: Path, expected: Mapping[str, str], *, digest_of: Callable[[Path], str] = digest
) -> None:
    """DamagedFile, naming the first file below `folder` that is missing or not what it was."""
    for name, recorded in expected.items():
        if digest_of(folder / name) != recorded:
            raise DamagedFile(f"{folder / name} is damaged: its digest is not the recorded one")


def read_json(path: Path) -> Any:
    """What a JSON file holds. DamagedFile, naming it, when that is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one too
        raise DamagedFile(f"{path} is damaged: not JSON: {error}") from None


def json_lines(path: Path) -> Iterator[Any]:
    """What each line of a file holds. DamagedFile names the line that is not JSON."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DamagedFile(
                    f"{path} is damaged: line {number} is not JSON: {error}"
                ) from None


def wait_for_file(path: Path, *, patience_s: float = 30.0) -> Path:
    """`path`, which another process has written, once this one sees it too.

    A network file system may answer for some time that a file is missing that was asked for before
    it was there. Returns after `patience_s` in any case: opening it then says what is wrong.
    """
    deadline = time.monotonic() + patience_s
    while not path.exists() and time.monotonic() < deadline:
        # Listing a folder has a network file system ask its server again.
        with os.scandir(path.parent) if path.parent.is_dir() else nullcontext():
            time.sleep(0.1)
    return path
