# SPDX-License-Identifier: Apache-2.0
"""Offline experience: from scored samples to a set that is learnt from for several epochs (S2R,
arXiv 2502.12853, appendix F).

Samples are filtered, cut and balanced once, credited once, and then handed out epoch by epoch.
Files of samples are `stored`; what actions earn is `algorithms.baselines`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from satori_fast.algorithms.baselines import is_answered_rightly, judged_actions
from satori_fast.data.cursor import ProblemCursor
from satori_fast.rewards.process import RIGHT, WRONG
from satori_fast.rollout.restarting import ServedWeights
from satori_fast.types import Credit, Experience, RewardBreakdown, SegmentKind, Trajectory

SOLVE, VERIFY = SegmentKind.SOLVE, SegmentKind.VERIFY

# Why a response is not learnt from, in the order in which it is asked.
REASONS = ("too_hard", "too_easy", "not_alternating", "unverified", "too_long", "unbalanced")


@dataclass(frozen=True, slots=True)
class SelectionRules:
    """Bounds of what is learnt from.

    min_accuracy, max_accuracy: share of right samples of a problem, both ends included.
    max_actions: longest response, actions that are left after the cut.
    balance: as many wrong as right responses of a problem; the more numerous are thinned out.
    """

    min_accuracy: float = 0.1
    max_accuracy: float = 0.7
    max_actions: int = 20
    balance: bool = True


@dataclass(frozen=True, slots=True)
class Selection:
    """Samples to learn from, siblings together, and what became of the others.

    accuracies: share of right samples of the problem of each trajectory, as it was sampled.
    num_cut:    trajectories that go on no longer than they should.
    dropped:    responses left out, by each of `REASONS`.
    sampled:    number of problems by their accuracy.
    """

    trajectories: tuple[Trajectory, ...]
    accuracies: tuple[Fraction, ...]
    num_cut: int
    dropped: Mapping[str, int]
    sampled: Mapping[Fraction, int]

    def figures(self) -> dict[str, float]:
        """Counts under the names of a stage's figures."""
        right = sum(map(is_answered_rightly, self.trajectories))
        return {
            "num_problems_sampled": float(sum(self.sampled.values())),
            "num_problems_kept": float(len({t.group_id for t in self.trajectories})),
            "num_responses_kept": float(len(self.trajectories)),
            "num_responses_right": float(right),
            "num_responses_cut": float(self.num_cut),
            **{f"num_dropped_{reason}": float(self.dropped[reason]) for reason in REASONS},
        }

    def accuracies_in_words(self) -> str:
        """The distribution of accuracies on one line.

        >>> Selection((), (), 0, {}, {Fraction(1): 2, Fraction(1, 4): 5}).accuracies_in_words()
        '5 of 1/4, 2 of 1'
        """
        return ", ".join(
            f"{number} of {accuracy}" for accuracy, number in sorted(self.sampled.items())
        )


def select(
    groups: Sequence[Sequence[Trajectory]], rules: SelectionRules, *, seed: int
) -> Selection:
    """Choose what is learnt from, and cut it, by `rules`.

    groups: samples of one problem each, graded: `reward.correct` and `reward.actions`.

    First the problem: the share of right samples. Then each response: solutions and verifications
    have to take turns, a solution first, it is cut (`without_surplus`), ends with a verification
    and is short enough. A response that is cut ends with its last right solution: from there on it
    counts as right, in the balance and in its reward. Which of the more numerous stay in the
    balance depends on `seed` and the group's number alone.
    """
    dropped: Counter[str] = Counter()
    sampled: Counter[Fraction] = Counter()
    kept: list[Trajectory] = []
    accuracies: list[Fraction] = []
    num_cut = 0
    for number, group in enumerate(groups):
        accuracy = Fraction(sum(map(is_answered_rightly, group)), len(group))
        sampled[accuracy] += 1
        # As floats: 7/10 is above the number that 0.7 stands for.
        if float(accuracy) < rules.min_accuracy:
            dropped["too_hard"] += len(group)
            continue
        if float(accuracy) > rules.max_accuracy:
            dropped["too_easy"] += len(group)
            continue
        found = [without_surplus(t) if takes_turns(t) else t for t in group]
        reasons = [_reason_to_drop(t, rules.max_actions) for t in found]
        dropped.update(reason for reason in reasons if reason is not None)
        left = [t for t, reason in zip(found, reasons, strict=True) if reason is None]
        chosen = balanced(left, np.random.default_rng([seed, number])) if rules.balance else left
        dropped["unbalanced"] += len(left) - len(chosen)
        whole = set(map(id, group))
        num_cut += sum(id(t) not in whole for t in chosen)
        kept += chosen
        accuracies += [accuracy] * len(chosen)
    return Selection(tuple(kept), tuple(accuracies), num_cut, dropped, sampled)


