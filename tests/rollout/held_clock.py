# SPDX-License-Identifier: Apache-2.0
"""Time that passes only when a test says so: on a busy machine a real second is no measure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor


class HeldClock:
    """In the place of a module's `time`, seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def delayed(
        self, weights: Iterable[tuple[str, Tensor]], name: str, seconds: float
    ) -> Iterator[tuple[str, Tensor]]:
        """`weights`, of which tensor `name` takes so long to make."""
        for key, tensor in weights:
            if key == name:
                self.now += seconds
            yield key, tensor
