# SPDX-License-Identifier: Apache-2.0
"""Random streams by name: a resumed run draws what an uninterrupted one would."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Seeds:
    """Random streams by name: randomness comes from names and counters, not from order.

    root: `Config.seed`.
    """

    root: int

    def of(self, *names: str | int) -> int:
        """A 31-bit seed for a named purpose."""
        text = "/".join(str(name) for name in (self.root, *names))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def rng(self, *names: str | int) -> np.random.Generator:
        """A generator for a named purpose."""
        return np.random.default_rng(self.of(*names))
