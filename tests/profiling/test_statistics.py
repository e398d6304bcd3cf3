# SPDX-License-Identifier: Apache-2.0
"""Means, intervals, pairs and the noise of a run: hand-worked numbers, and the density of t."""

import math

import numpy as np
import pytest

from satori_fast.profiling.statistics import (
    _T_975,
    Estimate,
    difference,
    estimate,
    group_means,
    late_mean,
    noise_of_a_run,
    paired_estimate,
)


def share_below(t, freedom):
    """The distribution function of t: its density, summed by Simpson's rule from 0."""
    x = np.linspace(0.0, t, 20_001)
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    density = np.exp(log_scale) / math.sqrt(freedom * math.pi)
    density = density * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    weights = np.where(np.arange(len(x)) % 2, 4.0, 2.0)
    weights[[0, -1]] = 1.0
    return 0.5 + float(weights @ density) * (x[1] - x[0]) / 3


@pytest.mark.parametrize("freedom", list(_T_975))
def test_quantiles_are_those_of_the_t_distribution(freedom):
    assert share_below(_T_975[freedom], freedom) == pytest.approx(0.975, abs=3e-5)


def test_three_values():
    found = estimate([0.5, 0.9, 0.7])
    assert (found.n, found.mean, found.standard_deviation) == pytest.approx((3, 0.7, 0.2))
    assert found.standard_error == pytest.approx(0.2 / 3**0.5)
    assert found.interval == pytest.approx((0.7 - 0.49685, 0.7 + 0.49685), abs=1e-4)


def test_few_values_have_no_error():
    assert estimate([None, 0.25]) == Estimate(1, 0.25, None, None, None)
    assert estimate([None]) == estimate([]) == Estimate(0, None, None, None, None)


def test_between_two_quantiles_the_wider_interval_counts():
    values = list(range(15))  # 14 degrees of freedom: that of 12
    found = estimate(values)
    assert found.interval is not None and found.standard_error is not None
    assert found.interval[1] - 7 == pytest.approx(2.179 * found.standard_error)


def test_the_difference_of_unequal_deviations_has_few_degrees_of_freedom():
    # Variances of the means 4 / 4 = 1 and 0.04 / 4 = 0.01, so 1.01^2 / (1 / 3 + 0.0001 / 3) = 3.06
    # degrees of freedom, not the six of equal deviations.
    steps = math.sqrt(3) * np.array([-1, -1, 1, 1])
    wide, narrow = [*(10 + steps)], [*(9 + 0.1 * steps)]
    found = difference([*wide, None], narrow)
    assert found is not None and found.value == pytest.approx(1.0)
    assert found.standard_error == pytest.approx(math.sqrt(1.01))
    half = 3.182 * math.sqrt(1.01)
    assert found.interval == pytest.approx((1 - half, 1 + half))
    assert difference(wide, narrow[:1]) is None
    assert difference([1.0, 1.0], [2.0, 2.0]) is None


def test_equal_deviations_have_the_degrees_of_both():
    # 2 (n - 1) = 4 degrees of freedom, errors of 1 / sqrt(3) each.
    found = difference([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    half = 2.776 * math.sqrt(2 / 3)
    assert found is not None and found.interval == pytest.approx((-3 - half, -3 + half))


def test_runs_of_a_group_are_averaged_before_groups_are():
    groups = [[0.5, 0.7, 0.9], [0.9], [None]]
    assert group_means(groups) == [pytest.approx(0.7), 0.9, None]
    # Two tunings, not four runs.
    assert estimate(group_means(groups)).n == 2


def test_pairs_are_of_groups():
    ours, theirs = [[0.6, 0.8], [0.9, 0.9], [0.5]], [[0.5, 0.5, 0.5], [0.6], [None]]
    found = paired_estimate(ours, theirs)
    assert (found.n, found.mean) == (2, pytest.approx(0.25))  # 0.2 and 0.3
    assert found.standard_error == pytest.approx(0.05)
    with pytest.raises(ValueError):
        paired_estimate(ours, theirs[:2])


def test_noise_is_within_groups():
    # Variances 0.02 and 0.01 with one and two degrees of freedom; that groups differ is no noise.
    noise = noise_of_a_run([[0.5, 0.7], [0.1, 0.2, 0.3], [9.0], [None, 5.0]])
    assert noise == pytest.approx(((0.02 + 2 * 0.01) / 3) ** 0.5)
    assert noise_of_a_run([[0.5], [0.7]]) is None


def test_the_last_five_evaluations_of_a_stage():
    lines = [{"stage": "rl", "step": i, "eval/accuracy": i / 10} for i in range(1, 8)]
    lines.insert(5, {"stage": "rl", "step": 99, "eval/accuracy": None})
    lines += [{"stage": "rl", "step": 100}, {"stage": "sft", "step": 0, "eval/accuracy": 0.1}]
    assert late_mean(lines, "rl") == (pytest.approx(0.5), 5)
    assert late_mean(lines, "sft") == (0.1, 1)
    assert late_mean(lines, "synthesize") == (None, 0)
