# SPDX-License-Identifier: Apache-2.0
"""The limiter against its own definition, on a clock that the test moves."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from satori_fast.synthesis.rate_limit import RateLimit


class Clock:
    """Seconds that pass only in `sleep`."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def times_of(amounts: list[float], per_minute: float | None, burst_s: float = 0.0) -> list[float]:
    """When each amount passes, one asked after the other."""
    clock = Clock()
    limit = RateLimit(per_minute, burst_s=burst_s, clock=clock, sleep=clock.sleep)

    async def pass_all() -> list[float]:
        times = []
        for amount in amounts:
            await limit.take(amount)
            times.append(clock.now - 100.0)
        return times

    return asyncio.run(pass_all())


def test_requests_are_spaced() -> None:
    assert times_of([1, 1, 1, 1], 120) == pytest.approx([0, 0.5, 1.0, 1.5])


def test_large_amounts_book_more_time() -> None:
    assert times_of([600, 60, 60], 600) == pytest.approx([0, 60, 66])


def test_no_limit() -> None:
    assert times_of([1e9] * 5, None) == [0] * 5


def test_burst_after_a_pause() -> None:
    assert times_of([1] * 5, 60, burst_s=2.0) == pytest.approx([0, 0, 0, 1, 2])


@pytest.mark.parametrize("burst_s", [0.0, 1.0, 5.0])
def test_no_minute_exceeds_the_limit(burst_s: float) -> None:
    rng = np.random.default_rng(0)
    amounts = rng.integers(1, 40, 300).tolist()
    times = np.array(times_of(amounts, 500, burst_s=burst_s))
    for begin in times:
        within = (times >= begin) & (times < begin + 60)
        passed = float(np.array(amounts)[within].sum())
        assert passed <= 500 * (1 + burst_s / 60) + max(amounts)


def test_what_is_given_back_can_be_used() -> None:
    clock = Clock()
    limit = RateLimit(60, burst_s=0.0, clock=clock, sleep=clock.sleep)

    async def run() -> None:
        await limit.take(30)
        limit.give_back(20)
        await limit.take(1)

    asyncio.run(run())
    assert clock.now == pytest.approx(110)


def test_waiters_pass_in_their_order_and_large_ones_do_not_starve() -> None:
    passed: list[int] = []

    async def one(limit: RateLimit, number: int, amount: float) -> None:
        await limit.take(amount)
        passed.append(number)

    async def run() -> None:
        limit = RateLimit(60_000, burst_s=0.0)
        amounts = [50, 30, 5, 20, 1, 10]
        await asyncio.gather(*(one(limit, i, a) for i, a in enumerate(amounts)))

    asyncio.run(run())
    assert passed == sorted(passed)


def test_a_limit_must_be_positive() -> None:
    with pytest.raises(ValueError, match="must be positive, got 0"):
        RateLimit(0)
