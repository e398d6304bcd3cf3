# SPDX-License-Identifier: Apache-2.0
"""Best-of-n accuracy by hand."""

from __future__ import annotations

import numpy as np
import pytest

from satori_fast.evaluation.best_of import evaluate_selection


def scores(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def verdicts(text: str) -> np.ndarray:
    """ "+-" is right, wrong."""
    return np.array([sign == "+" for sign in text])


def test_four_problems_by_hand() -> None:
    result = evaluate_selection(
        [
            scores(3, 1, 2, 0),  # the best is right; pairs: 3 > 2, 3 > 0, 1 < 2, 1 > 0
            scores(1, 2, 0, 0),  # the best is wrong; pairs: 1 < 2, 1 > 0, 1 > 0
            scores(5, 6, 7, 8),  # all right
            scores(5, 6, 7, 9),  # all wrong
        ],
        [verdicts("++--"), verdicts("+---"), verdicts("++++"), verdicts("----")],
    )
    assert result.best_of_n == 2 / 4
    assert result.mean == pytest.approx((0.5 + 0.25 + 1.0 + 0.0) / 4)
    assert result.ceiling == 3 / 4
    assert result.pair_accuracy == pytest.approx(5 / 7)
    everything = [3, 1, 2, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 7, 9]
    assert result.score_mean == pytest.approx(np.mean(everything))
    assert result.score_std == pytest.approx(np.std(everything))


def test_equal_scores_are_a_random_choice() -> None:
    result = evaluate_selection(
        [scores(0, 0, 0, 0), scores(2, 2, 1)], [verdicts("+---"), verdicts("+-+")]
    )
    assert result.best_of_n == pytest.approx((0.25 + 0.5) / 2)
    # Three ties of the first problem; one tie and one lost pair of the second.
    assert result.pair_accuracy == pytest.approx((3 * 0.5 + 0.5 + 0.0) / 5)


@pytest.mark.parametrize("signs", ["++", "--", ""])
def test_nothing_to_select(signs: str) -> None:
    groups = [verdicts(signs)] if signs else []
    with pytest.raises(ValueError, match="nothing to select"):
        evaluate_selection([scores(1, 2) for _ in groups], groups)
