# SPDX-License-Identifier: Apache-2.0
"""The table of scripted agents: a row for each built-in domain, whose agents know it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from satori_fast.data.domains import DOMAINS
from satori_fast.grading import grade
from satori_fast.synthesis.agents import Unusable
from satori_fast.synthesis.scripted_agents import SCRIPTED_AGENTS

EASIEST = {"arithmetic": 1, "chains": 4, "word_problems": 1}


def test_every_domain_has_a_row() -> None:
    assert SCRIPTED_AGENTS.keys() == DOMAINS.keys()


@pytest.mark.parametrize("name", sorted(SCRIPTED_AGENTS))
def test_agents_know_their_domain(name: str) -> None:
    row = SCRIPTED_AGENTS[name]
    (problem,) = DOMAINS[name].problems(1, levels=[EASIEST[name]], split="train", seed=0)
    rng = np.random.default_rng(0)
    solutions = asyncio.run(row.generators["chance"](0.5).solve(problem, 40, rng))
    assert problem.answer is not None
    right: dict[bool, tuple[str, ...]] = {}
    for solution in solutions:
        assert not isinstance(solution, Unusable)
        right[grade(" ".join(solution), problem.answer).correct] = solution
    critic = row.critics["worked"]()
    critique = asyncio.run(critic.criticise(problem, right[False], transcript="", rng=rng))
    assert not critique.mistake.rstrip(".").endswith("right")
    confirmed = asyncio.run(critic.verify(problem, right[True], rng=rng))
    assert confirmed.rstrip(".").endswith("right")
    assert asyncio.run(row.reward_model().score(problem, " ".join(right[True]))) == 0
