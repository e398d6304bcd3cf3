# SPDX-License-Identifier: Apache-2.0
"""Intervals, tests and sizes: published and hand-worked numbers, and what enumeration gives."""

import itertools
import math

import numpy as np
import pytest

from satori_fast.evaluation.statistics import (
    Share,
    bootstrap_average,
    bootstrap_mean,
    compare,
    mcnemar,
    pass_at_k,
    problems_needed,
    problems_needed_unpaired,
    wilson,
)


@pytest.mark.parametrize(("k", "chance"), [(1, 0.25), (2, 0.464286), (4, 0.785714)])
def test_pass_at_k_of_two_right_in_eight(k: int, chance: float) -> None:
    assert pass_at_k(8, 2, k) == pytest.approx(chance, abs=5e-7)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 0, 3), (5, 5, 1), (6, 2, 3), (7, 3, 5)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int, c: int, k: int) -> None:
    subsets = list(itertools.combinations(range(n), k))
    share = sum(min(subset) < c for subset in subsets) / len(subsets)
    assert pass_at_k(n, c, k) == pytest.approx(share)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_of_what_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {c} right in {n}"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(6, 30, 0.095051, 0.373057), (425, 500, 0.816039, 0.878624)]
)
def test_wilson(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-7)


def test_wilson_ends_are_where_the_normal_test_would_just_reject() -> None:
    for k, n in ((0, 30), (1, 30), (29, 30), (30, 30), (3, 7)):
        for end in wilson(k, n):
            if 0 < end < 1:
                assert abs(k / n - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(1.959964)
    assert wilson(0, 30)[0] == 0.0
    assert wilson(30, 30)[1] == 1.0
    with pytest.raises(ValueError, match="a share of 0 in 0"):
        wilson(0, 0)


def test_mcnemar() -> None:
    assert mcnemar(12, 4) == pytest.approx(0.076813, abs=5e-7)
    assert mcnemar(4, 12) == mcnemar(12, 4)
    assert (mcnemar(0, 0), mcnemar(3, 3), mcnemar(1, 0)) == (1.0, 1.0, 1.0)
    assert mcnemar(6, 0) == 2 / 64
    assert 0 < mcnemar(2000, 900) < 1e-90  # far beyond the range of a float's exponent in between
    with pytest.raises(ValueError, match="cannot be negative"):
        mcnemar(-1, 2)


def test_mcnemar_counts_the_coins() -> None:
    b, c = 5, 1
    outcomes = list(itertools.product((0, 1), repeat=b + c))
    extreme = sum(min(sum(coins), b + c - sum(coins)) <= c for coins in outcomes)
    assert mcnemar(b, c) == extreme / len(outcomes)


def test_a_share_says_what_it_is_of() -> None:
    assert Share(0, 0).figures() == {"value": None, "k": 0, "n": 0, "interval": None}
    assert Share(6, 30).figures()["interval"] == list(wilson(6, 30))


def test_a_bootstrapped_mean_of_shares_is_as_wide_as_its_error() -> None:
    values = [0.0] * 300 + [1.0] * 100
    low, high = bootstrap_mean(values, seed=3)
    error = math.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - 1.96 * error, abs=0.005)
    assert high == pytest.approx(0.25 + 1.96 * error, abs=0.005)
    assert bootstrap_mean(values, seed=3) == (low, high)
    assert bootstrap_mean([0.5] * 30) == (0.5, 0.5)
    with pytest.raises(ValueError, match="no problem"):
        bootstrap_mean([])


def test_an_average_over_sets_is_as_sure_as_its_sets() -> None:
    small, large = [0.0, 1.0] * 15, [0.0, 1.0] * 1000
    low, high = bootstrap_average([small, large])
    error = math.sqrt(0.25 / 30 + 0.25 / 2000) / 2
    assert (low, high) == pytest.approx((0.5 - 1.96 * error, 0.5 + 1.96 * error), abs=0.01)
    with pytest.raises(ValueError, match="no benchmark"):
        bootstrap_average([])


def scores(right: int, n: int) -> dict[str, float]:
    return {f"set/{number}": float(number < right) for number in range(n)}


def test_what_problems_have_in_common_is_taken_out_of_a_comparison() -> None:
    found = compare(scores(300, 500), scores(312, 500))
    assert (found.difference, found.p_value) == pytest.approx((0.024, 2 / 2**12))
    assert found.interval[0] > 0 > found.unpaired[0]
    assert found.better == tuple(f"set/{number}" for number in range(300, 312))
    # The unpaired error is that of two independent shares.
    error = math.sqrt(0.6 * 0.4 / 500 + 0.624 * 0.376 / 500)
    assert found.unpaired[1] - found.unpaired[0] == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_two_models_that_differ_in_one_answer() -> None:
    found = compare(scores(300, 500), scores(301, 500))
    assert (found.better, found.worse) == (("set/300",), ())
    assert found.difference == pytest.approx(1 / 500)
    # What the one has and the other lacks is seen, and that it proves nothing.
    assert found.interval == pytest.approx((0.0, 3 / 500), abs=1.1 / 500)
    assert found.p_value == 1.0
    assert found.unpaired[0] < -0.05 < 0.05 < found.unpaired[1]


def test_means_over_samples_are_compared_without_mcnemar() -> None:
    first, second = {"a": 0.5, "b": 0.25, "only": 1.0}, {"b": 0.5, "a": 0.5}
    found = compare(first, second)
    assert found.p_value is None
    assert (found.num_problems, found.num_left_out) == (2, 1)
    assert (found.first, found.second, found.better) == (0.375, 0.5, ("b",))
    with pytest.raises(ValueError, match="no problem in common"):
        compare({"a": 1.0}, {"b": 1.0})


def simulated_power(n: int, difference: float, disagreement: float) -> float:
    """How often 1,000 pairs of models that differ so much are told apart by n problems."""
    rng = np.random.default_rng([5])
    better, worse = (disagreement + difference) / 2, (disagreement - difference) / 2
    draws = rng.multinomial(n, [better, worse, 1 - disagreement], size=1000)
    z = (draws[:, 0] - draws[:, 1]) / np.sqrt(np.maximum(draws[:, 0] + draws[:, 1], 1))
    return float(np.mean(np.abs(z) > 1.959964))


@pytest.mark.parametrize(("difference", "disagreement"), [(0.05, 0.15), (0.02, 0.1), (0.1, 0.3)])
def test_that_many_problems_find_the_difference(difference: float, disagreement: float) -> None:
    n = problems_needed(difference, disagreement=disagreement)
    assert simulated_power(n, difference, disagreement) == pytest.approx(0.8, abs=0.04)


def test_problems_asked_of_both_are_fewer() -> None:
    # Independent models of accuracies 0.5 and 0.55 disagree on half of the problems.
    assert problems_needed(0.05, disagreement=0.5) == pytest.approx(
        problems_needed_unpaired(0.05, accuracy=0.5), rel=0.01
    )
    assert problems_needed_unpaired(0.05, accuracy=0.5) == 1565
    with pytest.raises(ValueError, match="needs 0 < difference <= disagreement"):
        problems_needed(0.2, disagreement=0.1)
    with pytest.raises(ValueError, match="0 <= first < second <= 1"):
        problems_needed_unpaired(0.2, accuracy=0.9)
