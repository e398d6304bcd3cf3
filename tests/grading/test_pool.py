# SPDX-License-Identifier: Apache-2.0
"""The pool of killable workers: limits, crashes, caching, closing, and gold answers that hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.grading import GradingPool, Verdict
from tests.grading.test_verdict import boxed

RUNAWAY = "9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    with GradingPool(1, timeout_s=3.0) as pool:
        yield pool


def test_cheap_answers_start_no_process(pool: GradingPool) -> None:
    verdicts = pool.grade_many([("no box", "5"), (boxed("5"), "5"), (boxed("6"), "5")])
    assert [v.reason for v in verdicts] == ["no_answer", "match", "mismatch"]
    assert pool._workers[0]._process is None
    assert pool.graded == 3


def test_runaway_answer_is_killed_and_the_pool_goes_on(pool: GradingPool) -> None:
    before = pool.timeouts
    verdicts = pool.grade_many(
        [(boxed(r"\frac{2}{4}"), "0.5"), (boxed(RUNAWAY), "5"), (boxed(r"\frac{3}{6}"), "0.5")]
    )
    assert [v.reason for v in verdicts] == ["match", "timeout", "match"]
    assert verdicts[1] == Verdict(False, RUNAWAY, "timeout")
    assert pool.timeouts == before + 1


def test_equal_answers_are_graded_once(pool: GradingPool) -> None:
    graded, hits = pool.graded, pool.cache_hits
    verdicts = pool.grade_many([(boxed("x+x"), "2x")] * 5)
    assert all(v.correct for v in verdicts)
    assert (pool.graded - graded, pool.cache_hits - hits) == (5, 4)
    pool.grade_many([(boxed("x+x"), "2x")])
    assert pool.cache_hits - hits == 5


def test_dead_worker_is_a_crash_and_is_replaced() -> None:
    with GradingPool(1, timeout_s=30.0) as pool:
        assert pool.grade_many([(boxed("x+x"), "2x")])[0].correct
        process = pool._workers[0]._process
        assert process is not None
        worker = psutil.Process(process.pid)
        idle_s = worker.cpu_times().user
        future = pool.submit(boxed(RUNAWAY), "5")
        # Killed before the answer reaches it, the worker would be replaced unnoticed.
        deadline = time.monotonic() + 20
        while worker.cpu_times().user < idle_s + 0.1 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert future.result(timeout=20) == Verdict(False, RUNAWAY, "crash")
        assert pool.crashes == 1
        assert pool.grade_many([(boxed("y+y"), "2y")])[0].correct


def test_worker_killed_while_idle_is_replaced_unnoticed() -> None:
    with GradingPool(1) as pool:
        pool.grade_many([(boxed("x+x"), "2x")])
        process = pool._workers[0]._process
        assert process is not None
        process.kill()
        process.wait()
        assert pool.grade_many([(boxed("y+y"), "2y")])[0].reason == "match"


def test_pool_works_from_other_threads(pool: GradingPool) -> None:
    reasons: list[str] = []

    def work(letter: str) -> None:
        verdicts = pool.grade_many([(boxed(f"{letter}+{letter}"), f"2{letter}"), ("", "1")])
        reasons.extend(v.reason for v in verdicts)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "pqr"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reasons) == ["match"] * 3 + ["no_answer"] * 3


def test_closing_does_not_wait_for_a_runaway_answer() -> None:
    pool = GradingPool(1, timeout_s=60.0)
    future = pool.submit(boxed(RUNAWAY), "5")
    waiting = pool.submit(boxed(r"\frac{1}{2}"), "x")
    start = time.perf_counter()
    pool.close()
    assert time.perf_counter() - start < 20.0
    for unfinished in (future, waiting):
        with pytest.raises(CancelledError):
            unfinished.result(timeout=0)
    with pytest.raises(ValueError, match="closed"):
        pool.submit("", "5")


def test_zero_workers_grade_in_the_caller() -> None:
    with GradingPool(0) as pool:
        assert [v.reason for v in pool.grade_many([(boxed("x+x"), "2x")] * 2)] == ["match"] * 2
        assert (pool.graded, pool.cache_hits) == (2, 1)


def test_cache_is_bounded() -> None:
    with GradingPool(0, cache_size=2) as pool:
        pool.grade_many([(boxed(f"x+{i}x"), "x^2") for i in range(5)])
        assert len(pool._cache) == 2


HANGING_GOLD = r"\binom{2000000}{1000000}+\sin(9^{9^{9^{9}}})"


def test_golds_are_checked_under_the_limit_in_order() -> None:
    deep = "(" * 5_000 + "1" + ")" * 5_000
    golds = ["5", "", HANGING_GOLD, RUNAWAY, r"\frac{1}{", r"2\sqrt{3}", deep, "yes"]
    with GradingPool(2, timeout_s=2.0) as pool:
        faults = pool.check_golds(golds)
        assert faults == [
            None,
            "is empty",
            "takes longer than 2 s to read",
            "takes longer than 2 s to read",
            "cannot be read as an expression",
            None,
            "cannot be read as an expression",
            None,
        ]
        assert pool.graded == 0
    with pytest.raises(ValueError, match="closed"):
        pool.check_golds(["5"])


def test_golds_are_checked_in_the_caller_without_workers() -> None:
    with GradingPool(0) as pool:
        assert pool.check_golds(["5", r"x^2", "1 2"]) == [
            None,
            None,
            "cannot be read as an expression",
        ]


def test_plain_golds_start_no_process() -> None:
    with GradingPool(1) as pool:
        assert pool.check_golds(["5", "1,000", r"\frac{1}{2}"]) == [None] * 3
        assert pool._workers[0]._process is None


def test_responses_without_an_answer_are_counted_apart() -> None:
    with GradingPool(0) as pool:
        pool.grade_many([("5", "5"), (boxed("6"), "5"), (r"\boxed{}", "5"), (boxed("5"), "5")])
        assert (pool.graded, pool.no_answers) == (4, 2)


@given(st.text(alphabet=r"\\{}[]()_0123456789.,:;xyI%$|<>=+-/ abmorndtqu", max_size=40))
@settings(max_examples=150, deadline=None)
def test_no_text_is_an_error(text: str) -> None:
    with GradingPool(0) as pool:
        verdict = pool.grade_many([(f"\\boxed{{{text}}}", "7x+1")])[0]
    assert verdict.reason in ("match", "mismatch", "no_answer")


GOLDS = (
    *("7", "-3", r"\frac{3}{4}", r"2\sqrt{3}", "x^2+2x+1", "(1,2)", r"[0,\infty)", "6 - 5i", "3.5"),
    *(r"\{1,2,3\}", r"90^\circ", r"\text{east}", r"12\text{ cm}", "x=5", "y = 2x + 3", r"50\%"),
    *(
        "1:2",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        r"(-\infty, 2) \cup (3, \infty)",
        "B",
        r"2\pi",
    ),
)
PIECES = (
    *(
        *"{}()[]^_$190+-/*xyei!%,;:=<&|\"'AB \n",
        "\\",
        "\\\\",
        "0.3",
        "(B)",
        "True",
        "km",
        "hours",
        "...",
    ),
    *(
        r"\boxed{",
        r"\frac",
        r"\sqrt",
        r"\cdot",
        r"\pi",
        r"\le",
        r"\in",
        r"\cup",
        r"\infty",
        r"\text{",
    ),
    *(
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        r"\int_0^1",
        r"\lim_{x\to0}",
        r"\log",
        r"\sin",
        r"\left(",
    ),
    *(
        r"\right)",
        r"\overline{3}",
        "n!",
        "mod",
        "\u00e9",
        "\u200b",
        "\uff11",
        "\u221e",
        "\u221a",
        "\xb2",
    ),
    *("\x00", "\xb0", "\U0001f600"),
)
RUNAWAYS = (RUNAWAY, "10^{10^{10}}", r"\sum_{k=1}^{10^9}k", r"\binom{10^6}{5}")


def hostile_answer(rng: np.random.Generator) -> str:
    """Pieces of LaTeX, a damaged gold, any letters, or two golds; one in 500 computes for ever."""

    def pieces(most: int) -> str:
        return "".join(PIECES[n] for n in rng.integers(len(PIECES), size=rng.integers(most + 1)))

    gold, other = (GOLDS[n] for n in rng.integers(len(GOLDS), size=2))
    begin, end = sorted(rng.integers(0, len(gold) + 1, 2))
    answer = (
        pieces(12),
        gold[:begin] + pieces(3) + gold[end:],
        "".join(map(chr, rng.integers(32, 0x3000, size=rng.integers(1, 30)))),
        gold + pieces(1) + other,
    )[rng.integers(4)]
    return answer + (RUNAWAYS[rng.integers(len(RUNAWAYS))] if rng.random() < 0.002 else "")


@pytest.mark.slow
def test_a_hundred_thousand_hostile_answers_neither_raise_nor_outlive_the_limit() -> None:
    rng = np.random.default_rng([20])
    golds = [GOLDS[n] for n in rng.integers(len(GOLDS), size=100_000)]
    with GradingPool(2, timeout_s=0.5) as pool:
        verdicts = pool.grade_many((boxed(hostile_answer(rng)), gold) for gold in golds)
        assert {verdict.reason for verdict in verdicts} >= {"match", "mismatch", "timeout"}
        assert pool.graded == len(verdicts) == 100_000
        # Runaways are killed or wrong, a few of the others are late where a worker just started.
        assert pool.timeouts + pool.crashes < 1_000
        assert pool.grade_many([(boxed(r"\frac{14x}{2}"), "7x")])[0].correct


@pytest.mark.parametrize(("num_workers", "timeout_s"), [(-1, 1.0), (1, 0.0)])
def test_pool_arguments_are_checked(num_workers: int, timeout_s: float) -> None:
    with pytest.raises(ValueError, match=r"num_workers|timeout_s"):
        GradingPool(num_workers, timeout_s)


def test_workers_hold_no_torch_and_importing_the_grader_is_light() -> None:
    program = (
        "import sys, satori_fast.grading as g; heavy = {'torch', 'sympy', 'math_verify', 'numpy'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "g.equivalent('x+x', '2x'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
