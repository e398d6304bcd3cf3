# SPDX-License-Identifier: Apache-2.0
"""Problems that the built-in domains draw, split and number.

The same problems are drawn again from (seed, level, split). A hash of a problem's content decides
whether it is held out, so training and held-out problems are disjoint whatever the seeds. What a
problem is and says are `arithmetic` and `chains`; the table of domains is `domains`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from typing import Literal, Protocol, overload

import numpy as np

from satori_fast.types import Problem

Split = Literal["train", "heldout"]
HELDOUT_FRACTION = 0.2
# Draws in a row that gave nothing new, after which a level counts as used up.
_MAX_MISSES = 2000


class Drawn(Hashable, Protocol):
    """A problem's content, as a domain draws it; equal ones are one problem."""

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> str: ...

    @property
    def heldout(self) -> bool: ...


def is_held_out(content: str) -> bool:
    """Whether a problem of this content is held out: a fifth of all are, by hash."""
    digest = hashlib.sha256(content.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELDOUT_FRACTION * 2**32


class DrawnProblems(Sequence[Problem], ABC):
    """`num_problems` problems of one split, all different, made again identically from the seed.

    Problem ``i`` has level ``levels[i % len(levels)]``. Raises ValueError for an unknown level, or
    when a level cannot give that many different problems.

    name: the domain's, with which the ids begin.
    """

    name: str

    def __init__(
        self, num_problems: int, *, levels: Sequence[int], split: Split, seed: int
    ) -> None:
        known = self.known_levels()
        unknown = sorted(set(levels) - set(known))
        if unknown or not levels:
            raise ValueError(f"data.levels has {unknown or 'no entry'}: choose from {known}")
        self._problems: list[Problem] = []
        streams = {level: self._distinct(level, split, seed) for level in set(levels)}
        for i in range(num_problems):
            level = levels[i % len(levels)]
            drawn = next(streams[level], None)
            if drawn is None:
                raise ValueError(
                    f"level {level} has too few different {split} problems for {num_problems}: "
                    "lower the number or add a harder level to data.levels"
                )
            name = f"{self.name}-{level}/{split}/{i}"
            self._problems.append(Problem(name, drawn.question, drawn.answer, level=str(level)))

    @abstractmethod
    def known_levels(self) -> list[int]:
        """List the levels that there are, ascending."""

    @abstractmethod
    def draw(self, level: int, rng: np.random.Generator) -> Drawn:
        """Draw the content of a problem of a level."""

    def _distinct(self, level: int, split: Split, seed: int) -> Iterator[Drawn]:
        rng = np.random.Generator(np.random.Philox(key=[seed, level * 2 + (split == "heldout")]))
        seen: set[Drawn] = set()
        misses = 0
        while misses < _MAX_MISSES:
            drawn = self.draw(level, rng)
            if drawn in seen or drawn.heldout != (split == "heldout"):
                misses += 1
                continue
            misses = 0
            seen.add(drawn)
            yield drawn

    def __len__(self) -> int:
        return len(self._problems)

    @overload
    def __getitem__(self, index: int) -> Problem: ...

    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...

    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        return self._problems[index]
