# SPDX-License-Identifier: Apache-2.0
"""Means of runs with what is known of their error: what tables of several seeds are made of.

A value that stands for one independent draw (a seed, a tuning) counts once. Runs that started from
the same models are a group: they are averaged first, and what they differ by is the noise of a run.
Not for reading runs (`report_runs`) or writing tables (`seed_table`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Value = float | None

NUM_LATE_EVALUATIONS = 5
# Quantiles 0.975 of the t distribution by degrees of freedom; between two of them the smaller
# counts, whose interval is the wider one.
_T_975 = {
    **{1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306},
    **{9: 2.262, 10: 2.228, 12: 2.179, 15: 2.131, 20: 2.086, 30: 2.042, 60: 2.000, 120: 1.980},
}


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean less another of independent values, its standard error and 95 % interval."""

    value: float
    standard_error: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of independent values.

    n:        number of values. mean: None where there is none.
    standard_deviation: of one value (n - 1 below the line). standard_error: of the mean.
    interval: of the mean, 95 %, by the t distribution. These three are None below two values.
    """

    n: int
    mean: float | None
    standard_deviation: float | None
    standard_error: float | None
    interval: tuple[float, float] | None


def estimate(values: Iterable[Value]) -> Estimate:
    """Estimate the mean of independent values; None among them is left out.

    >>> estimate([0.5, 0.7, 0.9]).interval  # 0.7 +- 4.303 * 0.2 / sqrt(3)
    (0.2031..., 1.1968...)
    """
    there = [value for value in values if value is not None]
    if not there:
        return Estimate(0, None, None, None, None)
    n, mean = len(there), float(np.mean(there))
    if n == 1:
        return Estimate(n, mean, None, None, None)
    deviation = float(np.std(there, ddof=1))
    error = deviation / math.sqrt(n)
    half = _quantile(n - 1) * error
    return Estimate(n, mean, deviation, error, (mean - half, mean + half))


def _quantile(freedom: float) -> float:
    return _T_975[max((known for known in _T_975 if known <= freedom + 1e-9), default=1)]


def difference(values: Iterable[Value], others: Iterable[Value]) -> Difference | None:
    """Estimate how far the mean of `values` lies above that of others, unpaired.

    The interval is Welch's (1947): deviations may differ, degrees of freedom are rounded down.
    None where one of the two has fewer than two values, or none of the values differ.

    >>> difference([0.6, 0.8], [0.5, 0.5, 0.5]).interval  # 0.2 +- 12.706 * 0.1
    (-1.0706, 1.4706)
    """
    one, other = estimate(values), estimate(others)
    if one.standard_error is None or other.standard_error is None:
        return None
    assert one.mean is not None and other.mean is not None
    error = math.hypot(one.standard_error, other.standard_error)
    if error == 0:
        return None
    shares = ((one.standard_error / error) ** 4, (other.standard_error / error) ** 4)
    freedom = 1 / (shares[0] / (one.n - 1) + shares[1] / (other.n - 1))
    apart, half = one.mean - other.mean, _quantile(freedom) * error
    return Difference(apart, error, (apart - half, apart + half))


def group_means(groups: Sequence[Sequence[Value]]) -> list[Value]:
    """Mean of what is there in each group; None where nothing is."""
    return [estimate(group).mean for group in groups]


def paired_estimate(
    groups: Sequence[Sequence[Value]], others: Sequence[Sequence[Value]]
) -> Estimate:
    """Estimate the mean difference of two arms, group by group.

    Groups at the same place belong to the same tuning (or seed). ValueError: unequally many.
    """
    pairs = zip(group_means(groups), group_means(others), strict=True)
    return estimate([None if a is None or b is None else a - b for a, b in pairs])


def noise_of_a_run(groups: Iterable[Sequence[Value]]) -> float | None:
    """Standard deviation of runs that differ by chance alone: those of a group.

    Variances within groups, weighted by their degrees of freedom. None where no group has two runs.

    >>> round(noise_of_a_run([[0.5, 0.7], [0.7, 0.9]]), 4)
    0.1414
    """
    squares, freedom = 0.0, 0
    for group in groups:
        there = [value for value in group if value is not None]
        if len(there) > 1:
            squares += float(np.var(there)) * len(there)
            freedom += len(there) - 1
    return math.sqrt(squares / freedom) if freedom else None


def late_mean(
    lines: Iterable[Mapping[str, Any]], stage: str, *, metric: str = "eval/accuracy"
) -> tuple[float | None, int]:
    """Mean of the last five evaluations of a stage, and how many there were of those.

    lines: of metrics.jsonl. One evaluation swings from step to step more than five do.
    """
    values = [line[metric] for line in lines if line["stage"] == stage and metric in line]
    late = [value for value in values if value is not None][-NUM_LATE_EVALUATIONS:]
    return estimate(late).mean, len(late)
