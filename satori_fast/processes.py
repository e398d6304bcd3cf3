# SPDX-License-Identifier: Apache-2.0
"""Identity of processes, and whether they live: for names of things that outlive their owner.

A process id is used again, and means nothing on another machine or in another container, so a
`ProcessId` says all of that. Not for starting or ending processes (`rollout.server_process`).
"""

from __future__ import annotations

import hashlib
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, told apart from all others at all times.

    place: the machine since its last start, and the space that process ids count in (a container);
           8 hexadecimal digits. start: when it started, in the kernel's ticks (0: not known).
    """

    place: str
    pid: int
    start: int
    host: str = ""

    def is_gone(self) -> bool:
        """True where it certainly ended: never for a process of another machine."""
        return self.place == place() and not _lives(self.pid, self.start)

    def __str__(self) -> str:
        return f"{self.host or self.place} (pid {self.pid})"


def this_process() -> ProcessId:
    return ProcessId(place(), os.getpid(), _start_of(os.getpid()), platform.node())


@cache
def place() -> str:
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def group_members(group: int) -> list[int]:
    """Processes of a process group that run; one that ended and was not reaped does not."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            state, fields = _stat(int(entry.name))
            if fields and state != "Z" and int(fields[1]) == group:
                members.append(int(entry.name))
    return members


def is_resource_tracker(pid: int) -> bool:
    """Whether it is what Python starts to remove the shared memory of processes that ended."""
    with suppress(OSError):
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _lives(pid: int, start: int) -> bool:
    state, fields = _stat(pid)
    if fields:
        return state not in "ZX" and start in (0, int(fields[18]))
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return not Path("/proc/self/stat").exists()
    return False


def _start_of(pid: int) -> int:
    fields = _stat(pid)[1]
    return int(fields[18]) if fields else 0


def _stat(pid: int) -> tuple[str, list[str]]:
    """State, and the fields behind it, of /proc/PID/stat; empty where there is none."""
    with suppress(OSError):
        # The name stands in brackets and may hold anything.
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = text.rpartition(")")[2].split()
        return state, fields
    return "", []
