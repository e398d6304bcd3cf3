# SPDX-License-Identifier: Apache-2.0
"""The protocol of a source of experience, and what sources share: scoring, filtering, crediting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from satori_fast.algorithms.credit import CreditRule, bootstrapped
from satori_fast.rewards.terms import drop_uninformative_groups
from satori_fast.rollout.restarting import ServedWeights
from satori_fast.rollout.weight_sync import SyncReport
from satori_fast.types import Experience, Problem, Trajectory, groups_of

# The same trajectories with their reward, the same on every rank.
Score = Callable[[Sequence[Trajectory]], list[Trajectory]]
# A named part of a step is timed while the context is open.
Span = Callable[[str], AbstractContextManager[Any]]
Cut = Literal["learn", "drop", "bootstrap"]


class ExperienceSource(Protocol):
    """A source of what a policy learns from, step by step; every rank calls it alike."""

    def next(self, step: int) -> Experience:
        """The experience of a step; the same on every rank. Steps come in order."""
        ...

    def sync(self, weights: ServedWeights, *, version: int) -> SyncReport | None:
        """Sample from `weights` from now on; None where nothing is sampled."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: what a resumed run goes on from with the same trajectories."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        ...


class ProblemFeed(Protocol):
    """An endless order of problems that can be resumed."""

    def take(self, num_problems: int, *, step: int) -> list[Problem]:
        """The next problems; steps come in order."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Judge:
    """The way from samples to experience: scores, groups that are kept, credit.

    score:         gives the rewards, and times itself.
    credit:        rule of the recipe; its state, if it has any, is part of a source's.
    min_group_std: groups whose rewards have a standard deviation of at most this carry no signal
                   and are dropped; None keeps every group.
    span:          times a part of a step. figures: takes what the rewards counted since the last
                   time, under metric names.
    begin:         starts to score a response that is whole, while others are sampled.
    cut:           what becomes of responses that the length limit cut: they are learnt from like
                   others ("learn"), left out of their groups and of the loss ("drop"), or valued by
                   the critic where they were cut ("bootstrap").
    """

    score: Score
    credit: CreditRule
    min_group_std: float | None
    span: Span
    figures: Callable[[], Mapping[str, float]] | None = None
    begin: Callable[[Trajectory], None] | None = None
    cut: Cut = "learn"

    def informative(self, scored: Sequence[Trajectory]) -> list[Trajectory]:
        """Select the groups that a group baseline leaves a signal, of responses that count."""
        if self.cut == "drop":
            scored = [t for t in scored if t.finish != "length"]
        if self.min_group_std is None:
            return list(scored)
        return drop_uninformative_groups(scored, self.min_group_std)

    def experience(
        self,
        kept: Sequence[Trajectory],
        sampled: Sequence[Trajectory],
        *,
        policy_version: int,
        stats: Mapping[str, float],
    ) -> Experience:
        """Build what an update learns from: `kept` of `sampled`, credited."""
        figures = {} if self.figures is None else self.figures()
        credits = self.credit.assign(kept)
        if self.cut == "bootstrap":
            credits = bootstrapped(kept, credits)
        return Experience(
            trajectories=tuple(kept),
            credits=tuple(credits),
            sampled=tuple(sampled),
            policy_version=policy_version,
            stats={**stats, **figures},
        )


def num_groups(trajectories: Sequence[Trajectory]) -> int:
    """Number of groups of siblings."""
    return len(groups_of(trajectories))


def first_groups(trajectories: Sequence[Trajectory], number: int) -> list[Trajectory]:
    """Trajectories of the first `number` groups, in the order in which they come."""
    wanted = {index for group in groups_of(trajectories)[:number] for index in group}
    return [t for index, t in enumerate(trajectories) if index in wanted]
