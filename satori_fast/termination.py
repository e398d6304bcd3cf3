# SPDX-License-Identifier: Apache-2.0
"""SIGTERM, what schedulers send before they kill: finish the step, save, go.

The command line installs the handler (`sigterm_handled`). Within `deferred`, which the loop over
steps is, a SIGTERM is only remembered (`is_asked`), and the loop ends itself after its step.
Elsewhere it raises `Terminated` where it meets the program. A thread watches over both: a second
SIGTERM, the end of the grace period or a run that cannot go on ends the process at once.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

EXIT_CODE = 128 + signal.SIGTERM
# A launcher passes on the signal that its scheduler sent to everybody: that is one request.
_SAME_REQUEST_S = 5.0
_SAME_REQUEST_ALONE_S = 0.5
_LOOK_AROUND_S = 1.0

CleanUp = Callable[[], object]

_grace_s = 60.0
_asked = threading.Event()
_num_deferrals = 0
_clean_ups: list[CleanUp] = []
_hopeless: Callable[[], str | None] = lambda: None  # noqa: E731
_speaks: Callable[[], bool] = lambda: True  # noqa: E731


class Terminated(SystemExit):
    """A SIGTERM ends the run. A SystemExit, so that nothing on the way takes it for a failure."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


def is_asked() -> bool:
    """Whether a SIGTERM has come."""
    return _asked.is_set()


def set_grace(seconds: float) -> None:
    """Set how long after a SIGTERM the process may go on (`parallel.grace_s`)."""
    global _grace_s
    _grace_s = seconds


def at_sudden_end(clean_up: CleanUp) -> None:
    """Have `clean_up` run where a grace period ends the process, with nothing unwound.

    Keep it short. `forget` takes it back.
    """
    _clean_ups.append(clean_up)


def forget(clean_up: CleanUp) -> None:
    with suppress(ValueError):
        _clean_ups.remove(clean_up)


def ask_whether_hopeless(
    question: Callable[[], str | None], speaks: Callable[[], bool] = lambda: True
) -> None:
    """Have `question` asked during a grace period: a text says why the step can never end.

    speaks: whether this process is to say so, and not another one to the same log.
    """
    global _hopeless, _speaks
    _hopeless, _speaks = question, speaks


@contextmanager
def deferred() -> Iterator[None]:
    """Within, a SIGTERM waits; one that nobody saw to raises `Terminated` at the end."""
    global _num_deferrals
    _num_deferrals += 1
    try:
        yield
    finally:
        _num_deferrals -= 1
    if is_asked() and not _num_deferrals:
        raise Terminated("terminated; --resume continues from the last checkpoint")


@contextmanager
def sigterm_handled() -> Iterator[None]:
    """Handle SIGTERM as the module says; off the main thread nothing is installed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.clear()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # Python's own handler waits for the main thread, which may be in a collective for minutes. The
    # byte that this writes comes through at once.
    earlier_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    earlier = signal.signal(signal.SIGTERM, _on_sigterm)
    watcher = threading.Thread(target=_watch, args=(reader,), name="SIGTERM", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier_fd)
        signal.signal(signal.SIGTERM, earlier or signal.SIG_DFL)
        writer.close()  # the end of the watcher
        watcher.join()
        reader.close()
        _asked.clear()


def _on_sigterm(_: int, __: FrameType | None) -> None:
    is_first = not is_asked()
    _asked.set()
    if is_first and not _num_deferrals:
        raise Terminated("terminated between steps; --resume continues from the last checkpoint")


def _watch(reader: socket.socket) -> None:
    first: float | None = None
    while True:
        waiting = None if first is None else _LOOK_AROUND_S
        if select.select([reader], [], [], waiting)[0]:
            received = reader.recv(64)
            if not received:
                return
            if signal.SIGTERM in received:
                if first is not None and time.monotonic() > first + _same_request_s():
                    _end_now("terminated at once by a second SIGTERM")
                first = time.monotonic() if first is None else first
        if first is None:
            continue
        if time.monotonic() > first + _grace_s:
            _end_now(f"terminated: the step did not end within parallel.grace_s = {_grace_s:g}")
        if (reason := _hopeless()) is not None:
            _end_now(reason if _speaks() else None)


def _same_request_s() -> float:
    return _SAME_REQUEST_S if "TORCHELASTIC_RUN_ID" in os.environ else _SAME_REQUEST_ALONE_S


def _end_now(reason: str | None) -> NoReturn:
    """End the process; None: without a word."""
    for clean_up in list(_clean_ups):
        with suppress(Exception):
            clean_up()
    if reason is not None:
        with suppress(OSError):
            text = f"satori-fast: {reason}; --resume continues from the last checkpoint\n"
            os.write(2, text.encode(errors="backslashreplace"))
    os._exit(EXIT_CODE)
