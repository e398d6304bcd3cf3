# SPDX-License-Identifier: Apache-2.0
"""Ownership of a server: a trainer claims one before it touches it, a second one is refused.

Both ends are here: `claim` is the trainer's, `Tenancy` is a worker's of the server. A claim ends by
`release`, with the trainer's process (seen on the same machine), or after a silence. Messages carry
the owner's token, and the secret of the server where it has one. Without vLLM or torch.
"""

from __future__ import annotations

import hmac
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from satori_fast.processes import ProcessId, this_process

# Both sides read it: a server that a run starts itself gets one of its own.
SECRET_VARIABLE = "SATORI_FAST_SERVER_SECRET"
# What may be asked of a server that another run owns.
_HARMLESS = ("describe", "claim")

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Owner:
    """A trainer. token: of one connection; a run that is started again has another one."""

    run: str
    process: ProcessId = field(default_factory=this_process)
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    @classmethod
    def of(cls, fields: Message) -> Owner:
        return cls(fields["run"], ProcessId(**fields["process"]), fields["token"])

    def __str__(self) -> str:
        return f"run {self.run!r} on {self.process}"


def claim(
    tell: Callable[..., list[dict[str, Any]]], url: str, owner: Owner, *, lease_s: float
) -> None:
    """Make `owner` the owner of the server at `url`, by `tell` (`ServerClient.message`).

    ValueError when another run uses it: one that may live, and was last seen within `lease_s`.
    """
    fields = asdict(owner)
    holders = [
        answer
        for answer in tell("claim", owner=fields, lease_s=lease_s, force=False)
        if answer["holder"] is not None
    ]
    if not holders:
        return
    holder = Owner.of(holders[0]["holder"])
    if not holder.process.is_gone():
        raise ValueError(
            f"the server at {url} is used by {holder}, last seen {holders[0]['silent_s']:.0f} s "
            "ago: stop that run, or give this one a server of its own (rollout.server_url)"
        )
    tell("claim", owner=fields, lease_s=lease_s, force=True)


class Tenancy:
    """A worker's end: who owns it, and which messages it takes."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._owner: Owner | None = None
        self._last_seen = 0.0

    def check(self, message: Message) -> None:
        """PermissionError for a message that is not for this worker to obey."""
        secret = os.environ.get(SECRET_VARIABLE, "")
        if secret and not hmac.compare_digest(secret, str(message.get("secret", ""))):
            raise PermissionError(
                f"the message has another secret than the server: set {SECRET_VARIABLE} to the "
                "same value for both"
            )
        if self._owner is None or message.get("token") == self._owner.token:
            self._last_seen = self._now()
        elif message["do"] not in _HARMLESS:
            raise PermissionError(f"the server is used by {self._owner}")

    def claim(self, message: Message) -> dict[str, Any]:
        """Take the asker for the owner, or answer who is."""
        asker = Owner.of(message["owner"])
        silent_s = self._now() - self._last_seen
        is_free = self._owner is None or self._owner.token == asker.token
        if is_free or message["force"] or silent_s > message["lease_s"]:
            self._owner, self._last_seen = asker, self._now()
            return {"holder": None}
        assert self._owner is not None
        return {"holder": asdict(self._owner), "silent_s": silent_s}

    def release(self) -> None:
        self._owner = None

    def __str__(self) -> str:
        """The owner, "" where there is none."""
        return "" if self._owner is None else str(self._owner)
