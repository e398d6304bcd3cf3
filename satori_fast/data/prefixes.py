# SPDX-License-Identifier: Apache-2.0
"""Partial solutions to continue from: Satori's restarts and SRL's step-wise problems.

Both turn a solved trajectory into problems that start in the middle. One noun (`Prefix`), two
constructors. Restart and explore (Satori, algorithm 1) cuts a sampled solution,

    z = [x, y_1 ... y_(L - t), <|reflect|>],    t <= T,

so that the first token the policy writes is a reflection; SRL (arXiv 2510.25992) cuts an expert's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from satori_fast.data.formats.coat import EXPLORE, REFLECT, split_actions
from satori_fast.data.prompts import PromptRenderer, full_response
from satori_fast.types import Prefix, Problem, Trajectory

CutAfter = Literal["action", "step", "answer"]
LastStep = Literal["skip", "ask"]


def restart_prefixes(
    trajectory: Trajectory, *, correct: bool, backtrack: Sequence[int]
) -> list[Problem]:
    """Restarts of one solution, one for each t in `backtrack` that leaves at least one action.

    correct is the label of the *source*: did the whole trajectory end right. A prefix cut t actions
    back may still be right when its source was wrong.

    Example: the solution "a<|continue|> b<|reflect|> c" gives
    t = 0: "a<|continue|> b<|reflect|> c<|reflect|>",  t = 1: "a<|continue|> b<|reflect|>",
    t = 2: "a<|reflect|>".
    """
    actions = split_actions(full_response(trajectory))
    return [
        replace(
            trajectory.problem,
            prefix=Prefix("".join(actions[: len(actions) - t]) + REFLECT, "restart", correct),
        )
        for t in backtrack
        if t < len(actions)
    ]


def expert_step_prefixes(
    problem: Problem, steps: Sequence[str], *, end: str = "\n", last_step: LastStep = "skip"
) -> list[Problem]:
    """The N - 1 step-wise problems of an expert solution of N steps (SRL, section 3).

    Problem k (k = 1 .. N - 1) starts after the steps before k and asks for step k; the last step,
    which states the answer, is never a target, unless `last_step` is "ask". `end` stands after each
    step.
    """
    return [
        replace(
            problem,
            prefix=Prefix("".join(f"{step}{end}" for step in steps[:k]), "step", target=steps[k]),
        )
        for k in range(len(steps) - (last_step == "skip"))
    ]


def restart_buffer(
    groups: Iterable[Sequence[tuple[Trajectory, bool]]],
    *,
    max_backtrack: int,
    cut_after: CutAfter,
    renderer: PromptRenderer,
    rng: np.random.Generator,
) -> Iterator[Problem]:
    """One restart from a random right and one from a random wrong solution of each problem.

    groups: the graded samples of one problem each, (trajectory, correct). t is uniform over the
    cuts that `restart_cuts` allows. A restart whose prompt is too long is left out: cutting it on
    the right would lose the ``<|reflect|>`` it ends with.
    """
    for group in groups:
        for label in (True, False):
            sources = [trajectory for trajectory, correct in group if correct is label]
            if not sources:
                continue
            source = sources[rng.integers(len(sources))]
            cuts = restart_cuts(source, max_backtrack, cut_after=cut_after)
            if not cuts:
                continue
            t = cuts[rng.integers(len(cuts))]
            (problem,) = restart_prefixes(source, correct=label, backtrack=[t])
            if renderer.fits(problem):
                yield problem


def restart_cuts(trajectory: Trajectory, max_backtrack: int, *, cut_after: CutAfter) -> list[int]:
    """Values of t (actions dropped from the end) that make a restart of this solution.

    An action that the length limit cut off is none: it is dropped first and does not count towards
    T. cut_after says what must stand last: "action" (the paper: anything), "step" (no reflection,
    no bare hint) or "answer" (a step with a boxed answer). A small model has never seen a
    reflection on a reflection, a hint or a half-made choice, and answers such states with noise: on
    the built-in domain one solved 99 % of D+ and 40 % of D- restarts after an answer, 41 % and 9 %
    elsewhere.
    """
    actions = split_actions(full_response(trajectory))
    incomplete = int(trajectory.finish == "length")
    cuts = range(incomplete, min(incomplete + max_backtrack + 1, len(actions)))

    def stands(action: str) -> bool:
        if cut_after == "answer":
            return "\\boxed" in action
        return cut_after == "action" or not action.startswith((REFLECT, EXPLORE))

    return [t for t in cuts if stands(actions[len(actions) - 1 - t])]
