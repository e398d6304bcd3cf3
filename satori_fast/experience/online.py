# SPDX-License-Identifier: Apache-2.0
"""Experience sampled from the current policy, refilled until the batch is full.

Dynamic sampling (DAPO, arXiv 2503.14476 section 3.2; SRL, arXiv 2510.25992 section 3): groups in
which every sibling earned the same teach nothing, and are replaced by groups of new problems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from satori_fast.experience.source import Judge, ProblemFeed, Span, first_groups, num_groups
from satori_fast.rollout.engine import SamplingParams, collect
from satori_fast.rollout.restarting import Restarting, ServedWeights
from satori_fast.rollout.weight_sync import SyncReport
from satori_fast.types import Experience, Problem, RolloutResult, Trajectory


class OnlineSource:
    """Samples problems from an engine, in rounds; a group is whole when it comes back.

    sampling:          of a step, its seed included; seeds differ between steps.
    problems_per_step: groups that an update learns from, and problems of a round.
    max_rounds:        sampling goes on, `problems_per_step` new problems at a time, until so many
                       groups are informative, at most this often. What is over is dropped: the
                       groups sampled first stay. 1: one round, whatever is left of it.
    sleep:             the engine gives its memory back while the trainer works.

    Group numbers go on over the rounds of a step, so that no two requests have the same seed.
    """

    def __init__(
        self,
        engine: Restarting,
        problems: ProblemFeed,
        judge: Judge,
        *,
        sampling: Callable[[int], SamplingParams],
        problems_per_step: int,
        max_rounds: int = 1,
        sleep: bool = False,
    ) -> None:
        self.engine = engine
        self._problems = problems
        self._judge = judge
        self._sampling = sampling
        self._problems_per_step = problems_per_step
        self._max_rounds = max_rounds
        self._sleep = sleep

    @property
    def _span(self) -> Span:
        return self._judge.span

    def next(self, step: int) -> Experience:
        """The experience of a step: rounds of samples until the batch is full."""
        passes_before = self.engine.num_passes
        rollouts: list[RolloutResult] = []
        sampled: list[Trajectory] = []
        kept: list[Trajectory] = []
        while len(rollouts) < self._max_rounds:
            problems = self._problems.take(self._num_problems(), step=step)
            rollouts.append(self._sample(problems, step, first_group=num_groups(sampled)))
            scored = self._judge.score(rollouts[-1].trajectories)
            sampled += scored
            kept += self._judge.informative(scored)
            if num_groups(kept) >= self._problems_per_step:
                break
        stats = _counts(rollouts, sampled, kept)
        if self._max_rounds > 1:
            stats |= {"rollout/num_rounds": float(len(rollouts))} | self._cut(sampled, kept)
            kept = first_groups(kept, self._problems_per_step)
        stats |= self.engine.metrics()
        stats["passes"] = float(self.engine.num_passes - passes_before)
        version = rollouts[-1].policy_version
        return self._judge.experience(kept, sampled, policy_version=version, stats=stats)

    def _num_problems(self) -> int:
        return self._problems_per_step

    def _sample(self, problems: Sequence[Problem], step: int, *, first_group: int) -> RolloutResult:
        with self._span("rollout"):
            self.engine.wake()
            rollout = self._collect(problems, self._sampling(step), first_group=first_group)
            if self._sleep:
                self.engine.sleep()
        return rollout

    def _collect(
        self, problems: Sequence[Problem], sampling: SamplingParams, *, first_group: int
    ) -> RolloutResult:
        begin = self._judge.begin
        return collect(self.engine, problems, sampling, first_group=first_group, finished=begin)

    def _cut(self, sampled: Sequence[Trajectory], kept: Sequence[Trajectory]) -> dict[str, float]:
        """Groups of a refilled step: sampled, dropped as uniform, and left over."""
        num_sampled, num_kept = num_groups(sampled), num_groups(kept)
        return {
            "rollout/groups_sampled": float(num_sampled),
            "rollout/groups_uniform": float(num_sampled - num_kept),
            "rollout/groups_surplus": float(max(0, num_kept - self._problems_per_step)),
            "rollout/discard_rate": 1 - num_kept / num_sampled,
        }

    def sync(self, weights: ServedWeights, *, version: int) -> SyncReport:
        """Sample from `weights` from now on."""
        self.engine.wake()
        return self.engine.sync(weights, version=version)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: where the problems stand, and the state of the credit rule."""
        return {
            "problems": self._problems.state_dict(),
            "credit": self._judge.credit.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._problems.load_state_dict(state["problems"])
        self._judge.credit.load_state_dict(state["credit"])


def _counts(
    rollouts: Sequence[RolloutResult], sampled: Sequence[Trajectory], kept: Sequence[Trajectory]
) -> dict[str, float]:
    counts = {
        "prompt_tokens": float(sum(r.num_prompt_tokens for r in rollouts)),
        "generated_tokens": float(sum(r.num_generated_tokens for r in rollouts)),
    }
    if sampled:
        counts["rollout/kept"] = len(kept) / len(sampled)
    return counts
