# SPDX-License-Identifier: Apache-2.0
"""A hundred thousand random and adversarial answers: none raises, hangs, or holds up the rest."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from satori_fast.grading import GradingPool

# Pieces of answers, from plain to hostile; an answer is one to eight of them.
PIECES = (
    *("0", "7", "12", "3.5", "1e9", "-", "+", "*", "/", "^", "_", "=", "<", ",", ";", ":", " "),
    *("x", "y", "pi", "i", "(", ")", "[", "]", "{", "}", "|", "!", "%", "$", "&", "\\\\", "\n"),
    *(r"\frac", r"\sqrt", r"\pi", r"\infty", r"\cup", r"\text{ or }", r"\left(", r"\right]"),
    *(r"\begin{pmatrix}", r"\end{pmatrix}", r"\log_2", r"\sum_{n=1}^{10}", r"\int_0^1", r"\pm"),
    *("\u221a", "\u00bd", "\u2264", "\u00e9", "\U0001f642", "\u200b", "\ud7ff", "^\\circ", "cm"),
)
HOSTILE = (
    "9^{9^{9^{9}}}",
    r"\frac{" * 400,
    "(" * 3000,
    r"\sqrt{" * 60 + "2" + "}" * 60,
    "1" * 100_000,
    r"\boxed{1}" * 2000,
    "x^{" * 200 + "2" + "}" * 200,
    "+".join(["x"] * 4000),
    r"\frac{1}{" * 80 + "2" + "}" * 80,
    "10^{10^{10}}!",
    "\x00\x1b[31m" * 50,
    r"\int_0^{10^9} e^{x^x} dx",
)
GOLDS = ("7", r"\frac{1}{2}", "(1, 2)", r"\{1, 2\}", "[0, 1)", "x^2 + 1", r"\text{yes}", "50\\%")


def answers(number: int, seed: int) -> list[tuple[str, str]]:
    """(response, gold), one in two hundred with a hostile answer."""
    rng = np.random.default_rng(seed)
    pairs: list[tuple[str, str]] = []
    for n in range(number):
        if n % 200 == 0:
            answer = HOSTILE[int(rng.integers(len(HOSTILE)))]
        else:
            chosen = rng.integers(len(PIECES), size=int(rng.integers(1, 9)))
            answer = "".join(PIECES[i] for i in chosen)
        pairs.append((rf"so \boxed{{{answer}}}", GOLDS[int(rng.integers(len(GOLDS)))]))
    return pairs


@pytest.mark.parametrize(
    "number", [2_000, pytest.param(100_000, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_none_raises_and_all_come_back(number: int) -> None:
    reasons = Counter[str]()
    with GradingPool(2, timeout_s=1.0) as pool:
        for start in range(0, number, 2_000):
            verdicts = pool.grade_many(answers(min(2_000, number - start), start))
            reasons.update(str(verdict.reason) for verdict in verdicts)
        # A right answer is right after all of that.
        (good,) = pool.grade_many([(r"\boxed{0.5}", r"\frac{1}{2}")])
    assert good.correct and sum(reasons.values()) == number
    assert set(reasons) <= {"match", "mismatch", "no_answer", "timeout", "crash"}
    assert reasons["timeout"] + reasons["crash"] <= number / 100
