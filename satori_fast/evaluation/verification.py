# SPDX-License-Identifier: Apache-2.0
"""What verification is worth: how well verdicts judge solutions, and what becomes of these
(S2R, arXiv 2502.12853).

Pure functions over trajectories whose actions were judged (`rewards.process`): a solution is right
by its own answer, a verification by its verdict. Not for answers without verdicts (`analysis`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass

import numpy as np

from satori_fast.types import SegmentKind, Trajectory


@dataclass(frozen=True, slots=True)
class VerificationCounts:
    """Solutions, verifications and verdicts of judged responses; counts of two sets add up.

    An action that the length limit cut is wrong, and a verdict in it is not heard. A verification
    belongs to the solution just before it; one without such a solution is wrong.

    num_responses, num_solutions, num_verifications: all that was judged.
    num_on_right:    right solutions with a verification; of num_confirmed of them it says so.
    num_on_wrong:    wrong solutions with a verification; of num_refuted of them it says so.
    num_accepted:    verdicts "right", true in num_confirmed cases.
    num_first_right: responses whose first solution is right; the last is not in num_broken.
    num_first_wrong: responses whose first solution is wrong; the last is not in num_corrected. With
                     one solution a response counts here or there, and with none nowhere.
    """

    num_responses: int = 0
    num_solutions: int = 0
    num_verifications: int = 0
    num_on_right: int = 0
    num_confirmed: int = 0
    num_on_wrong: int = 0
    num_refuted: int = 0
    num_accepted: int = 0
    num_first_right: int = 0
    num_broken: int = 0
    num_first_wrong: int = 0
    num_corrected: int = 0

    def __add__(self, other: VerificationCounts) -> VerificationCounts:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return VerificationCounts(*(one + another for one, another in pairs))

    def rates(self) -> dict[str, float | None]:
        """Shares in [0, 1] by name, None where there is nothing that they are of.

        verification_accuracy: of verifications, those whose verdict is the truth; an undecided one
        is not. accuracy_on_right: of those on right solutions. error_recall: of those on wrong
        solutions. Verdicts given by chance have an accuracy_on_right + error_recall of 1.
        correct_precision: of verdicts "right", those on a right solution. wrong_to_right: of
        responses that began with a wrong solution, those that end with a right one; right_to_wrong:
        the other way round.
        """
        num_true = self.num_confirmed + self.num_refuted
        return {
            "verification_accuracy": _share(num_true, self.num_verifications),
            "accuracy_on_right": _share(self.num_confirmed, self.num_on_right),
            "error_recall": _share(self.num_refuted, self.num_on_wrong),
            "correct_precision": _share(self.num_confirmed, self.num_accepted),
            "wrong_to_right": _share(self.num_corrected, self.num_first_wrong),
            "right_to_wrong": _share(self.num_broken, self.num_first_right),
        }

    def figures(self) -> dict[str, float | int | None]:
        """Rates and counts, fit for JSON."""
        return {**self.rates(), **asdict(self)}

    def metrics(self, part: str) -> dict[str, float]:
        """Rates that exist, and the number of verifications, as "PART/NAME"."""
        known = {name: rate for name, rate in self.rates().items() if rate is not None}
        known["verifications"] = float(self.num_verifications)
        return {f"{part}/{name}": value for name, value in known.items()}


def count_verifications(trajectories: Iterable[Trajectory]) -> VerificationCounts:
    """Count over all trajectories whose actions were judged; the others are left out."""
    return sum(map(_counts_of, trajectories), start=VerificationCounts())


def trial_figures(trajectories: Iterable[Trajectory]) -> dict[str, float | int | None]:
    """Rates and counts of trajectories, and "trials", their mean number of solutions, with its
    standard error: None without a judged trajectory."""
    counts = [own for own in map(_counts_of, trajectories) if own.num_responses]
    trials = [own.num_solutions for own in counts]
    return {
        "trials": float(np.mean(trials)) if trials else None,
        "trials_standard_error": float(np.std(trials) / len(trials) ** 0.5) if trials else None,
        **sum(counts, start=VerificationCounts()).figures(),
    }


def _counts_of(trajectory: Trajectory) -> VerificationCounts:
    actions = None if trajectory.reward is None else trajectory.reward.actions
    if actions is None:
        return VerificationCounts()
    solutions: list[bool] = []
    judged: list[tuple[bool | None, bool]] = []  # is the solution right, is the verdict true?
    num_accepted = 0
    truth: bool | None = None  # of the solution that waits for a verification
    last = trajectory.segments[-1]
    for segment, is_right in zip(trajectory.segments, actions, strict=True):
        if segment.kind is SegmentKind.SOLVE:
            truth = is_right
            solutions.append(is_right)
        else:
            judged.append((truth, is_right))
            is_heard = segment is not last or trajectory.finish != "length"
            num_accepted += is_heard and segment.verdict is True
            truth = None
    first_and_last = [(solutions[0], solutions[-1])] if solutions else []
    return VerificationCounts(
        num_responses=1,
        num_solutions=len(solutions),
        num_verifications=len(judged),
        num_on_right=sum(truth is True for truth, _ in judged),
        num_confirmed=judged.count((True, True)),
        num_on_wrong=sum(truth is False for truth, _ in judged),
        num_refuted=judged.count((False, True)),
        num_accepted=num_accepted,
        num_first_right=sum(solutions[:1]),
        num_broken=first_and_last.count((True, False)),
        num_first_wrong=len(solutions[:1]) - sum(solutions[:1]),
        num_corrected=first_and_last.count((False, True)),
    )


def _share(number: int, of_all: int) -> float | None:
    return number / of_all if of_all else None
