# SPDX-License-Identifier: Apache-2.0
"""The order in which items are handed out, and which ones are held out.

Works for any sequence: problems, demonstrations, prefixes. Reading them is `sources`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

Item = TypeVar("Item")


class ProblemCursor(Generic[Item]):
    """Hands out the items of a sequence for ever, each exactly once per epoch, and can resume.

    The order of an epoch depends on (seed, epoch) alone (a counter-based generator), so a cursor
    restored from `state_dict` goes on with the same items. shuffle=False keeps the given order.
    """

    def __init__(self, items: Sequence[Item], *, seed: int = 0, shuffle: bool = True) -> None:
        if not items:
            raise ValueError("a problem cursor needs at least one item")
        self._items = items
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = 0
        self._position = 0
        self._order = self._order_of(0)

    @property
    def epoch(self) -> int:
        """Number of times that every item has been handed out."""
        return self._epoch

    def take(self, count: int) -> list[Item]:
        """The next `count` items; crosses into the next epoch where this one ends."""
        taken: list[Item] = []
        while len(taken) < count:
            stop = min(self._position + count - len(taken), len(self._items))
            taken += [self._items[int(i)] for i in self._order[self._position : stop]]
            self._position = stop
            if stop == len(self._items):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._order_of(self._epoch)
        return taken

    def state_dict(self) -> dict[str, int]:
        return {
            "seed": self._seed,
            "num_items": len(self._items),
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from `state`; ValueError unless it comes from the same seed and number of items."""
        for key, own in (("seed", self._seed), ("num_items", len(self._items))):
            if state[key] != own:
                raise ValueError(
                    f"cannot resume the problem cursor: {key} was {state[key]}, now it is {own}"
                )
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._order_of(self._epoch)

    def _order_of(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(len(self._items))
        generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        return generator.permutation(len(self._items))


def is_heldout(key: str, heldout_fraction: float) -> bool:
    """Whether the item of this key is held out. It depends on the key alone, so it survives growth
    and reordering of the data, and two items with the same key are never on both sides."""
    if not 0.0 <= heldout_fraction <= 1.0:
        raise ValueError(f"heldout_fraction must be between 0 and 1, got {heldout_fraction}")
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < heldout_fraction * 2**64
