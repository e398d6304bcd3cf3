# SPDX-License-Identifier: Apache-2.0
"""Who may use a server: the first trainer, or the next one when the first is surely gone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from satori_fast.processes import this_process
from satori_fast.rollout.server_owner import SECRET_VARIABLE, Owner, Tenancy, claim

URL = "http://127.0.0.1:8000"
ELSEWHERE = replace(this_process(), place="elsewhere", host="node7", pid=42)


class Server:
    """Two workers behind one tell function, with a clock of their own."""

    def __init__(self) -> None:
        self.time = 0.0
        self.workers = [Tenancy(lambda: self.time) for _ in range(2)]

    def tell(self, do: str, **fields: Any) -> list[dict[str, Any]]:
        message = json.loads(json.dumps({"do": do, **fields}))
        answers = []
        for worker in self.workers:
            worker.check(message)
            answers.append(worker.claim(message) if do == "claim" else {})
        return answers

    def claim(self, owner: Owner, lease_s: float = 100.0) -> None:
        claim(self.tell, URL, owner, lease_s=lease_s)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    return Server()


def test_a_second_trainer_is_told_whose_it_is_and_changes_nothing(server: Server) -> None:
    first = Owner("first", ELSEWHERE)
    server.claim(first)
    server.time = 30.0
    with pytest.raises(
        ValueError, match=r"used by run 'first' on node7 \(pid 42\), last seen 30 s"
    ):
        server.claim(Owner("second"))
    server.tell("begin", token=first.token)
    with pytest.raises(PermissionError, match="used by run 'first'"):
        server.tell("begin", token="x")
    assert [str(worker) for worker in server.workers] == [str(first)] * 2
    server.tell("describe")


def test_the_same_trainer_may_claim_again(server: Server) -> None:
    first = Owner("first")
    server.claim(first)
    server.claim(first)


def test_a_trainer_of_this_machine_that_ended_is_followed_at_once(server: Server) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    server.claim(Owner("first", replace(this_process(), pid=ended.pid)))
    second = Owner("second")
    server.claim(second)
    server.tell("finish", token=second.token)


def test_a_trainer_elsewhere_is_followed_after_a_silence(server: Server) -> None:
    first, second = Owner("first", ELSEWHERE), Owner("second", ELSEWHERE)
    server.claim(first)
    server.time = 90.0
    server.tell("describe", token=first.token)  # a sign of life
    server.time = 150.0
    with pytest.raises(ValueError, match="last seen 60 s ago"):
        server.claim(second)
    server.time = 191.0
    server.claim(second)
    with pytest.raises(PermissionError, match="used by run 'second'"):
        server.tell("receive", token=first.token)


def test_what_is_released_is_free(server: Server) -> None:
    first = Owner("first", ELSEWHERE)
    server.claim(first)
    server.workers[0].release()
    server.workers[1].release()
    server.claim(Owner("second"))


def test_a_server_with_a_secret_asks_for_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "a long secret")
    for wrong in ({}, {"secret": ""}, {"secret": "another"}):
        with pytest.raises(PermissionError, match=SECRET_VARIABLE):
            server.tell("describe", **wrong)
    server.tell("describe", secret="a long secret")
