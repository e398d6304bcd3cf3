# SPDX-License-Identifier: Apache-2.0
"""Similarity rewards: how much a step resembles the expert's (SRL, arXiv 2510.25992, section 3.2).

    r = 2 M / T                                  in [0, 1], of the action and the target
    r = -1                                       for a response that is not of the format

M counts the elements of matching blocks and T those of both sequences: Python's
`difflib.SequenceMatcher`, with the action as its first argument. The monologue is the model's own
and is not compared. What elements are is a choice that the paper does not state: characters are
blunt (a wrong result 52 for 62 leaves 0.92), words are sharper (0.8).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np

from satori_fast.data.formats.steps import (
    SolutionTags,
    StepResponse,
    asks_solution,
    split_response,
)
from satori_fast.kernels import sequence_similarity
from satori_fast.types import Problem, RewardBreakdown, Trajectory, groups_of

TERM = "similarity"
FAULTY = -1.0
Granularity = Literal["characters", "words", "tokens"]


@dataclass(frozen=True, slots=True)
class SimilarityReward:
    """The term "similarity" of responses to step problems; others get no term, and none a verdict.

    granularity: elements of the sequences; "tokens" needs `encode`.
    autojunk:    difflib's heuristic, off: from 200 elements of target on it takes those that are
                 more than 1 % of it for junk, and the reward jumps.
    tags:        whether ``<solution>`` tags are required.
    encode:      text to token ids.
    """

    granularity: Granularity = "characters"
    autojunk: bool = False
    tags: SolutionTags = "accepted"
    encode: Callable[[str], list[int]] | None = None

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[RewardBreakdown]:
        targets = [target_of(trajectory) for trajectory in trajectories]
        asked = [i for i, target in enumerate(targets) if target is not None]
        read = [read_step(trajectories[i], tags=self.tags) for i in asked]
        values = self.similarities(
            [step.action for step in read], [targets[i] or "" for i in asked]
        )
        made = [RewardBreakdown({}) for _ in trajectories]
        for i, step, value in zip(asked, read, values, strict=True):
            reward = value if step.fault is None else FAULTY
            made[i] = RewardBreakdown({TERM: reward})
        return made

    def similarities(self, actions: Sequence[str], targets: Sequence[str]) -> list[float]:
        """2 M / T of each action and its target; 0 where either is empty: they never meet."""
        kept = [i for i, pair in enumerate(zip(actions, targets, strict=True)) if all(pair)]
        numbers = word_numbers()
        found = sequence_similarity(
            [self.elements(actions[i], numbers) for i in kept],
            [self.elements(targets[i], numbers) for i in kept],
            autojunk=self.autojunk,
        )
        values = [0.0] * len(actions)
        for i, value in zip(kept, found.tolist(), strict=True):
            values[i] = value
        return values

    def elements(self, text: str, numbers: Mapping[str, int]) -> list[int]:
        """Spell a text as numbers, one for each element. numbers: of words, made as they come."""
        if self.granularity == "characters":
            spelled = text.encode("utf-32-le", errors="surrogatepass")
            return np.frombuffer(spelled, dtype="<u4").tolist()
        if self.granularity == "words":
            return [numbers[word] for word in text.split()]
        assert self.encode is not None
        return self.encode(text)


def word_numbers() -> Mapping[str, int]:
    """A number for every word that is looked up: the next one for a new word."""
    return defaultdict(count().__next__)


def similarity_of(trajectory: Trajectory) -> float:
    """The similarity that a response to a step problem earned, -1 for one of no format."""
    assert trajectory.reward is not None
    return trajectory.reward.terms[TERM]


def exact_share(trajectories: Sequence[Trajectory]) -> float:
    """Share of responses whose step is the expert's to the last element."""
    return float(np.mean([similarity_of(t) == 1.0 for t in trajectories]))


def is_kept_by_format(group: Sequence[Trajectory], min_std: float) -> bool:
    """Whether the rewards of a group differ only because responses are not of the format: those of
    the others have a standard deviation of at most `min_std`."""
    earned = [similarity_of(t) for t in group]
    well_formed = [value for value in earned if value != FAULTY]
    return len(well_formed) < len(earned) and (
        not well_formed or float(np.std(well_formed)) <= min_std
    )


def kept_by_format_share(kept: Sequence[Trajectory], min_std: float) -> float:
    """Share of the groups of kept responses, at least one, that `is_kept_by_format`."""
    groups = [[kept[i] for i in group] for group in groups_of(kept)]
    return float(np.mean([is_kept_by_format(group, min_std) for group in groups]))


def target_of(trajectory: Trajectory) -> str | None:
    """The expert's step that a response is compared with, None where it answers no step problem."""
    return step_target(trajectory.problem)


def step_target(problem: Problem) -> str | None:
    """The expert's step that a problem asks for, None where it asks for no step."""
    if problem.prefix is None or not problem.asks_step:
        return None
    return (problem.prefix.target or "").strip()


def read_step(trajectory: Trajectory, *, tags: SolutionTags = "accepted") -> StepResponse:
    """The monologue and the action of a response."""
    text = "".join(segment.text for segment in trajectory.segments)
    return split_response(text, tags=tags, whole=asks_solution(trajectory.problem))
