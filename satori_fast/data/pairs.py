# SPDX-License-Identifier: Apache-2.0
"""Graded samples become preference pairs (Satori, appendix D.3).

Not for packing them (`data.packing.pack_pairs`), nor for their loss (`algorithms.losses`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from satori_fast.types import PreferencePair, Trajectory

# The graded samples of one problem: a solution and whether its answer is right.
GradedSamples = Sequence[tuple[Trajectory, bool]]


def finished(trajectory: Trajectory, eos_id: int) -> Trajectory:
    """The trajectory with the end of text as its last token: what a reward model reads.

    A response that was cut by its limit is scored as if it had ended there, as in Satori's code.
    That code appends the token; here it takes the place of the last one, so that no sequence
    outgrows the context.
    """
    if trajectory.tokens[-1] == eos_id:
        return trajectory
    tokens = trajectory.tokens.copy()
    tokens[-1] = eos_id
    return replace(trajectory, tokens=tokens)


def form_pairs(
    groups: Iterable[GradedSamples], *, max_per_problem: int, eos_id: int, rng: np.random.Generator
) -> list[PreferencePair]:
    """Right x wrong samples of each problem that has both, at most `max_per_problem` of them.

    Which ones is drawn from `rng`, without repetition; problems keep their order.
    """
    pairs: list[PreferencePair] = []
    for samples in groups:
        right = [finished(t, eos_id) for t, is_correct in samples if is_correct]
        wrong = [finished(t, eos_id) for t, is_correct in samples if not is_correct]
        num_pairs = len(right) * len(wrong)
        for i in rng.permutation(num_pairs)[:max_per_problem]:
            row, column = divmod(int(i), len(wrong))
            pairs.append(PreferencePair(right[row], wrong[column]))
    return pairs
