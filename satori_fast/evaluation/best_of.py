# SPDX-License-Identifier: Apache-2.0
"""Best-of-n accuracy: scores pick the right one among several answers to a problem.

Best-of-n accuracy is what Satori chooses the checkpoint of its reward model by (appendix D.3:
RM@8). Where the scores come from does not matter here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class SelectionResult:
    """Accuracies in [0, 1].

    best_of_n:     problems whose best-scored answer is right; where several answers share the
                   highest score, the share of right ones among them.
    mean:          the same for a random choice; ceiling: for a perfect one.
    pair_accuracy: right answers scored above a wrong one of their problem, over all such pairs; a
                   tie counts 1/2.
    score_mean, score_std: of all scores.
    """

    best_of_n: float
    mean: float
    ceiling: float
    pair_accuracy: float
    score_mean: float
    score_std: float


def evaluate_selection(
    scores: Sequence[npt.NDArray[np.float32]], correct: Sequence[npt.NDArray[np.bool_]]
) -> SelectionResult:
    """scores, correct: [n] of each problem. ValueError when no problem has right and wrong answers.

    >>> evaluate_selection([np.array([0.5, 2.0])], [np.array([False, True])]).best_of_n
    1.0
    """
    chosen_right: list[float] = []
    pairs_right: list[npt.NDArray[np.float64]] = []
    for values, is_right in zip(scores, correct, strict=True):
        chosen_right.append(float(np.mean(is_right[values == values.max()])))
        leads = values[is_right][:, None] - values[~is_right][None, :]
        pairs_right.append((0.5 + 0.5 * np.sign(leads.astype(np.float64))).ravel())
    pairs = np.concatenate(pairs_right) if pairs_right else np.zeros(0)
    if not len(pairs):
        raise ValueError("no problem has both right and wrong answers: there is nothing to select")
    everything = np.concatenate(scores).astype(np.float64)
    return SelectionResult(
        best_of_n=float(np.mean(chosen_right)),
        mean=float(np.mean([is_right.mean() for is_right in correct])),
        ceiling=float(np.mean([is_right.any() for is_right in correct])),
        pair_accuracy=float(pairs.mean()),
        score_mean=float(everything.mean()),
        score_std=float(everything.std()),
    )
