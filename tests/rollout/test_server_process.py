# SPDX-License-Identifier: Apache-2.0
"""Which addresses are refused, and what is said of a server that does not start."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

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
