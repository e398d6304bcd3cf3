# SPDX-License-Identifier: Apache-2.0
"""A sandbox for commands that nobody has read: a scratch copy, no network, limits that are named.

`run` writes files into a fresh folder, runs one command there without a shell, and tells how it
ended. Linux namespaces isolate it (`sandbox_worker` says how); where the kernel refuses them, `run`
refuses too, unless the caller trusts the code. A trusted command has limits of time, of memory and
file size of each process, and no walls. Not for: patches and tests (`patches`).
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

Ending = Literal["exit", "timeout", "cpu", "memory", "processes", "disk"]

# The interpreter of commands: without the site packages, nothing written beside sources.
PYTHON = (str(Path(sys.executable).resolve()), "-s", "-S", "-P", "-B")
_WORKER = Path(__file__).with_name("sandbox_worker.py")
# What programs and Python need to start: shown read-only where it exists.
_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
_BASE = str(Path(sys.base_prefix).resolve())
_SYSTEM = _FOLDERS if Path(_BASE).is_relative_to("/usr") else (*_FOLDERS, _BASE)
_GRACE_S = 60.0  # to build the sandbox and take it down, on a machine that has much to do


class IsolationError(ValueError):
    """The sandbox cannot isolate on this machine; one line with the reason and the fix."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one command with all its processes.

    seconds:      wall time: for what sleeps. It should be well above CPU seconds, so that what
                  computes ends in the same way on a busy machine.
    cpu_seconds:  whole CPU seconds of each process.
    memory_bytes: resident memory of all processes; address space of each is limited not far above.
    processes:    processes and threads at a time, counted whenever one more begins.
    disk_bytes:   bytes in the scratch folder beyond the files it starts with, output included. The
                  disk also ends at about 4,000 new files.
    """

    seconds: float = 30.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 * 2**20
    processes: int = 32
    disk_bytes: int = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Outcome:
    """End of a command, and what it left.

    ended:      "exit", or the limit that ended it.
    returncode: exit status, negative for a signal; None when a limit ended it.
    output:     end of standard output and standard error together.
    collected:  text of the files asked for, as far as they are there.
    """

    ended: Ending
    returncode: int | None
    output: str
    collected: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """Message to the worker; it shows the command what Python needs, and `visible`."""

    command: tuple[str, ...]
    limits: Limits
    isolated: bool
    files: dict[str, str] = field(default_factory=dict[str, str])
    links: dict[str, str] = field(default_factory=dict[str, str])
    visible: tuple[str, ...] = ()
    collect: tuple[str, ...] = ()
    system: tuple[str, ...] = _SYSTEM


def run(
    command: Sequence[str],
    files: Mapping[str, str],
    *,
    links: Mapping[str, str] | None = None,
    visible: Sequence[Path] = (),
    collect: Sequence[str] = (),
    limits: Limits | None = None,
    trusted: bool = False,
) -> Outcome:
    """Run a command in a scratch copy of files and tell how it ended.

    command: program by its full path, and arguments; it starts in the copy.
    files:   text by path relative to the copy; links: targets of symbolic links, likewise.
    visible: further files and folders of this machine that it may read.
    collect: files to bring back, relative to the scratch folder: "copy/..." or "tmp/..." ($TMPDIR).
    trusted: run without isolation where the machine has none, on the caller's word.

    ValueError for a path that leaves the copy. IsolationError where nothing isolates.

    >>> run([*PYTHON, "-c", "print(open('a').read())"], {"a": "1"}).output
    '1\\n'
    """
    for name in (*files, *(links or {})):
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{name}: a file of the copy needs a relative path without '..'")
    if not trusted:
        check_isolation()
    request = _Request(
        command=tuple(command),
        limits=limits or Limits(),
        isolated=isolation_fault() is None,
        files=dict(files),
        links=dict(links or {}),
        visible=tuple(str(path) for path in visible),
        collect=tuple(collect),
    )
    reply = _ask(request)
    if isinstance(reply, str):
        raise OSError(f"the sandbox failed: {reply}")
    return reply


def check_isolation() -> None:
    """Raise IsolationError where commands cannot be isolated."""
    fault = isolation_fault()
    if fault is not None:
        raise IsolationError(
            f"the sandbox cannot isolate here ({fault}): allow unprivileged user namespaces, or "
            "say that the code is trusted"
        )


@functools.cache
def isolation_fault() -> str | None:
    """Find out once whether commands can be isolated here; the reason why not, else None."""
    limits = Limits(seconds=_GRACE_S)
    reply = _ask(_Request(command=(*PYTHON, "-c", "pass"), limits=limits, isolated=True))
    if isinstance(reply, str):
        return reply
    return None if reply.returncode == 0 else f"Python does not start in it: {reply.output.strip()}"


def _ask(request: _Request) -> Outcome | str:
    """Outcome of a request to a worker of its own, or what kept it from running."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        message = {**asdict(request), "folder": str(Path(folder).resolve())}
        try:
            done = subprocess.run(
                [*PYTHON, str(_WORKER)],
                input=json.dumps(message),
                capture_output=True,
                text=True,
                timeout=request.limits.seconds + _GRACE_S,
                env={"LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            return "it did not answer in time"
    if not done.stdout:
        lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        return lines[-1]
    reply = json.loads(done.stdout)
    return reply["fault"] if "fault" in reply else Outcome(**reply)
