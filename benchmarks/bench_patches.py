# SPDX-License-Identifier: Apache-2.0
"""Seconds to judge a patch: the gold patches of the small repositories, four at a time.

A patch's seconds are those of its verdict (application, sandbox, tests), while three others are
judged beside it. The target is stated for two quiet cores.
"""

from __future__ import annotations

import os
import statistics
from typing import Any

from benchmarks import measure
from satori_fast.evaluation.patches import PatchVerdict, judge_all
from satori_fast.evaluation.repositories import small_repositories

NUM_AT_ONCE = 4
REPEATS = 5
TARGET_S = 2.0  # for the slowest of a round


def test_judging_gold_patches(benchmark: Any, request: Any) -> None:
    repositories = small_repositories()
    gold = [repository.gold_patch for repository in repositories]

    def judged() -> list[PatchVerdict]:
        return judge_all(repositories, gold, num_at_once=NUM_AT_ONCE)

    rounds: list[list[PatchVerdict]] = []
    benchmark.pedantic(lambda: rounds.append(judged()), rounds=REPEATS, warmup_rounds=1)
    assert {verdict.reason for verdicts in rounds for verdict in verdicts} == {"resolved"}
    rounds = rounds[1:]
    slowest = statistics.median(max(v.seconds for v in verdicts) for verdicts in rounds)
    seconds = [verdict.seconds for verdicts in rounds for verdict in verdicts]
    table = {
        "command": f'python -m pytest "{request.node.nodeid}" --benchmark-only',
        "cores": len(os.sched_getaffinity(0)),
        "load_average": measure.significant(os.getloadavg()[0], 2),
        "patches": len(gold),
        "at_once": NUM_AT_ONCE,
        "repeats": REPEATS,
        "all_s": measure.significant(statistics.median(benchmark.stats.stats.data)),
        "median_s": measure.significant(statistics.median(seconds)),
        "slowest_of_a_round_s": measure.significant(slowest),
        "by_repository_s": {
            repository.name: measure.significant(statistics.median(v.seconds for v in verdicts))
            for repository, verdicts in zip(repositories, zip(*rounds, strict=True), strict=True)
        },
        "target_s": TARGET_S,
        "met": slowest < TARGET_S,
    }
    measure.record("patches", {"gold": table})
    benchmark.extra_info.update(table)
