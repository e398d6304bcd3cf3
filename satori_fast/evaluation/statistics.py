# SPDX-License-Identifier: Apache-2.0
"""Statistics of evaluations: how sure a share or a mean is, and whether two models differ.

All of it is of one evaluation, or of two on the same problems; what varies is which problems were
asked. Not for means over runs and seeds (`profiling.statistics`), nor for what is counted in a
response (`analysis`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Interval = tuple[float, float]

# Of the normal distribution: 95 % lie between its negative and itself, and 80 % below the other.
Z_95 = 1.959964
_Z_80 = 0.841621
NUM_RESAMPLES = 10_000
_CHUNK = 2_000_000  # numbers drawn at a time: 16 MB


@dataclass(frozen=True, slots=True)
class Share:
    """A share with what it is of: k of n."""

    k: int
    n: int

    @property
    def value(self) -> float | None:
        """The share in [0, 1], None of nothing."""
        return self.k / self.n if self.n else None

    @property
    def interval(self) -> Interval | None:
        """Its 95 % interval (`wilson`), None of nothing."""
        return wilson(self.k, self.n) if self.n else None

    def figures(self) -> dict[str, float | int | list[float] | None]:
        """Value, counts and interval, fit for JSON."""
        ends = self.interval
        return {
            "value": self.value,
            "k": self.k,
            "n": self.n,
            "interval": None if ends is None else list(ends),
        }


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate the chance that one of k samples is right, of n samples of which c are.

    Unbiased: 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374, equation 1). ValueError
    unless 0 <= c <= n and 1 <= k <= n.

    >>> [round(pass_at_k(8, 2, k), 6) for k in (1, 2, 4)]
    [0.25, 0.464286, 0.785714]
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} right in {n}: needs 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def wilson(k: int, n: int, *, z: float = Z_95) -> Interval:
    """Interval of a share, k of n (Wilson, 1927).

    It stays within 0 and 1 and holds for few problems, where p +- z sqrt(p (1 - p) / n) does not.
    ValueError unless 0 <= k <= n and n > 0.

    >>> [round(end, 6) for end in wilson(6, 30)]
    [0.095051, 0.373057]
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"a share of {k} in {n}: needs 0 <= k <= n and n > 0")
    share, per_n = k / n, z * z / n
    centre = (share + per_n / 2) / (1 + per_n)
    half = z * math.sqrt(share * (1 - share) / n + per_n / (4 * n)) / (1 + per_n)
    # At the ends rounding leaves a trace of the difference that is zero.
    return 0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half


def mcnemar(b: int, c: int) -> float:
    """Two-sided p-value of the exact McNemar test.

    Of the problems that two models answer differently, b are right with the one and c with the
    other: by chance each falls to either side as a coin does. 1 where they differ nowhere.
    ValueError for a negative count.

    >>> round(mcnemar(12, 4), 6)
    0.076813
    """
    if b < 0 or c < 0:
        raise ValueError(f"McNemar's test of {b} against {c}: counts cannot be negative")
    n, few = b + c, min(b, c)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(few + 1)) / 2**n)