def takes_turns(trajectory: Trajectory) -> bool:
    """Whether its actions are a solution, a verification, a solution, and so on."""
    kinds = [segment.kind for segment in trajectory.segments]
    return kinds == [VERIFY if place % 2 else SOLVE for place in range(len(kinds))]


def without_surplus(trajectory: Trajectory) -> Trajectory:
    """Cut after the first right solution that is rightly verified, or else after the verification
    of the last right solution; without a right solution, or where it ends there, it stays whole.

    Its actions have to take turns. What is cut has no stop token, and gets none that nobody
    sampled: its finish is "length".
    """
    actions = judged_actions(trajectory)
    rewarded = trajectory.reward
    assert rewarded is not None
    num = num_useful(actions)
    if num == len(actions):
        return trajectory
    stop = trajectory.segments[num - 1].stop
    is_right = actions[num - 2]
    reward = RewardBreakdown(
        {"rule": RIGHT if is_right else WRONG},
        segments=None if rewarded.segments is None else rewarded.segments[:num],
        correct=is_right,
        actions=actions[:num],
    )
    return replace(
        trajectory,
        tokens=trajectory.tokens[: trajectory.prompt_len + stop],
        logprobs=trajectory.logprobs[:stop],
        finish="length",
        segments=trajectory.segments[:num],
        reward=reward,
        versions=None if trajectory.versions is None else trajectory.versions[:stop],
    )


def num_useful(actions: tuple[bool, ...]) -> int:
    """Number of actions that `without_surplus` leaves; solutions and verifications take turns.

    >>> num_useful((True, False, False, True, True, False, False, True))  # R+V-R-V+R+V-R-V+
    6
    """
    right = [place for place in range(0, len(actions), 2) if actions[place]]
    trusted = [place for place in right if actions[place + 1 : place + 2] == (True,)]
    if not right:
        return len(actions)
    return min((trusted or right[-1:])[0] + 2, len(actions))


def balanced(trajectories: Sequence[Trajectory], rng: np.random.Generator) -> list[Trajectory]:
    """Choose as many wrong as right responses, in their order: the more numerous are thinned at
    random.

    S2R's code thins out the wrong ones only.
    """
    sides: list[list[int]] = [[], []]
    for place, trajectory in enumerate(trajectories):
        sides[is_answered_rightly(trajectory)].append(place)
    num = min(map(len, sides))
    chosen = [side[i] for side in sides for i in rng.permutation(len(side))[:num]]
    return [trajectories[place] for place in sorted(chosen)]


def _reason_to_drop(trajectory: Trajectory, max_actions: int) -> str | None:
    if not takes_turns(trajectory):
        return "not_alternating"
    if trajectory.segments[-1].kind is SOLVE:
        return "unverified"
    return "too_long" if len(trajectory.segments) > max_actions else None


class OfflineSource:
    """Hands out the credited trajectories of a set, each once per epoch, in an order of its own."""

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        credits: Sequence[Credit],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        items = list(zip(trajectories, credits, strict=True))
        self._cursor = ProblemCursor(items, seed=seed)
        self._batch_size = batch_size
        self._digest = _digest(items)

    def next(self, step: int) -> Experience:
        """The next trajectories, with the credit that they were given once."""
        taken = self._cursor.take(self._batch_size)
        trajectories, credits = zip(*taken, strict=True)
        return Experience(trajectories, credits)

    def sync(self, weights: ServedWeights, *, version: int) -> None:
        """Nothing: nobody samples."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: where the cursor stands, and of which set."""
        return {"cursor": self._cursor.state_dict(), "digest": self._digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; ValueError where the set is another one."""
        if state["digest"] != self._digest:
            raise ValueError(
                "cannot resume: the responses to learn from, or their credit, are not those of the "
                "checkpoint; did a time limit of the grader decide otherwise (reward.timeout_s)?"
            )
        self._cursor.load_state_dict(state["cursor"])


def _digest(items: Sequence[tuple[Trajectory, Credit]]) -> str:
    """Name of a credited set."""
    total = hashlib.sha256()
    for trajectory, credit in items:
        for array in (trajectory.tokens, trajectory.logprobs, credit.values, credit.baselines):
            total.update(array.tobytes())
    return total.hexdigest()[:16]
