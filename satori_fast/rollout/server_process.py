# SPDX-License-Identifier: Apache-2.0
"""Start, watch and end a vLLM server of this run's own, and refuse addresses that others can reach.

Not for what is said to a server: `server_engine`.
"""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from satori_fast.rollout.engine import EngineDied

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_LOG_TAIL_LINES = 25
# A launcher's: vLLM would take them for its own.
_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
_LAUNCHER_PREFIXES = ("TORCHELASTIC_", "MASTER_", "ROLE_", "GROUP_")


def check_address(host: str, *, allowed: bool, flag: str = "rollout.server_allow_public") -> None:
    """ValueError for a host that others than this machine reach, unless `allowed`: then a warning.

    flag: what allows it, for the message.
    """
    if is_loopback(host):
        return
    danger = (
        f"{host!r} can be reached from other machines. Whoever reaches a server that a trainer "
        "syncs can replace its weights or run code on it: vLLM's API key does not guard those "
        "routes"
    )
    if not allowed:
        raise ValueError(
            f"{danger}. Use 127.0.0.1 (over an ssh tunnel if need be), or, in a network where "
            f"everybody is trusted, set {flag}"
        )
    logger.warning("%s; keep it inside a network where everybody is trusted", danger)


def is_loopback(host: str) -> bool:
    """Does every address of `host` stay on this machine? A name that cannot be found does not."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How to start a server.

    folder:  config and tokenizer. flags: further flags of vLLM.
    log:     file that the server's output is appended to.
    devices: CUDA_VISIBLE_DEVICES of the server; None: as here.
    cpu_cache_gib: key-value cache on a machine without a GPU.
    """

    folder: Path
    log: Path
    flags: Sequence[str] = ()
    devices: str | None = None
    cpu_cache_gib: int = 1
    start_timeout_s: float = 600.0


class ServerProcess:
    """A server on this machine, loopback only. It ends with this process, however that ends."""

    def __init__(self, command: ServerCommand) -> None:
        self.command = command
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.stop)

    def start(self) -> None:
        """Start it anew, on a new port, and wait until it answers. EngineDied when it does not."""
        self.stop()
        port = _free_port()
        self.url = f"http://{_LOOPBACK}:{port}"
        arguments = [sys.executable, "-m", "satori_fast.rollout.vllm_server"]
        arguments += [str(self.command.folder), "--port", str(port), "--parent", str(os.getpid())]
        with self.command.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*arguments, *self.command.flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,  # one group to end: vLLM has processes of its own
            )
        self._wait_until_up(time.monotonic() + self.command.start_timeout_s)

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in _LAUNCHER_VARIABLES and not name.startswith(_LAUNCHER_PREFIXES)
        }
        kept.setdefault("VLLM_CPU_KVCACHE_SPACE", str(self.command.cpu_cache_gib))
        # The trainer's own setting (`vllm_engine`), if both engines were used in one process.
        kept.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        if self.command.devices is not None:
            kept["CUDA_VISIBLE_DEVICES"] = self.command.devices
        return kept

    def _wait_until_up(self, deadline: float) -> None:
        while not is_healthy(self.url):
            limit = self.command.start_timeout_s
            if not self.is_running():
                reason = "ended while it started"
            elif time.monotonic() > deadline:
                reason = f"did not answer within rollout.server_start_timeout_s = {limit:g}"
            else:
                time.sleep(0.2)
                continue
            self.stop()
            raise EngineDied(f"the vLLM server {reason}. {self.log_tail()}")

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log_tail(self) -> str:
        """The last lines of its log, for an error."""
        lines = self.command.log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n  ".join(lines[-_LOG_TAIL_LINES:])
        return f"The end of {self.command.log}:\n  {tail}"

    def stop(self) -> None:
        """End it and everything that it started. Harmless when there is none."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            # The group outlives its leader: a killed server leaves its workers behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)

    def close(self) -> None:
        self.stop()
        atexit.unregister(self.stop)


def is_healthy(url: str, timeout_s: float = 10.0) -> bool:
    """Does a server answer at `url`, and does its engine live?"""
    try:
        return httpx.get(f"{url}/health", timeout=timeout_s, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return probe.getsockname()[1]
