# SPDX-License-Identifier: Apache-2.0
"""Which addresses are refused, and what is said of a server that does not start."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from satori_fast.processes import group_members
from satori_fast.rollout.engine import EngineDied
from satori_fast.rollout.server_process import (
    ServerCommand,
    ServerProcess,
    check_address,
    is_healthy,
    is_loopback,
)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_this_machine_is_allowed(host: str) -> None:
    assert is_loopback(host)
    check_address(host, allowed=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "192.168.0.9", "8.8.8.8", "no.such.host."])
def test_other_addresses_are_refused_with_the_reason(host: str) -> None:
    with pytest.raises(ValueError, match=r"replace its weights or run code.*API key") as caught:
        check_address(host, allowed=False)
    assert "rollout.server_allow_public" in str(caught.value) and host in str(caught.value)


def test_an_allowed_public_address_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_address("10.1.2.3", allowed=True)
    assert "API key does not guard" in caplog.text


def test_a_server_that_ends_while_it_starts_shows_the_end_of_its_log(tmp_path: Path) -> None:
    # The server itself refuses the address, before it loads vLLM.
    command = ServerCommand(tmp_path, tmp_path / "engine.log", flags=("--host", "10.1.2.3"))
    process = ServerProcess(command)
    with pytest.raises(EngineDied, match="ended while it started") as caught:
        process.start()
    assert "can be reached from other machines" in str(caught.value)
    assert not process.is_running() and process.pid is None
    process.close()


def test_nobody_answers_at_a_free_port() -> None:
    assert not is_healthy("http://127.0.0.1:9", timeout_s=5.0)


class Scripted(ServerProcess):
    """Starts a program instead of vLLM; `ports` are those that it was given."""

    def __init__(self, command: ServerCommand, program: str) -> None:
        super().__init__(command)
        self.program = program
        self.ports: list[int] = []

    def _start_at(self, port: int) -> None:
        self.ports.append(port)
        self.url = f"http://127.0.0.1:{port}"
        with self.command.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", self.program, str(port), str(len(self.ports))],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_until_up(time.monotonic() + 60)


TAKEN_AT_FIRST = """
import http.server, sys
if sys.argv[2] == "1":
    raise SystemExit("OSError: [Errno 98] error while binding: Address already in use")
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


def test_a_port_that_was_taken_meanwhile_is_not_the_end(tmp_path: Path) -> None:
    process = Scripted(ServerCommand(tmp_path, tmp_path / "engine.log"), TAKEN_AT_FIRST)
    process.start()
    assert len(process.ports) == 2 and process.is_running()
    process.close()


def test_another_error_is_not_tried_again_and_told_on_one_line(tmp_path: Path) -> None:
    program = "import sys; sys.exit('starting\\nValueError: no such flag\\nbye')"
    log = tmp_path / "engine.log"
    process = Scripted(ServerCommand(tmp_path, log), program)
    with pytest.raises(EngineDied) as caught:
        process.start()
    assert len(process.ports) == 1
    assert str(caught.value) == (
        "the vLLM server ended while it started. It said: ValueError: no such flag "
        f"(all of it: {log})"
    )
    process.close()


# A leader that is killed, its worker that does not hear SIGTERM, and a block that both share.
TRACKED = """
import signal, subprocess, sys, time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
block = SharedMemory(create=True, size=64)
hold = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", hold], pass_fds=[resource_tracker._resource_tracker._fd])
time.sleep(0.5)  # until the worker ignores it
print(block.name, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_what_a_dead_server_left_in_memory_is_removed(tmp_path: Path) -> None:
    process = Scripted(ServerCommand(tmp_path, tmp_path / "engine.log"), "")
    leader = subprocess.Popen(
        [sys.executable, "-c", TRACKED], stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdout is not None
    block = Path("/dev/shm") / leader.stdout.readline().decode().strip()
    assert block.exists()
    process._process = leader
    leader.kill()
    leader.wait()
    process.stop()
    assert not block.exists() and group_members(leader.pid) == []
    process.close()
