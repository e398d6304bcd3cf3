# SPDX-License-Identifier: Apache-2.0
"""Verdicts of a shared grader: the same on every rank, and counted since they were taken."""

from __future__ import annotations

from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.grading import GradingPool
from satori_fast.stages.grader import SharedGrader
from tests.rollout.test_distributed import on_ranks

PAIRS = [("the answer is \\boxed{1}", "1"), ("\\boxed{2}", "1"), ("\\boxed{3}", "3"), ("4", "4")]


def test_verdicts_are_the_same_on_every_rank() -> None:
    with GradingPool(num_workers=0) as pool:
        for verdicts in on_ranks(lambda rank: SharedGrader(pool, rank).grade_many(PAIRS)):
            assert [v.correct for v in verdicts] == [True, False, True, False]


def test_figures_count_all_verdicts_since_they_were_taken() -> None:
    with GradingPool(num_workers=0) as pool:
        grader = SharedGrader(pool, initialize_parallel(seed=0))
        grader.grade_many(PAIRS)
        grader.grade_many(PAIRS[:1])
        assert grader.take_figures() == {
            "grading/graded": 5.0,
            "grading/no_answer": 1.0,
            "grading/timeouts": 0.0,
            "grading/crashes": 0.0,
        }
        assert grader.take_figures()["grading/graded"] == 0.0
