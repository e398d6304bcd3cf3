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
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from satori_fast.processes import group_members, is_resource_tracker
from satori_fast.redaction import keep_secret, redacted
from satori_fast.rollout.engine import EngineDied
from satori_fast.rollout.server_owner import SECRET_VARIABLE

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_LOG_TAIL_LINES = 60
_PORT_TRIES = 3
_PORT_IS_TAKEN = "address already in use"
_GROUP_PATIENCE_S = 5.0
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
    """Whether every address of `host` stays on this machine; one that cannot be found does not."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """Command that starts a server.

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
    """A server on this machine, loopback only. It ends with this process, however that ends.

    secret: what its workers ask of a message (`server_owner`).
    """

    def __init__(self, command: ServerCommand) -> None:
        self.command = command
        self.url = ""
        self.secret = os.environ.get(SECRET_VARIABLE) or secrets.token_hex(16)
        keep_secret(self.secret)
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.stop)

    def start(self) -> None:
        """Start it anew, on a new port, and wait until it answers. EngineDied when it does not."""
        for tries_left in reversed(range(_PORT_TRIES)):
            self.stop()
            begin = self.command.log.stat().st_size if self.command.log.exists() else 0
            try:
                self._start_at(free_port())
                return
            except EngineDied:
                # Somebody took the port between our look and the server's bind.
                if not tries_left or not self._says(_PORT_IS_TAKEN, begin):
                    raise

    def _start_at(self, port: int) -> None:
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
        kept[SECRET_VARIABLE] = self.secret
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
        """Last error in its log, on one line, and where the rest is."""
        text = redacted(self.command.log.read_text(encoding="utf-8", errors="replace"))
        lines = [line.strip() for line in text.splitlines()[-_LOG_TAIL_LINES:] if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        said = (errors or lines or ["nothing"])[-1]
        return f"It said: {said} (all of it: {self.command.log})"

    def _says(self, text: str, begin: int) -> bool:
        """Whether `text` is in the log behind byte `begin`."""
        return text in self.command.log.read_bytes()[begin:].decode(errors="replace").lower()

    def stop(self) -> None:
        """End it and everything that it started. Harmless when there is none."""
        process, self._process = self._process, None
        if process is None:
            return
        # The group outlives its leader: a killed server leaves its workers behind.
        self._end_group(process, signal.SIGTERM)
        # Resource trackers ignore SIGTERM. When the others are gone they remove what those left.
        self._end_group(process, signal.SIGKILL, spare=is_resource_tracker)
        self._end_group(process, signal.SIGKILL)

    def _end_group(
        self,
        leader: subprocess.Popen[bytes],
        number: signal.Signals,
        spare: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """Send a signal to the group of `leader`, and wait a while until it is gone."""
        for pid in group_members(leader.pid):
            if not spare(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        deadline = time.monotonic() + _GROUP_PATIENCE_S
        while (leader.poll() is None or group_members(leader.pid)) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.05)

    def close(self) -> None:
        self.stop()
        atexit.unregister(self.stop)


def is_healthy(url: str, timeout_s: float = 10.0) -> bool:
    """Whether a server answers at `url`, and its engine lives."""
    try:
        return httpx.get(f"{url}/health", timeout=timeout_s, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def free_port(address: str = _LOOPBACK) -> int:
    """A port of this machine that nobody listens on at `address`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]
