# SPDX-License-Identifier: Apache-2.0
"""Experience sampled from a policy: what is kept, refilled, cut and resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from satori_fast.algorithms.credit import CreditRule, GroupMean, LeaveOneOut
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.data.cursor import ProblemCursor
from satori_fast.experience.online import OnlineSource
from satori_fast.experience.source import Judge
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rollout.engine import SamplingParams
from satori_fast.rollout.restarting import Restarting
from satori_fast.types import Problem, RewardBreakdown, Trajectory
from tests.rollout.scripted_engine import ScriptedEngine
from tests.rollout.test_engine import RENDERER
from tests.rollout.test_restarting import NoWeights

# Question to what its two siblings answer; "1" is right.
ANSWERS = {
    "sum 1": ["1", "2"],
    "sum 2": ["1", "1"],
    "sum 3": ["2", "2"],
    "sum 4": ["2", "1"],
    "sum 5": ["1", "2"],
    "sum 6": ["1", "1"],
}
PROBLEMS = [Problem(question[-1], question, "1") for question in ANSWERS]


class Feed:
    """Problems in the order of their list, for ever."""

    def __init__(self) -> None:
        self.cursor = ProblemCursor(PROBLEMS, shuffle=False)
        self.asked: list[int] = []

    def take(self, num_problems: int, *, step: int) -> list[Problem]:
        self.asked.append(num_problems)
        return self.cursor.take(num_problems)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.cursor.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor.load_state_dict(state)


class CountingRule(CreditRule):
    """A rule that remembers how many trajectories it has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def assign(self, trajectories: Sequence[Trajectory]) -> list[Any]:
        self.seen += len(trajectories)
        return LeaveOneOut().assign(trajectories)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


