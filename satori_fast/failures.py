# SPDX-License-Identifier: Apache-2.0
"""Report of an exception: one line, an exit code, and a traceback in the run's error.log.

Used by the command line alone. `log_to` names the run folder once it is ours. Not for raising: an
error says what, where and the fix in its own message.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from satori_fast.redaction import redacted

USER, OTHER, INTERRUPTED = 2, 1, 130
_MISTAKES = (
    ValueError,
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)
_LONGEST_LINE = 800
_PACKAGE = str(Path(__file__).parent)
_FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded|os error (28|122)\b")
_OF_PEERS = re.compile(
    r"gloo|NCCL|ProcessGroup|[Cc]onnection (closed|reset|refused)|Broken pipe|TCPStore|"
    r"[Ss]ocket Timeout|timed out waiting|wait timeout",
)
_HINTS = {
    "OutOfMemoryError": (
        "the GPU's memory is full: lower packing.max_tokens_per_microbatch or "
        "rollout.gpu_memory_share, set model.recompute = true, or raise parallel.tensor"
    ),
    "MemoryError": (
        "the memory of this machine is full: lower packing.max_tokens_per_microbatch or "
        "rollout.max_slots"
    ),
}
_PLACES = {
    errno.ENOENT: "does not exist",
    errno.EISDIR: "is a folder, and a file is needed",
    errno.ENOTDIR: "is not a folder, or lies below a file",
    errno.EEXIST: "exists already",
    errno.EACCES: "may not be used by this user: change its permissions",
    errno.EPERM: "may not be used by this user: change its permissions",
    errno.EROFS: "lies on a file system that is read-only",
    errno.ENAMETOOLONG: "is too long for a file name",
    errno.ELOOP: "is a link that leads back to itself",
}

_folder: Path | None = None


def log_to(folder: Path | None) -> None:
    """Write tracebacks to error.log of `folder`, a run folder of ours, from now on."""
    global _folder
    _folder = folder


def line_of(error: BaseException) -> str:
    """Describe an exception on one line, without secrets."""
    text = redacted(" ".join(_text_of(error).split()))
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]} ..."


def code_of(error: BaseException) -> int:
    """2 for a user's mistake, 1 for everything else."""
    if _full_disk_path(error) is not None:
        return OTHER
    return USER if isinstance(error, _MISTAKES) else OTHER


def is_mistake(error: BaseException) -> bool:
    """Whether it is a user's mistake, in words of this project's own."""
    if code_of(error) != USER:
        return False
    trace = traceback.extract_tb(error.__traceback__)
    return isinstance(error, OSError) or not trace or trace[-1].filename.startswith(_PACKAGE)


def is_of_peers(error: BaseException) -> bool:
    """Whether this only says that another rank is gone."""
    if type(error).__name__ in ("RankLost", "DistBackendError", "DistNetworkError"):
        return True
    is_plain = type(error).__name__ in ("RuntimeError", "DistStoreError", "DistError")
    return is_plain and _OF_PEERS.search(str(error)) is not None


def write_log(error: BaseException, rank: int) -> Path | None:
    """Append the traceback to the log of this rank; its path, None where there is no run folder."""
    if _folder is None or not _folder.is_dir():
        return None
    path = _folder / ("error.log" if rank == 0 else f"error-rank{rank}.log")
    stamp = time.strftime("%Y-%m-%d %H:%M:%S %z")
    trace = redacted("".join(traceback.format_exception(error)))
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"--- {stamp}, rank {rank}, pid {os.getpid()}\n{trace}\n")
    except OSError:  # a full disk, most likely: the line itself must still come
        return None
    return path


def write_stacks(text: str, rank: int) -> Path | None:
    """Leave stacks of a rank that is waited for; their path, None where there is no run folder."""
    if _folder is None or not _folder.is_dir():
        return None
    path = _folder / f"stacks-rank{rank}.log"
    try:
        path.write_text(redacted(text), encoding="utf-8", errors="backslashreplace")
    except OSError:
        return None
    return path


def shares_log() -> bool:
    """Whether stderr is that of the process that started this one, as torchrun's ranks have it
    unless each has a log of its own (`--redirects`, `--tee`)."""
    own, launchers = (Path(f"/proc/{pid}/fd/2") for pid in ("self", os.getppid()))
    try:
        return own.readlink() == launchers.readlink()
    except OSError:  # no Linux, or the launcher is gone
        return True


def tell_launcher(line: str, *, came_later: bool) -> None:
    """Have the summary of torchrun show `line`; the earliest of all ranks is its root cause."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    extra = {"py_callstack": line, "timestamp": str(int(time.time()) + came_later)}
    message = {"message": {"message": line, "extraInfo": extra}}
    try:
        Path(path).write_text(json.dumps(message), encoding="utf-8")
    except OSError:
        return


def _text_of(error: BaseException) -> str:
    path = _full_disk_path(error)
    if path is not None:
        return f"no space left on device{path and f': {path}'}; free space and pass --resume"
    hint = _HINTS.get(type(error).__name__)
    if hint is not None:
        return f"{hint} ({type(error).__name__}: {_first_sentence(error)})"
    if isinstance(error, BrokenPipeError):
        return "nobody reads the output any more"
    if isinstance(error, OSError) and error.errno in _PLACES and error.filename is not None:
        name = error.filename if error.filename2 is None else error.filename2
        return f"{os.fsdecode(name)} {_PLACES[error.errno]}"
    if isinstance(error, UnicodeError):
        return f"text is not UTF-8: {error}"
    message = str(error).strip()
    is_ours = type(error).__module__.split(".")[0] == "satori_fast"
    if message and (is_ours or isinstance(error, _MISTAKES)):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _full_disk_path(error: BaseException) -> str | None:
    """The file that found no space, "" where the error does not name it; None for other errors."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return "" if one.filename is None else os.fsdecode(one.filename)
        if _FULL_DISK.search(str(one)):
            found = re.search(r"['\"](/[^'\"]+)['\"]", str(one))
            return found.group(1) if found else ""
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _first_sentence(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0].partition(". ")[0]
