# SPDX-License-Identifier: Apache-2.0
"""Loops at the end of a response, found as by trying every period."""

from __future__ import annotations

import numpy as np
import pytest

from satori_fast.evaluation.loops import MAX_PERIOD, MIN_LOOP_TOKENS, ends_in_loop


def by_hand(tokens: list[int]) -> bool:
    for period in range(1, MAX_PERIOD + 1):
        length = max(3 * period, MIN_LOOP_TOKENS)
        last = tokens[-length:]
        if len(last) == length and all(a == b for a, b in zip(last, last[period:], strict=False)):
            return True
    return False


SENTENCE = list(range(10, 50))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([7] * 24, True),
        ([7] * 23, False),
        ([1, 2, 3, *SENTENCE * 3], True),
        ([1, 2, 3, *SENTENCE * 3, 10, 11], True),  # cut off inside the fourth time
        (SENTENCE * 2, False),
        ([*SENTENCE * 3, 4], False),  # it got out
        ([*range(200)] * 3, False),  # longer than a loop may be
        ([], False),
    ],
)
def test_loops(tokens: list[int], expected: bool) -> None:
    assert ends_in_loop(np.array(tokens, dtype=np.int32)) == expected == by_hand(tokens)


def test_a_list_of_steps_is_no_loop() -> None:
    steps = [token for number in range(20) for token in (1, 2, 3, 100 + number, 4, 5)]
    assert not ends_in_loop(np.array(steps))


def test_as_by_hand_on_random_ends() -> None:
    rng = np.random.default_rng(19)
    found = []
    for _ in range(300):
        unit = rng.integers(0, 3, rng.integers(1, 30)).tolist()
        tokens = rng.integers(0, 3, 40).tolist() + unit * int(rng.integers(1, 6))
        found.append(ends_in_loop(np.array(tokens)))
        assert found[-1] == by_hand(tokens)
    assert 50 < sum(found) < 250
