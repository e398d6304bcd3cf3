# SPDX-License-Identifier: Apache-2.0
"""Waits of ranks for each other outside collectives, and the rank to blame when one is missing.

A collective has a short limit (`parallel.timeout_s`): all ranks are there at once, or something is
wrong. What one rank does alone (a rollout by servers, an export, synthesis) may take hours, so the
others wait for it in the key-value store that the processes met at, and join a collective only
then. Each rank has a pulse there: a rank that is stopped or dead is told from one that works.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from satori_fast import failures, termination
from satori_fast.backbone.stacks import place, stacks
from satori_fast.processes import ProcessId, this_process
from satori_fast.processes import place as machine

logger = logging.getLogger(__name__)

# While a rank waits it looks again after this share of its wait so far, but within these limits.
_SHARE, _SHORTEST_S, _LONGEST_S = 0.02, 0.0005, 0.05
_LONGEST_PULSE_S = 5.0
# Signs of other ranks are looked for this often.
_GLANCE_S = 1.0
# A rank that lost its connection waits so long for the reason.
_REASON_PATIENCE_S = 3.0
# On a busy machine a pulse may be late.
_SHORTEST_SILENCE_S = 5.0
_FAILURE = "failure"


class RankLost(RuntimeError):
    """Another rank failed, stopped or did not come in time; the message names it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Longest waits, seconds.

    collective_s: of a collective, and silence of a process before it counts as lost.
    main_s:       for what one process does alone while it shows signs of life.
    """

    collective_s: float = 600.0
    main_s: float = 7200.0


class Meeting:
    """One rank's view of all `size` ranks; every rank makes one, with a store of their own."""

    def __init__(self, store: Any, rank: int, size: int, limits: Limits) -> None:
        self.rank, self.size, self.limits = rank, size, limits
        self._store = store
        self._count = 0
        self._known: dict[int, ProcessId] = {}
        self._pulse_s = min(_LONGEST_PULSE_S, limits.collective_s / 8)
        self._done = threading.Event()
        store.set(f"who/{rank}", json.dumps(asdict(this_process())))
        store.set(f"pulse/{rank}", "0")
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()
        termination.ask_whether_hopeless(self.reason, self.speaks)

    def close(self) -> None:
        """End the pulse."""
        termination.ask_whether_hopeless(lambda: None)
        self._done.set()
        self._thread.join(_REASON_PATIENCE_S)  # no longer: the store may not answer any more

    # -- waiting ------------------------------------------------------------------------------

    def at(self, name: str) -> int:
        """Say that this rank has come to `name`; the number of its waits so far."""
        self._count += 1
        self._store.set(f"at/{self.rank}", json.dumps([self._count, name]))
        return self._count

    def open(self, number: int) -> None:
        """Let go those that `await_opening` this number."""
        self._store.set(f"open/{number}", "1")

    def await_opening(self, number: int, name: str, *, limit_s: float) -> None:
        """Wait until a rank opens `number`. RankLost when it fails, dies, stops or is too late."""
        self._wait_for(lambda: self._store.check([f"open/{number}"]), name, limit_s)

    def meet(self, name: str) -> None:
        """Wait until all ranks are here, `main_s` at most."""
        number = self.at(name)
        if self._store.add(f"count/{number}", 1) == self.size:
            self.open(number)
        else:
            self.await_opening(number, name, limit_s=self.limits.main_s)

    def _wait_for(self, is_there: Callable[[], bool], name: str, limit_s: float) -> None:
        begin = glance = checked = time.monotonic()
        while not is_there():
            now = time.monotonic()
            if now > glance + _GLANCE_S:
                glance = now
                if (reason := self.reason()) is not None:
                    raise RankLost(f"stopped at {name}: {reason}")
            if now > checked + self.limits.collective_s:
                checked = time.monotonic()
                if silent := self._silent():
                    raise RankLost(self._no_show(silent, name, self.limits.collective_s))
            if now > begin + limit_s:
                raise RankLost(self._no_show(self._behind(), name, limit_s))
            time.sleep(min(max((now - begin) * _SHARE, _SHORTEST_S), _LONGEST_S))

    def _no_show(self, ranks: Sequence[int], name: str, limit_s: float) -> str:
        limit = "timeout_s" if limit_s == self.limits.collective_s else "main_timeout_s"
        who = ", ".join(self._described(rank) for rank in ranks) or "another rank"
        last = "; ".join(filter(None, map(self._last_of, ranks)))
        return (
            f"{who} did not come to {name} within parallel.{limit} = {limit_s:g} s"
            f"{last and f' ({last})'}"
        )

    # -- signs of the others ------------------------------------------------------------------

    def reason(self) -> str | None:
        """Reason why this run cannot go on, as far as known: a rank that failed, or is gone."""
        try:
            if self._store.check([_FAILURE]):
                return self._store.get(_FAILURE).decode()
            gone = [rank for rank in self._others() if self._is_gone(rank)]
        except Exception:  # the store is gone with the rank that kept it
            return "the process that keeps the ranks together is gone"
        if not gone:
            return None
        who = ", ".join(map(self._described, gone))
        line = f"{who} is gone without a word: killed, maybe for memory (the kernel's log says)"
        # The ranks that end for it are soon gone too: all tell what was found first.
        return self._found(_FAILURE, line)

    def speaks(self) -> bool:
        """Whether this rank is the first of its machine to say why the run ends, or has a log of
        its own: of ranks that write to one, one line is enough."""
        return not failures.shares_log() or self._found(f"told/{machine()}", str(self.rank)) == str(
            self.rank
        )

    def _found(self, key: str, value: str) -> str:
        """What the first rank put at `key`: `value`, where that is this one."""
        try:
            return self._store.compare_set(key, "", value).decode()
        except Exception:  # the store is gone
            return value

    def report(self, line: str, *, is_of_peers: bool) -> str | None:
        """Tell all ranks what went wrong here; what this rank prints, None for `line` itself.

        is_of_peers: `line` says only that another rank is gone. What that one says is printed then.
        """
        try:
            if not is_of_peers:
                self.speaks()  # before the others know
                own = f"rank {self.rank} failed first: {line}"
                first = self._found(_FAILURE, own)
                return None if first == own else f"stopped because {first}"
            return self._explained(line)
        except Exception:
            return None

    def _explained(self, line: str) -> str:
        deadline = time.monotonic() + _REASON_PATIENCE_S
        while time.monotonic() < deadline:
            if (reason := self.reason()) is not None:
                return f"stopped because {reason}"
            time.sleep(_LONGEST_S)
        if silent := self._silent():
            who = ", ".join(self._described(rank) for rank in silent)
            return f"stopped because {who} shows no sign of life (stopped, or its machine is gone)"
        if behind := self._behind():
            who = ", ".join(self._described(rank) for rank in behind)
            return f"stopped because {who} did not come ({self._last_of(behind[0])}): {line}"
        return f"stopped because the connection to another rank was lost: {line}"

    def _others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def _who(self, rank: int) -> ProcessId | None:
        if rank not in self._known and self._store.check([f"who/{rank}"]):
            self._known[rank] = ProcessId(**json.loads(self._store.get(f"who/{rank}")))
        return self._known.get(rank)

    def _is_gone(self, rank: int) -> bool:
        who = self._who(rank)
        return who is not None and who.is_gone()

    def _described(self, rank: int) -> str:
        who = self._who(rank)
        return f"rank {rank}" if who is None else f"rank {rank} on {who}"

    def _silent(self) -> list[int]:
        """Ranks whose pulse does not change in the time of several; soon back where all do."""
        before, silent = self._pulses(), self._others()
        deadline = time.monotonic() + max(2.5 * self._pulse_s, _SHORTEST_SILENCE_S)
        while silent and time.monotonic() < deadline:
            time.sleep(min(self._pulse_s, _GLANCE_S))
            now = self._pulses()
            silent = [rank for rank in silent if before[rank] == now[rank]]
        return silent

    def _pulses(self) -> list[str | None]:
        return [self._pulse_of(rank) for rank in range(self.size)]

    def _pulse_of(self, rank: int) -> str | None:
        key = f"pulse/{rank}"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _behind(self) -> list[int]:
        """Ranks that have come to fewer waits than this one."""
        return [rank for rank in self._others() if self._at(rank)[0] < self._count]

    def _at(self, rank: int) -> tuple[int, str]:
        key = f"at/{rank}"
        return tuple(json.loads(self._store.get(key))) if self._store.check([key]) else (0, "")

    def _last_of(self, rank: int) -> str:
        name = self._at(rank)[1]
        told = [f"rank {rank} was last at {name}"] if name else []
        if (answer := self._asked_for_stacks(rank)) is not None:
            place, text = answer
            path = failures.write_stacks(text, rank)
            told.append(f"now at {place}{f', {path} has its stacks' if path else ''}")
        return ", ".join(told)

    def _asked_for_stacks(self, rank: int) -> tuple[str, str] | None:
        """Place and stacks of a rank that lives, whatever its main thread waits for."""
        self._store.set(f"asked/{rank}", "1")
        deadline = time.monotonic() + 2 * self._pulse_s + _GLANCE_S
        while time.monotonic() < deadline:
            if self._store.check([f"stacks/{rank}"]):
                place, text = json.loads(self._store.get(f"stacks/{rank}"))
                return place, text
            time.sleep(_LONGEST_S)
        return None

    # -- the pulse ----------------------------------------------------------------------------

    def _beat(self) -> None:
        """Show that this rank lives, and watch the next one: with NCCL a collective that waits
        too long ends the process, and nobody could say why."""
        neighbour = (self.rank + 1) % self.size
        seen, since, told = None, time.monotonic(), False
        patience_s = 0.8 * self.limits.collective_s
        for beat in range(1, sys.maxsize):
            if self._done.wait(self._pulse_s):
                return
            try:
                self._store.set(f"pulse/{self.rank}", str(beat))
                if self._store.check([f"asked/{self.rank}"]):
                    self._store.set(f"stacks/{self.rank}", json.dumps([place(), stacks()]))
                theirs = self._pulse_of(neighbour)
            except Exception:  # the store is gone: the main thread will find out
                return
            if theirs != seen:
                seen, since, told = theirs, time.monotonic(), False
            elif not told and time.monotonic() > since + patience_s:
                told = True
                logger.error(
                    "%s has shown no sign of life for %d s",
                    self._described(neighbour),
                    math.floor(patience_s),
                )


def caller() -> str:
    """Place that asked for a wait: module and function of the first frame outside this room."""
    frame = sys._getframe(1)
    room = str(Path(__file__).parent)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(room):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
