# SPDX-License-Identifier: Apache-2.0
"""The strict and the lenient grader against the house grader: pairs worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satori_fast.grading import (
    GradingPool,
    equivalent,
    lenient_answer,
    lenient_equal,
    strict_equal,
)
from tests.grading.hand_checked import PAIRS

# (answer, gold), and whether the strict, the house and the lenient grader call it right.
VERDICTS = [
    ("5", "5", "SHL"),
    (r"$\dfrac12$", r"\frac{1}{2}", "SHL"),
    (r"\text{Evelyn}", "Evelyn", "SHL"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", "SHL"),
    ("0.5", r"\frac{1}{2}", "HL"),
    (r"2\sqrt2", r"\sqrt{8}", "HL"),
    ("5 cm", "5", "HL"),
    ("50", "0.5", "L"),
    ("300", "3", "L"),
    ("9999.5", "10000", "L"),
    ("0.3333", r"\frac{1}{3}", "L"),
    ("1.4142", r"\sqrt{2}", "L"),
    ("3.1416", r"\pi", "L"),
    ("[0,1]", "(0,1)", "L"),
    ("(1.00001, 2)", "(1,2)", "L"),
    ("(1, 200)", "(1,2)", "L"),
    (
        r"\begin{pmatrix}0.70711\\1\end{pmatrix}",
        r"\begin{pmatrix}\frac{1}{\sqrt2}\\1\end{pmatrix}",
        "L",
    ),
    ("C. red", "C", "HL"),
    ("51", "0.5", ""),
    ("9998.9", "10000", ""),
    ("0.333", r"\frac{1}{3}", ""),
    ("(2, 1)", "(1, 2)", ""),
    ("(1, 2, 3)", "(1, 2)", ""),
    ("2x", "x", ""),
    (r"\infty", "5", ""),
    (r"-\infty", r"\infty", ""),
    ("B", "C", ""),
    ("1e999", "2e999", ""),
    ("", "5", ""),
    ("5", "", ""),
    ("9" * 5000, "9", ""),
]


def test_there_are_two_hundred_pairs() -> None:
    assert len({(answer, gold) for answer, gold, _ in PAIRS}) >= 200


@pytest.mark.parametrize(("answer", "gold", "right"), [*VERDICTS, *PAIRS])
def test_who_calls_it_right(answer: str, gold: str, right: str) -> None:
    found = "S" * strict_equal(answer, gold)
    found += "H" * equivalent(answer, gold)
    found += "L" * lenient_equal(answer, gold)
    assert found == right


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{4} and 12", "4"),
        ("so it is 3, 4 and 1,234.5", "1234.5"),
        ("it fell by -.5", "-.5"),
        ("The answer is 12 apples. That is 3 more.", "12 apples"),
        ("the final answer is: $x=2$\nthe answer is 7.5", "7.5"),
        (r"\boxed{4", "4"),
        ("nothing", None),
        ("", None),
    ],
)
def test_where_the_lenient_answer_stands(text: str, answer: str | None) -> None:
    assert lenient_answer(text) == answer


@given(st.decimals(-(10**6), 10**6, places=3), st.sampled_from([1, 100, 0.01]), st.booleans())
def test_numbers_are_compared_as_math_isclose_does(value, scale: float, is_close: bool) -> None:
    answer = float(value) * scale * (1 + (5e-5 if is_close else 3e-4))
    expected = any(
        math.isclose(answer, float(value) * factor, rel_tol=1e-4) for factor in (1, 100, 0.01)
    )
    assert lenient_equal(f"{answer:.12f}", str(value)) == expected


def test_a_pool_compares_under_its_limit() -> None:
    pairs = [("50", "0.5"), ("0.3333", r"\frac13"), (r"9^{9^{9^{9}}}", "x+1"), ("x", "x+1")]
    with GradingPool(num_workers=1, timeout_s=1.0) as pool:
        assert pool.compare_leniently(pairs) == [True, True, False, False]
    with pytest.raises(ValueError, match="the grading pool is closed"):
        pool.compare_leniently(pairs)
    with GradingPool(num_workers=0) as pool:
        assert pool.compare_leniently(pairs[:2]) == [True, True]


@pytest.mark.parametrize(
    ("name", "equal", "same_text"), [("math500", 3, 2), ("olympiadbench", 4, 4), ("gsm8k", 15, 15)]
)
def test_real_golds_against_their_neighbours(
    data_dir: Path, name: str, equal: int, same_text: int
) -> None:
    from satori_fast.evaluation.benchmark_sets import load_benchmark
    from satori_fast.evaluation.benchmarks import BENCHMARKS

    read = load_benchmark(BENCHMARKS[name], data_dir / "benchmarks")
    golds = [item.problem.answer or "" for item in read.items]
    pairs = list(zip(golds, [*golds[-1:], *golds[:-1]], strict=True))
    assert sum(equivalent(answer, gold) for answer, gold in pairs) == equal
    assert sum(strict_equal(answer, gold) for answer, gold in pairs) == same_text
