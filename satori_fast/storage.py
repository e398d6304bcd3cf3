# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are there whole or not at all, and digests that tell what changed.

Everything that decides how a run goes on is written beside its place, synced to disk and renamed:
a kill, a full disk or a power cut leaves the old one or the new one, never half of one. Not for
files that grow by lines (`synthesis.record_file`, `profiling.metrics`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

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


def wait_for_file(path: Path, *, recorded: str | None = None, timeout_s: float = 30.0) -> None:
    """Return once `path` is there, with the digest `recorded` if one is given.

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
            return
        if time.monotonic() >= end:
            what = "is missing" if found is None else "is not the file that was written"
            raise DamagedFile(f"{path} {what} after {timeout_s:g} s: do all machines share it?")
        time.sleep(min(0.1, timeout_s))