def score(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Reward 1 for the answer 1, else 0."""
    rights = ["1" in t.segments[0].text for t in trajectories]
    return [
        t.with_reward(RewardBreakdown({"rule": float(right)}, correct=right))
        for t, right in zip(trajectories, rights, strict=True)
    ]


def source_of(
    *, max_rounds: int = 1, min_group_std: float | None = 1e-6, rule: Any = None, size: int = 2
) -> tuple[OnlineSource, Feed, ScriptedEngine]:
    engine, feed, spans = ScriptedEngine(RENDERER, ANSWERS), Feed(), SpanRecorder()
    source = OnlineSource(
        Restarting(engine, initialize_parallel(seed=0), max_restarts=0),
        feed,
        Judge(score, rule or GroupMean(divide_by_std=False), min_group_std, spans.span),
        sampling=lambda step: SamplingParams(num_samples=2, seed=step),
        problems_per_step=size,
        max_rounds=max_rounds,
    )
    return source, feed, engine


def questions(trajectories: Sequence[Trajectory]) -> list[str]:
    return [t.problem.question for t in trajectories[::2]]


def test_one_round_keeps_what_is_informative() -> None:
    source, feed, _ = source_of()
    experience = source.next(0)
    assert questions(experience.sampled) == ["sum 1", "sum 2"]
    assert questions(experience.trajectories) == ["sum 1"]
    assert experience.credits is not None
    advantages = [float((c.values - c.baselines)[0]) for c in experience.credits]
    assert advantages == [0.5, -0.5]
    assert experience.stats["rollout/kept"] == 0.5 and feed.asked == [2]
    assert experience.stats["generated_tokens"] == 8  # two tokens each, the end included
    assert "rollout/num_rounds" not in experience.stats


def test_scoring_begins_with_each_response_before_the_last_is_sampled() -> None:
    engine, spans, told = ScriptedEngine(RENDERER, ANSWERS), SpanRecorder(), list[Trajectory]()

    def scored(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        assert {id(t) for t in trajectories} == {id(t) for t in told}
        return score(trajectories)

    source = OnlineSource(
        Restarting(engine, initialize_parallel(seed=0), max_restarts=0),
        Feed(),
        Judge(scored, GroupMean(divide_by_std=False), None, spans.span, begin=told.append),
        sampling=lambda step: SamplingParams(num_samples=2, seed=step),
        problems_per_step=2,
    )
    assert len(source.next(0).sampled) == len(told) == 4


def test_rounds_go_on_until_the_batch_is_full_and_the_first_groups_stay() -> None:
    source, feed, engine = source_of(max_rounds=5)
    experience = source.next(0)
    # 1 and 2, then 3 and 4; of 4 groups the two that differ are enough.
    assert questions(experience.sampled) == ["sum 1", "sum 2", "sum 3", "sum 4"]
    assert questions(experience.trajectories) == ["sum 1", "sum 4"]
    assert [t.group_id for t in experience.sampled] == [0, 0, 1, 1, 2, 2, 3, 3]
    counted = {
        k: v for k, v in experience.stats.items() if k.startswith(("rollout/g", "rollout/n"))
    }
    assert counted == {
        "rollout/num_rounds": 2.0,
        "rollout/groups_sampled": 4.0,
        "rollout/groups_uniform": 2.0,
        "rollout/groups_surplus": 0.0,
    }
    assert feed.asked == [2, 2]
    # Seeds go on over the rounds: the second round is not the first one again.
    assert [r.seed for r in engine.requests] == [
        r.seed for r in requests_of(problems=4, seed=0)[4:]
    ]


def requests_of(*, problems: int, seed: int) -> list[Any]:
    from satori_fast.rollout.engine import collect

    engine = ScriptedEngine(RENDERER, ANSWERS)
    collect(engine, PROBLEMS[:problems], SamplingParams(num_samples=2, seed=seed))
    return engine.requests


def test_what_is_over_is_dropped_in_order() -> None:
    source, _, _ = source_of(max_rounds=2, size=3)
    experience = source.next(0)
    # 1 of the first three differs, 2 of the next three: exactly full.
    assert questions(experience.trajectories) == ["sum 1", "sum 4", "sum 5"]
    source, _, _ = source_of(max_rounds=9, size=1)
    source.next(0)
    experience = source.next(1)  # 2, 3, 4
    assert questions(experience.sampled) == ["sum 2", "sum 3", "sum 4"]
    source, _, _ = source_of(max_rounds=2, size=4)
    experience = source.next(0)  # 1 and 4 of four; then 5, 1 (again) of four more: four in all
    assert questions(experience.trajectories) == ["sum 1", "sum 4", "sum 5", "sum 1"]
    assert experience.stats["rollout/groups_surplus"] == 0.0


def test_the_bound_holds_and_a_part_is_better_than_nothing() -> None:
    source, feed, _ = source_of(max_rounds=1, size=1)
    source.next(0)
    assert source.next(1).trajectories == ()
    source, feed, _ = source_of(max_rounds=2, size=3)
    source.next(0)
    assert len(feed.asked) == 2
    experience = source.next(1)  # 1 2 3, 4 5 6: again three
    assert questions(experience.trajectories) == ["sum 1", "sum 4", "sum 5"]
    # A rule that keeps every group has nothing to refill.
    source, feed, _ = source_of(max_rounds=3, min_group_std=None)
    assert len(source.next(0).trajectories) == 4 and feed.asked == [2]


@pytest.mark.parametrize("max_rounds", [1, 4])
def test_a_saved_state_goes_on_with_the_same_experience(max_rounds: int) -> None:
    rule, other = CountingRule(), CountingRule()
    source, _, _ = source_of(max_rounds=max_rounds, rule=rule)
    source.next(0)
    saved = json.loads(json.dumps(source.state_dict()))
    resumed, _, _ = source_of(max_rounds=max_rounds, rule=other)
    resumed.load_state_dict(saved)
    assert other.seen == rule.seen > 0
    for step in (1, 2):
        expected, got = source.next(step), resumed.next(step)
        assert [t.tokens.tolist() for t in got.sampled] == [
            t.tokens.tolist() for t in expected.sampled
        ]
        assert got.stats == expected.stats
    assert source.state_dict() == resumed.state_dict()


def test_sync_moves_the_version_of_what_is_sampled_next() -> None:
    source, _, _ = source_of()
    source.sync(NoWeights(), version=4)
    experience = source.next(4)
    assert experience.policy_version == 4
    assert {t.policy_version for t in experience.sampled} == {4}