def bootstrap_mean(
    values: Sequence[float], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Interval:
    """95 % interval of a mean over problems: percentiles of the means of resampled problems.

    values: one for each problem, such as the share of its samples that are right. Samples of one
    problem are not independent, so problems are what is drawn. ValueError without any.
    """
    return _percentiles(_resampled_means(values, np.random.default_rng([seed]), num_resamples))


def bootstrap_average(
    sets: Sequence[Sequence[float]], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Interval:
    """95 % interval of the average over benchmarks, each of which counts the same.

    sets: values for each problem of each benchmark; which benchmarks there are is no chance.
    ValueError without any.
    """
    if not sets:
        raise ValueError("an average over no benchmark")
    rng = np.random.default_rng([seed])
    means = [_resampled_means(values, rng, num_resamples) for values in sets]
    return _percentiles(np.mean(means, axis=0))


def _resampled_means(
    values: Sequence[float], rng: np.random.Generator, num_resamples: int
) -> npt.NDArray[np.float64]:
    """Means of as many problems as there are, drawn with repetition, [num_resamples]."""
    known = np.asarray(values, dtype=np.float64)
    if not len(known):
        raise ValueError("a mean over no problem")
    rows = max(1, _CHUNK // len(known))
    parts: list[npt.NDArray[np.float64]] = []
    for start in range(0, num_resamples, rows):
        size = (min(rows, num_resamples - start), len(known))
        parts.append(known[rng.integers(len(known), size=size)].mean(axis=1))
    return np.concatenate(parts)


def _percentiles(means: npt.NDArray[np.float64]) -> Interval:
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two results on the same problems.

    first, second: means of their scores. difference: second - first, with its 95 % interval by the
    paired bootstrap. unpaired: the interval that the difference would have if the problems of the
    two were not the same: wider, because hard problems are hard for both.
    better, worse: problems with a higher, and with a lower score of the second.
    p_value: exact McNemar, None where scores are not all 0 or 1.
    num_left_out: problems that only one of the two has.
    """

    num_problems: int
    first: float
    second: float
    difference: float
    interval: Interval
    unpaired: Interval
    better: tuple[str, ...]
    worse: tuple[str, ...]
    p_value: float | None
    num_left_out: int


def compare(
    first: Mapping[str, float], second: Mapping[str, float], *, seed: int = 0
) -> PairedComparison:
    """Compare two results, problem by problem.

    first, second: problem id to score, 1 for right and 0 for wrong, or the mean over its samples.
    ValueError where no problem is in both.
    """
    shared = [name for name in first if name in second]
    if not shared:
        raise ValueError("the two results have no problem in common: there is nothing to compare")
    a = np.asarray([first[name] for name in shared], dtype=np.float64)
    b = np.asarray([second[name] for name in shared], dtype=np.float64)
    better = tuple(name for name, x, y in zip(shared, a, b, strict=True) if y > x)
    worse = tuple(name for name, x, y in zip(shared, a, b, strict=True) if y < x)
    is_binary = bool(np.isin(np.concatenate([a, b]), (0.0, 1.0)).all())
    rng = np.random.default_rng([seed])
    apart = _resampled_means(b.tolist(), rng, NUM_RESAMPLES)
    apart = apart - _resampled_means(a.tolist(), rng, NUM_RESAMPLES)
    return PairedComparison(
        num_problems=len(shared),
        first=float(a.mean()),
        second=float(b.mean()),
        difference=float((b - a).mean()),
        interval=bootstrap_mean((b - a).tolist(), seed=seed),
        unpaired=_percentiles(apart),
        better=better,
        worse=worse,
        p_value=mcnemar(len(better), len(worse)) if is_binary else None,
        num_left_out=len(first) + len(second) - 2 * len(shared),
    )


def problems_needed(difference: float, *, disagreement: float) -> int:
    """Problems that a paired comparison needs to find a difference in four of five cases, at 5 %.

    difference: of the accuracies. disagreement: share of problems that one of the two solves and
    the other does not; at least the difference. (z_0.975 sqrt(s) + z_0.8 sqrt(s - d^2))^2 / d^2
    (Connor, Biometrics 43, 1987). ValueError unless 0 < difference <= disagreement <= 1.

    >>> problems_needed(0.05, disagreement=0.15)
    469
    """
    if not 0 < difference <= disagreement <= 1:
        raise ValueError(
            f"a difference of {difference:g} with a disagreement of {disagreement:g}: needs "
            "0 < difference <= disagreement <= 1"
        )
    chance = Z_95 * math.sqrt(disagreement)
    power = _Z_80 * math.sqrt(disagreement - difference**2)
    return math.ceil(((chance + power) / difference) ** 2)


def problems_needed_unpaired(difference: float, *, accuracy: float) -> int:
    """Problems for each of two models if they were asked different ones, as `problems_needed`.

    accuracy: of the first; the second's is `difference` above it. ValueError where one of the two
    is not within 0 and 1.

    >>> problems_needed_unpaired(0.05, accuracy=0.5)
    1565
    """
    other = accuracy + difference
    if difference <= 0 or accuracy < 0 or other > 1:
        raise ValueError(f"accuracies {accuracy:g} and {other:g}: needs 0 <= first < second <= 1")
    middle = (accuracy + other) / 2
    chance = Z_95 * math.sqrt(2 * middle * (1 - middle))
    power = _Z_80 * math.sqrt(accuracy * (1 - accuracy) + other * (1 - other))
    return math.ceil(((chance + power) / difference) ** 2)
