# SPDX-License-Identifier: Apache-2.0
"""Credit of single actions against what actions in the same place earn (S2R, arXiv 2502.12853,
section 2.3).

An action is a solution or a verification that was judged right or wrong (`rewards.process`): it
earns 1 or -1. What is expected of it is the mean over actions of its kind, of all problems, with
the same history. Over a set that is known beforehand, the share of right responses to the problem
may count too, or the place of the action. Baselines from siblings of one problem are `credit`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from satori_fast.algorithms.credit import CreditRule
from satori_fast.types import Credit, SegmentKind, Trajectory

Values = npt.NDArray[np.float64]
OfflineBaseline = Literal["accuracy_position", "accuracy_context", "context"]
# Actions seen, and right ones among them, by key.
Counts = tuple[Counter[str], Counter[str]]

_LETTERS = {SegmentKind.SOLVE: "R", SegmentKind.VERIFY: "V"}


@dataclass
class ContextBaselines(CreditRule):
    """Credit per action: its reward, and the mean reward of actions in the same context.

    The context of an action is its kind, and kind and reward of every action before it.

    running:   the mean is over all actions of the steps before (S2R's code); else over those of the
               same step.
    min_count: running: a context seen less often than this has baseline 0.
    double_right_verified, double_flipped: two factors of 2 that the released code has and the paper
               does not: on the advantage of a verification of a right solution, and of a solution
               that is right where the one before was wrong, or the other way round.

    Example: responses with rewards (-1, 1), (1, 1) and (-1, -1) in one step have baselines
    (-1/3, 0), (-1/3, 1) and (-1/3, 0).
    """

    reads_actions: ClassVar[bool] = True

    running: bool = True
    min_count: int = 10
    double_right_verified: bool = False
    double_flipped: bool = False
    # Whole numbers: a resumed run goes on with the same bits.
    _seen: Counts = field(default_factory=lambda: (Counter(), Counter()), init=False, repr=False)

    def assign(self, trajectories: Sequence[Trajectory]) -> list[Credit]:
        """One `Credit` per trajectory, in order. ValueError where no action was judged."""
        keys = [context_keys(trajectory) for trajectory in trajectories]
        counts = count_actions(keys, trajectories)
        table, least = (self._seen, self.min_count) if self.running else (counts, 1)
        credits = [
            action_credit(t, mean_rewards(own, table, min_count=least), factors=self._factors(t))
            for t, own in zip(trajectories, keys, strict=True)
        ]
        if self.running:
            for seen, new in zip(self._seen, counts, strict=True):
                seen.update(new)
        return credits

    def _factors(self, trajectory: Trajectory) -> Values:
        factors = np.ones(len(trajectory.segments))
        before: bool | None = None  # the last solution
        judged = zip(trajectory.segments, judged_actions(trajectory), strict=True)
        for place, (segment, is_right) in enumerate(judged):
            if segment.kind is SegmentKind.VERIFY:
                is_doubled = self.double_right_verified and before is True
            else:
                is_doubled = self.double_flipped and before is (not is_right)
                before = is_right
            factors[place] += is_doubled
        return factors

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: actions, and right ones, by context."""
        seen, right = self._seen
        return {key: [seen[key], right[key]] for key in sorted(seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._seen = (
            Counter({key: seen for key, (seen, _) in state.items()}),
            Counter({key: right for key, (_, right) in state.items()}),
        )


def offline_credits(
    trajectories: Sequence[Trajectory],
    accuracies: Sequence[Fraction],
    *,
    baseline: OfflineBaseline,
    min_count: int,
) -> list[Credit]:
    """Credit per action, once, over a whole set (S2R, appendix F): the mean over the actions that
    have the same place is expected of each.

    accuracies: share of right responses to the problem of each trajectory: a bin for each value.
    baseline:   what the same place is: bin and position in the response, bin and context
                (`context_keys`), or the context alone.
    min_count:  a place with fewer actions has baseline 0.

    ValueError where no action was judged.
    """
    keys = [
        _places(trajectory, accuracy, baseline)
        for trajectory, accuracy in zip(trajectories, accuracies, strict=True)
    ]
    counts = count_actions(keys, trajectories)
    return [
        action_credit(t, mean_rewards(own, counts, min_count=min_count))
        for t, own in zip(trajectories, keys, strict=True)
    ]


def outcome_credits(
    trajectories: Sequence[Trajectory], accuracies: Sequence[Fraction], *, min_count: int
) -> list[Credit]:
    """Credit of whole responses, once, over a whole set: 1 or -1 for the last answer, on every
    segment, against the mean over the responses to problems of the same accuracy.

    min_count: accuracies with fewer responses have baseline 0.
    """
    right: Counter[Fraction] = Counter()
    for trajectory, accuracy in zip(trajectories, accuracies, strict=True):
        right[accuracy] += is_answered_rightly(trajectory)
    seen = Counter(accuracies)
    credits: list[Credit] = []
    for trajectory, accuracy in zip(trajectories, accuracies, strict=True):
        num = seen[accuracy]
        baseline = (2 * right[accuracy] - num) / num if num >= min_count else 0.0
        shape = len(trajectory.segments)
        value = 1.0 if is_answered_rightly(trajectory) else -1.0
        credits.append(
            Credit(np.full(shape, value, np.float32), np.full(shape, baseline, np.float32))
        )
    return credits


def _places(trajectory: Trajectory, accuracy: Fraction, baseline: OfflineBaseline) -> list[str]:
    if baseline == "accuracy_position":
        return [f"{accuracy} {place}" for place in range(len(trajectory.segments))]
    contexts = context_keys(trajectory)
    return contexts if baseline == "context" else [f"{accuracy} {key}" for key in contexts]


def is_answered_rightly(trajectory: Trajectory) -> bool:
    """Whether the last answer is right. ValueError, naming the problem, where nothing graded it."""
    if trajectory.reward is None or trajectory.reward.correct is None:
        raise ValueError(
            f"a response to problem {trajectory.problem.problem_id!r} is not graded: its problem "
            "needs an answer"
        )
    return trajectory.reward.correct


def judged_actions(trajectory: Trajectory) -> tuple[bool, ...]:
    """Whether each action is right. ValueError, naming the problem, where nothing judged them."""
    reward = trajectory.reward
    if reward is None or reward.actions is None:
        raise ValueError(
            f"the actions of a response to problem {trajectory.problem.problem_id!r} are not "
            'judged: this recipe needs data.format = "trials", and problems with answers'
        )
    return reward.actions


def context_keys(trajectory: Trajectory) -> list[str]:
    """Name the context of each action: kind and reward of those before, then its own kind.

    A right first solution makes "R" for itself and "R+V" for a verification that follows.
    """
    keys: list[str] = []
    history = ""
    for segment, is_right in zip(trajectory.segments, judged_actions(trajectory), strict=True):
        letter = _LETTERS[segment.kind]
        keys.append(history + letter)
        history += letter + ("+" if is_right else "-")
    return keys


def count_actions(keys: Sequence[Sequence[str]], trajectories: Sequence[Trajectory]) -> Counts:
    """Count all actions, and the right ones, under the keys of each trajectory's actions."""
    seen: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for own, trajectory in zip(keys, trajectories, strict=True):
        seen.update(own)
        judged = zip(own, judged_actions(trajectory), strict=True)
        right.update(key for key, is_right in judged if is_right)
    return seen, right


def mean_rewards(keys: Sequence[str], counts: Counts, *, min_count: int) -> Values:
    """Mean reward of the actions under each key, [S]; 0 under `min_count` actions."""
    seen, right = counts
    means = [
        (2 * right[key] - seen[key]) / seen[key] if seen[key] >= max(1, min_count) else 0.0
        for key in keys
    ]
    return np.array(means)


def action_credit(
    trajectory: Trajectory, baselines: Values, *, factors: Values | float = 1.0
) -> Credit:
    """Credit of the actions of a trajectory: 1 or -1 against `baselines`, both times `factors`."""
    rewards = np.where(judged_actions(trajectory), 1.0, -1.0)
    return Credit(
        values=(rewards * factors).astype(np.float32),
        baselines=(baselines * factors).astype(np.float32),
    )
