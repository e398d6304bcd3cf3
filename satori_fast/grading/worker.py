# SPDX-License-Identifier: Apache-2.0
"""A process that compares answers and that can be killed: the two ends of it.

A plain subprocess, not a `multiprocessing` one: nothing of the caller's ``__main__`` is imported
again, so a worker holds sympy and no torch, starts in a third of a second, and can be started from
a threaded parent. What counts as equal is decided in `verdict`; this module only runs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Literal

# A worker reads JSON lines: [answer, gold] to compare, [answer, gold, "lenient"] to compare as
# papers do, or [gold] to check. It writes a line each: "match", "mismatch", "readable" or what is
# wrong with a gold answer.
_WORKER_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]);"
    "from satori_fast.grading.worker import serve; serve(float(sys.argv[2]))"
)
ROOT = Path(__file__).resolve().parents[2]  # a worker finds the package here, installed or not
_KILLED_BY_TIMER = (-signal.SIGPROF, -signal.SIGALRM)
_WALL_FACTOR = 10  # wall-clock limit over CPU limit: a backstop for a worker that waits or starves
_MEMORY_LIMIT_BYTES = 4 * 2**30  # address space; a runaway power asks for more before it is late


def serve(timeout_s: float) -> None:
    """Main loop of a worker process.

    Timers whose signals have their default action kill it, even inside C code. It arms them itself,
    so it also dies in time when its parent is already gone.
    """
    # The real standard output is for replies alone; what a library prints there is not one.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGPROF, signal.SIGALRM))
    # A scheduler's SIGTERM is for the parent, which still finishes its step; its end is ours.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))
    # Here, so that the caller's end of a worker stays light.
    from satori_fast.grading.lenient import lenient_equal
    from satori_fast.grading.verdict import equivalent, gold_fault

    comparisons = {2: equivalent, 3: lambda answer, gold, _: lenient_equal(answer, gold)}
    gold_fault(r"\frac{\sqrt{2}}{2}")  # loads sympy and warms the parser, outside the limit
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    replies.write("ready\n")
    for line in sys.stdin:
        texts = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, timeout_s)
        signal.setitimer(signal.ITIMER_REAL, _WALL_FACTOR * timeout_s)
        try:
            if len(texts) == 1:
                reply = gold_fault(texts[0]) or "readable"
            else:
                reply = "match" if comparisons[len(texts)](*texts) else "mismatch"
        except RecursionError:
            reply = "mismatch" if len(texts) > 1 else "is too deep to read"
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(f"{reply}\n")


class Worker:
    """The parent's end of one worker process, started at its first answer and after each death."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._retired = False

    def grade(
        self, answer: str, gold: str, *, lenient: bool = False
    ) -> Literal["match", "mismatch", "timeout", "crash"]:
        """Compare an answer with a gold one, by `equivalent` or by `lenient_equal`."""
        reply = self._ask([answer, gold, *(["lenient"] if lenient else [])])
        if reply in ("match", "mismatch", "timeout"):
            return reply
        return "crash"

    def check(self, gold: str) -> str:
        """Fault of a gold answer, "" for none; "timeout", "crash"."""
        reply = self._ask([gold])
        return "" if reply == "readable" else reply

    def _ask(self, texts: list[str]) -> str:
        """The worker's reply, or "timeout" or "crash"."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        assert process.stdin is not None and process.stdout is not None
        reply = ""
        # ValueError: another thread has closed the pipe in retire().
        with contextlib.suppress(BrokenPipeError, ValueError):
            process.stdin.write(json.dumps(texts) + "\n")
            process.stdin.flush()
            reply = process.stdout.readline().strip()
        if reply:
            return reply
        self._kill()
        if self._retired:
            raise CancelledError
        return "timeout" if process.returncode in _KILLED_BY_TIMER else "crash"

    def _start(self) -> subprocess.Popen[str]:
        # A session of its own: Ctrl-C reaches the parent only, whose end closes the worker's stdin.
        command = [sys.executable, "-P", "-c", _WORKER_PROGRAM, str(ROOT), str(self._timeout_s)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, encoding="utf-8", start_new_session=True
        )
        self._process = process
        if self._retired:  # retire() came before there was a process to kill
            self._kill()
            raise CancelledError
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            self._kill()
            if self._retired:
                raise CancelledError
            raise RuntimeError(
                f"a grading worker did not start (exit status {process.returncode}); "
                "is math-verify installed? Its error is printed above"
            )
        return process

    def retire(self) -> None:
        """Kill the process for good; an answer being graded raises CancelledError in its thread."""
        self._retired = True
        self._kill()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # Leaving the process closes its pipes and waits. One that its timer has just killed keeps
        # the exit status that says so.
        with contextlib.suppress(BrokenPipeError), process:
            process.kill()
