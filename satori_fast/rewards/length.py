# SPDX-License-Identifier: Apache-2.0
"""Penalty for responses that come near the length limit, or are cut by it (DAPO).

What else may become of a cut response is `reinforce.truncated`: see `experience.source.Judge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from satori_fast.types import RewardBreakdown, Trajectory

TERM = "overlong"


@dataclass(frozen=True, slots=True)
class LengthPenalty:
    """Soft overlong punishment, the term "overlong" (arXiv 2503.14476, eq. 13): 0 for a response of
    up to four fifths of the limit, then down in a straight line to -1 at the limit; -1 for a
    response that was cut.

    limit: of a response, tokens. The paper's is 20,480, with a fifth for the line: 4,096.

    >>> [LengthPenalty(100).of_length(tokens) for tokens in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """

    limit: int

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[RewardBreakdown]:
        return [
            RewardBreakdown(
                {TERM: -1.0 if t.finish == "length" else self.of_length(t.num_response_tokens)}
            )
            for t in trajectories
        ]

    def of_length(self, num_tokens: int) -> float:
        """The term of a response that ended by itself."""
        line = self.limit / 5
        return min(0.0, max(-1.0, (self.limit - line - num_tokens) / line))
