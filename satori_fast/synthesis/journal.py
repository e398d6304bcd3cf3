# SPDX-License-Identifier: Apache-2.0
"""Replies of language models and outcomes of problems, so that nothing is asked or done twice.

A reply is found by the hash of what was asked: role, model, prompt, sampling and sample number. A
resumed run begins behind the finished problems, and asks again only what was in flight when it was
killed.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from satori_fast.record_file import RecordFile
from satori_fast.synthesis.chat import ChatModel, ChatReply, ChatRequest, ChatSampling, Usage
from satori_fast.synthesis.outcomes import Outcome
from satori_fast.types import Demonstration, Problem


class Journal:
    """Every reply of every role. Replies stay on disk: memory holds a place for each.

    usage: what each role has asked for, earlier sessions included. num_replayed: replies that this
    session found here instead of asking.
    """

    def __init__(self, path: Path) -> None:
        self.usage: defaultdict[str, Usage] = defaultdict(Usage)
        self.num_replayed = 0
        self._places: dict[bytes, int] = {}
        self._file = RecordFile(path, self._remember)

    def find(self, key: str) -> ChatReply | None:
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        self.num_replayed += 1
        return _reply(self._file.read(place))

    def add(self, key: str, role: str, reply: ChatReply) -> None:
        record = {"key": key, "role": role, **asdict(reply)}
        self._remember(record, self._file.append(record))

    def close(self) -> None:
        self._file.close()

    def _remember(self, record: dict[str, Any], place: int) -> None:
        self._places[bytes.fromhex(record["key"])] = place
        self.usage[record["role"]].add(_reply(record))


def _reply(record: Mapping[str, Any]) -> ChatReply:
    return ChatReply(**{k: v for k, v in record.items() if k not in ("key", "role")})


class RecordedChat:
    """A model in a role: what it was asked before, it is not asked again.

    Two requests of one key that overlap are one request.
    """

    def __init__(
        self, model: ChatModel, role: str, *, sampling: ChatSampling, journal: Journal
    ) -> None:
        self.role = role
        self._model, self._sampling, self._journal = model, sampling, journal
        self._in_flight: dict[str, asyncio.Future[ChatReply]] = {}

    async def ask(self, prompt: str, *, sample: int = 0) -> ChatReply:
        """The reply to `prompt`, from the journal where it is there."""
        request = ChatRequest(prompt, self._sampling, sample)
        key = request.key(self.role, self._model.name)
        known = self._journal.find(key)
        if known is not None:
            return known
        if key not in self._in_flight:
            self._in_flight[key] = asyncio.ensure_future(self._ask(request, key))
        return await self._in_flight[key]

    async def _ask(self, request: ChatRequest, key: str) -> ChatReply:
        try:
            reply = await self._model.complete(request)
            self._journal.add(key, self.role, reply)
            return reply
        finally:
            del self._in_flight[key]


class OutcomeFile:
    """Outcomes of the first of `problems`, in their order.

    Raises ValueError when the file is of other problems.
    """

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self.outcomes: list[Outcome] = []
        self._problems = problems
        self._path = path
        self._file = RecordFile(path, self._read)

    def append(self, outcome: Outcome) -> None:
        self._file.append(_record(outcome))
        self.outcomes.append(outcome)

    def close(self) -> None:
        self._file.close()

    def _read(self, record: dict[str, Any], place: int) -> None:
        number = len(self.outcomes)
        problem = self._problems[number] if number < len(self._problems) else None
        if problem is None or problem.problem_id != record["problem_id"]:
            raise ValueError(
                f"{self._path}: its problem {number + 1} is {record['problem_id']!r}, which the "
                "data does not have in that place: resume with the same data"
            )
        self.outcomes.append(_outcome(record, problem))


def _record(outcome: Outcome) -> dict[str, Any]:
    return {
        "problem_id": outcome.problem.problem_id,
        "demonstrations": [
            {"trajectory_type": d.trajectory_type, "response": d.response}
            for d in outcome.demonstrations
        ],
        "counts": outcome.counts,
        "faults": outcome.faults,
    }


def _outcome(record: dict[str, Any], problem: Problem) -> Outcome:
    demonstrations = [Demonstration(problem, **fields) for fields in record["demonstrations"]]
    return Outcome(problem, demonstrations, Counter(record["counts"]), record["faults"])
