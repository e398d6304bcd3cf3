# SPDX-License-Identifier: Apache-2.0
"""Runs of the command line in processes of their own, that die or find the disk full on cue.

Processes are forked from this one, which has everything imported and nothing started: a try takes
as long as its work. What is on cue is counted in file events (opened for writing, renamed, removed,
made) inside the run folder, so a busy machine changes nothing.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Cue = Literal["kill", "full"]
_EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended. code: its exit code, or minus the signal that killed it."""

    code: int
    stderr: str

    @property
    def last_line(self) -> str:
        lines = [line for line in self.stderr.splitlines() if line.startswith("satori-fast:")]
        return lines[-1] if lines else ""

    @property
    def detail(self) -> str:
        """Its last line; where it said none, the end of what there is."""
        return self.last_line or self.stderr[-280:]


@dataclass
class Victim:
    """A run in a process of its own, started at once. `wait` for it, or `kill_after` a while.

    arguments: of the command line. folder: the run folder, for counting.
    at:        number of the file event that gives the cue, None: none does.
    after:     a path in the run folder; events count once it exists.
    number:    of the signal that the cue "kill" sends.
    """

    arguments: list[str]
    folder: Path
    cue: Cue = "kill"
    at: int | None = None
    after: str = "."
    number: int = signal.SIGKILL

    def __post_init__(self) -> None:
        self._log = self.folder.with_name(f"{self.folder.name}-{time.monotonic_ns()}.log")
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._act()

    def _act(self) -> None:
        """In the new process; never returns."""
        code = 70
        try:
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if self.at is not None:
                sys.addaudithook(_Counter(self, self.at).see)
            from satori_fast.cli import main

            code = main(self.arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def wait(self) -> Ending:
        _, status = os.waitpid(self.pid, 0)
        stderr = self._log.read_text(encoding="utf-8", errors="replace")
        self._log.unlink()
        return Ending(os.waitstatus_to_exitcode(status), stderr)

    def kill_after(self, seconds: float) -> Ending:
        """Send SIGKILL when so much time has passed, or when the run has ended before."""
        time.sleep(seconds)
        os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        return self.wait()


class _Counter:
    """Counts file events in a folder and gives the cue."""

    def __init__(self, victim: Victim, at: int) -> None:
        self._folder, self._left = str(victim.folder), at
        self._after = str(victim.folder / victim.after)
        self._cue, self._number = victim.cue, victim.number

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_event = event in _EVENTS or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        )
        if not is_event or not str(arguments[0]).startswith(self._folder):
            return
        if not os.path.exists(self._after):
            return
        self._left -= 1
        if self._left > 0:
            return
        if self._cue == "kill":
            if self._left == 0:  # a run may take a signal of its own accord and write on
                os.kill(os.getpid(), self._number)
            return
        if event in ("open", "os.mkdir"):  # a full disk still renames and removes
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))


def run(arguments: list[str], folder: Path, **cue: Any) -> Ending:
    """Run the command line to its end, or to its cue. cue: as of `Victim`."""
    return Victim(arguments, folder, **cue).wait()
