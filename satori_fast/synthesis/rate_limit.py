# SPDX-License-Identifier: Apache-2.0
"""A rate that is never exceeded: so many requests, or tokens, per minute."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from time import monotonic

_SECONDS_PER_MINUTE = 60.0


class RateLimit:
    """Lets amounts pass at `per_minute` at most, in the order they came (None: everything at once).

    Each amount books its share of time after the ones before it, so waiters neither overtake nor
    starve each other. After a pause, `burst_s` seconds' worth may pass together: in any minute at
    most ``per_minute * (1 + burst_s / 60)``, and one amount more.
    """

    def __init__(
        self,
        per_minute: float | None,
        *,
        burst_s: float = 1.0,
        clock: Callable[[], float] = monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if per_minute is not None and per_minute <= 0:
            raise ValueError(f"a rate limit must be positive, got {per_minute} per minute")
        self._seconds_each = 0.0 if per_minute is None else _SECONDS_PER_MINUTE / per_minute
        self._burst_s = burst_s
        self._clock, self._sleep = clock, sleep
        self._booked_until = -math.inf

    async def take(self, amount: float = 1.0) -> None:
        """Wait until `amount` may pass."""
        if not self._seconds_each:
            return
        now = self._clock()
        begin = max(self._booked_until, now - self._burst_s)
        self._booked_until = begin + amount * self._seconds_each
        if begin > now:
            await self._sleep(begin - now)

    def give_back(self, amount: float) -> None:
        """`amount` of what was taken was not used (negative: more was)."""
        self._booked_until -= amount * self._seconds_each
