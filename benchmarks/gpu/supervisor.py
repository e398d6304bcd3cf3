# SPDX-License-Identifier: Apache-2.0
"""Keeps a worker process and the time budget: asks for one case after the other, kills a worker
that hangs, starts another after one that died, and hands every answer on at once."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu.case import Case
from benchmarks.measure import ROOT

# Seconds for a new worker to import torch, on top of the limit of its first case.
START_SECONDS = 60.0
# A case may run over the whole budget by so many seconds before it is killed.
GRACE_SECONDS = 15.0
# Timed calls of one case take no longer, however much time there is.
MAX_ALLOWANCE_SECONDS = 6.0
# More deaths than this are not an accident.
MAX_STARTS = 12


class Worker:
    """One worker process; `command` reads requests from stdin and answers on stdout."""

    def __init__(self, command: Sequence[str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            process_group=0,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """The answer, or why there is none, with "broken" set."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            return _lost(request, "timeout", f"no answer within {limit_s:.0f} s")
        except OSError:
            line = ""
        if not line:
            code = self._process.wait()
            return _lost(request, "crashed", f"the process ended with {code}: {self._last_words()}")
        return json.loads(line)

    def stop(self) -> None:
        """Ends the process and everything that it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _last_words(self) -> str:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 1000))
        return self._log.read().decode(errors="replace").strip()


def run_all(
    cases: Sequence[Case],
    command: Sequence[str],
    *,
    budget_s: float,
    deadlines: Mapping[str, float],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[dict[str, Any]]:
    """The answers in order, one for each case. A section's cases are skipped once its share of the
    budget (`deadlines`) is spent; no case runs beyond the whole budget."""
    begin = clock()
    worker, starts = None, 0
    try:
        for index, case in enumerate(cases):
            spent = clock() - begin
            left = deadlines[case.section] * budget_s - spent
            if left <= 0:
                yield _skipped(case, f"the time of section {case.section} is spent")
                continue
            limit_s = case.limit_s
            if worker is None:
                if starts == MAX_STARTS:
                    yield _skipped(case, f"the worker died {starts} times")
                    continue
                worker, starts = Worker(command), starts + 1
                limit_s += START_SECONDS
            # A third of the time goes to timed calls, the rest to setting up.
            num_left = sum(1 for other in cases[index:] if other.section == case.section)
            allowance = min(max(left / num_left / 3, 0.2), MAX_ALLOWANCE_SECONDS)
            request = {"case": case.name, "allowance_s": allowance}
            answer = worker.ask(request, min(limit_s, budget_s - spent + GRACE_SECONDS))
            if answer.pop("broken", False):
                worker.stop()
                worker = None
            yield answer
    finally:
        if worker is not None:
            worker.stop()


def _lost(request: Mapping[str, Any], status: str, reason: str) -> dict[str, Any]:
    return {"case": request["case"], "status": status, "reason": reason, "broken": True}


def _skipped(case: Case, reason: str) -> dict[str, Any]:
    return {"case": case.name, "status": "skipped", "reason": reason}
