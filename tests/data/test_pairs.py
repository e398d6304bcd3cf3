# SPDX-License-Identifier: Apache-2.0
"""Pairs are right x wrong of one problem, drawn without repetition; all end with end of text."""

from __future__ import annotations

import numpy as np
import pytest

from satori_fast.data.pairs import finished, form_pairs
from satori_fast.types import Problem, Segment, SegmentKind, Trajectory

EOS = 7


def solution(problem_id: str, first: int, *, ends: bool = True) -> Trajectory:
    return Trajectory(
        problem=Problem(problem_id, "q", "a"),
        group_id=0,
        tokens=np.array([1, first, 5, EOS if ends else 6], dtype=np.int32),
        prompt_len=1,
        logprobs=np.zeros(3, dtype=np.float32),
        policy_version=0,
        finish="stop" if ends else "length",
        segments=(Segment(SegmentKind.WHOLE, 0, 3, ""),),
    )


def graded(problem_id: str, *verdicts: bool) -> list[tuple[Trajectory, bool]]:
    return [(solution(problem_id, 10 + i), right) for i, right in enumerate(verdicts)]


GROUPS = [
    graded("mixed", True, False, True, False, False),
    graded("all right", True, True),
    graded("all wrong", False, False),
    graded("two", False, True),
]


def pairs_of(max_per_problem: int, seed: int = 0) -> list[tuple[str, int, int]]:
    pairs = form_pairs(
        GROUPS, max_per_problem=max_per_problem, eos_id=EOS, rng=np.random.default_rng(seed)
    )
    assert all(p.chosen.problem == p.rejected.problem for p in pairs)
    return [
        (p.chosen.problem.problem_id, int(p.chosen.tokens[1]), int(p.rejected.tokens[1]))
        for p in pairs
    ]


def test_every_right_one_meets_every_wrong_one() -> None:
    expected = [("mixed", right, wrong) for right in (10, 12) for wrong in (11, 13, 14)]
    assert sorted(pairs_of(100)) == sorted([*expected, ("two", 11, 10)])


def test_a_problem_gives_a_limited_number_of_different_pairs() -> None:
    few = pairs_of(4)
    assert [name for name, _, _ in few] == ["mixed"] * 4 + ["two"]
    assert len(set(few)) == 5 and set(few) <= set(pairs_of(100))
    assert few == pairs_of(4)
    assert few != pairs_of(4, seed=1)


@pytest.mark.parametrize("ends", [True, False])
def test_finished_ends_with_end_of_text_at_the_same_length(ends: bool) -> None:
    before = solution("p", 10, ends=ends)
    after = finished(before, EOS)
    assert after.tokens.tolist() == [1, 10, 5, EOS]
    assert (after is before) == ends
    assert before.tokens[-1] == (EOS if ends else 6)


def test_cut_solutions_are_finished_in_pairs() -> None:
    cut = [(solution("p", 10, ends=False), True), (solution("p", 11, ends=False), False)]
    (pair,) = form_pairs([cut], max_per_problem=1, eos_id=EOS, rng=np.random.default_rng(0))
    assert pair.chosen.tokens[-1] == pair.rejected.tokens[-1] == EOS
    assert pair.num_tokens == 8
