# SPDX-License-Identifier: Apache-2.0
"""Responses that repeat themselves to their end. Not for: what a response is worth."""

from __future__ import annotations

import numpy as np

NUM_REPEATS = 3
MIN_LOOP_TOKENS = 24
MAX_PERIOD = 128


def ends_in_loop(tokens: np.ndarray) -> bool:
    """Whether the last tokens are the same ones over and over: a period of at most `MAX_PERIOD`
    tokens, at least `NUM_REPEATS` times and over at least `MIN_LOOP_TOKENS` tokens.

    Example: 24 times "no" is a loop, and so is a sentence of 40 tokens three times; a list of steps
    with other numbers in each is none.
    """
    if len(tokens) < MIN_LOOP_TOKENS:
        return False
    tail = tokens[-NUM_REPEATS * MAX_PERIOD :]
    # A period leads from the last token to the same one before it.
    places = np.flatnonzero(tail[:-1] == tail[-1])[::-1]
    for period in (len(tail) - 1 - places).tolist():
        length = max(NUM_REPEATS * period, MIN_LOOP_TOKENS)
        if length > len(tail):
            return False
        looped = tail[-length:]
        if np.array_equal(looped[period:], looped[:-period]):
            return True
    return False
