# SPDX-License-Identifier: Apache-2.0
"""Responses judged in a thread: all of them, in the order of their problems."""

from __future__ import annotations

import pytest

from satori_fast.evaluation.benchmark_sets import problem_set
from satori_fast.evaluation.code_answers import CallRunner
from satori_fast.evaluation.judges import Judges
from satori_fast.evaluation.responses import Response
from satori_fast.grading import GradingPool
from satori_fast.types import Problem

SETS = [
    problem_set(name, [Problem(f"{name}/{n}", "?", str(n)) for n in range(size)])
    for name, size in (("long", 150), ("short", 3))
]


def response(name: str, n: int) -> Response:
    segments = (("whole", rf"\boxed{{{n if n % 3 else -1}}}"),)
    return Response(name, f"{name}/{n}", 0, "?", segments, 5, "stop", ())


def test_all_are_judged_in_the_order_of_their_problems() -> None:
    judges = Judges(SETS, GradingPool(num_workers=0), {}, CallRunner())
    judges.add(response("long", n) for n in reversed(range(150)))
    judges.add([response("short", 1)])
    found = judges.result()
    judges.close()
    assert [each.item.problem.problem_id for each in found["long"]] == [
        f"long/{n}" for n in range(150)
    ]
    assert [each.judgement.house for each in found["long"]] == [bool(n % 3) for n in range(150)]
    assert len(found["short"]) == 1


def test_an_error_of_judging_is_raised() -> None:
    judges = Judges(SETS[1:], GradingPool(num_workers=0), {}, CallRunner())
    judges.add([response("short", 7)])
    with pytest.raises(KeyError, match="short/7"):
        judges.result()
    judges.close()
