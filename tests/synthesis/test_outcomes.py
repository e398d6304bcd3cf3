# SPDX-License-Identifier: Apache-2.0
"""Problems side by side: their order, their limit, and random streams of their own."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from satori_fast.synthesis.agents import Unusable
from satori_fast.synthesis.outcomes import Outcome, outcomes_in_order, problem_stream
from satori_fast.types import Problem

PROBLEMS = [Problem(str(number), "1 + 1", "2") for number in range(6)]


@pytest.mark.parametrize("num_concurrent", [1, 2, 6, 99])
def test_outcomes_come_in_the_order_of_the_problems(num_concurrent: int) -> None:
    begun: list[str] = []

    async def work(problem: Problem) -> Outcome:
        begun.append(problem.problem_id)
        # Later problems are done sooner.
        for _ in range(2 * (len(PROBLEMS) - int(problem.problem_id))):
            await asyncio.sleep(0)
        return Outcome(problem)

    async def all_of_them() -> list[str]:
        found: list[str] = []
        async for outcome in outcomes_in_order(work, PROBLEMS, num_concurrent=num_concurrent):
            found.append(outcome.problem.problem_id)
            assert len(begun) - len(found) <= max(num_concurrent, len(PROBLEMS) - len(found))
        return found

    assert asyncio.run(all_of_them()) == [problem.problem_id for problem in PROBLEMS]
    assert sorted(begun) == sorted(problem.problem_id for problem in PROBLEMS)


def test_what_is_dropped_is_counted_with_its_first_example() -> None:
    outcome = Outcome(PROBLEMS[0])
    for text in ("a", "b"):
        outcome.drop(Unusable("too_short", text))
    assert outcome.counts == {"dropped/too_short": 2} and outcome.faults == {"too_short": "a"}


def test_streams_depend_on_the_seed_and_on_the_problem() -> None:
    draws = {
        (seed, name): problem_stream(seed, name).integers(2**62)
        for seed in (0, 1)
        for name in ("a", "b", "aa")
    }
    assert len(set(draws.values())) == len(draws)
    assert problem_stream(1, "b").integers(2**62) == draws[1, "b"]
    assert isinstance(problem_stream(0, ""), np.random.Generator)
