# SPDX-License-Identifier: Apache-2.0
"""Masks of imitation: which segments of a demonstration are trained.

Not for the tokens of a batch (`data.packing` turns segments into `loss_mask`), nor for the loss.
"""

from __future__ import annotations

from typing import Literal

from satori_fast.types import SegmentKind, Trajectory

ImitatedSegments = Literal["all", "verify_and_last"]


def trained_segments(trajectory: Trajectory, loss: ImitatedSegments) -> tuple[bool, ...]:
    """Tell for each segment whether imitation trains it.

    "all":             every one.
    "verify_and_last": verifications and the last solution (S2R, arXiv 2502.12853): solutions that
                       were tried before it are wrong, and are read but not learnt. The end token
                       lies in the last segment, which is one or the other.

    Example: solve, verify, solve, verify gives False, True, True, True; a single solution True.
    ValueError for a response without solutions and verifications, of which nothing would be left.
    """
    if loss == "all":
        return (True,) * len(trajectory.segments)
    kinds = [segment.kind for segment in trajectory.segments]
    if not set(kinds) <= {SegmentKind.SOLVE, SegmentKind.VERIFY}:
        raise ValueError(
            f"problem {trajectory.problem.problem_id!r} has a segment of kind {kinds[0].value!r}: "
            'loss = "verify_and_last" knows solutions and verifications; set data.format = "trials"'
        )
    last = max((i for i, kind in enumerate(kinds) if kind is SegmentKind.SOLVE), default=-1)
    return tuple(kind is SegmentKind.VERIFY or i == last for i, kind in enumerate(kinds))
