# SPDX-License-Identifier: Apache-2.0
"""Chain of action thought in which an action is a step of a solution: what stands, what is mended.

A reflection checks the step before it, or after an answer all that led there, up to the first that
is wrong. An exploration is the step done again: it takes the place of the one that the reflection
ended with, or of the last where no reflection follows it, and what stood after that falls. How
steps and checks of a domain read is `chain_actions` and `word_actions`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from satori_fast.data.formats.coat import EXPLORE, META_ACTION_TOKENS, REFLECT, split_actions


@dataclass(frozen=True, slots=True)
class StepReader:
    """Reads the steps of a domain.

    is_answer:   whether a step states the answer, and is no operation.
    num_checked: the number of steps that a check after an answer goes through.
    """

    is_answer: Callable[[str], bool]
    num_checked: Callable[[str], int]

    def standing_steps(self, text: str) -> tuple[str, ...]:
        """List the steps that stand at the end of a response: corrections in the place of what they
        correct, and nothing of what fell with it."""
        last = deque(self._standing(split_actions(text)), maxlen=1)
        return tuple(last[0]) if last else ()

    def slip_counts(
        self, response: str, num_steps: int, is_right: Callable[[Sequence[str]], bool]
    ) -> dict[str, float]:
        """Count the slips in a response, and those that a local check mends, for an evaluation.

        num_steps: of a solution, the answer not counted. is_right: whether the last of some steps
        that stand is what has to follow the others.

        "slips" ("eval/slips"): wrong steps; corrections are steps too. "slips_mended"
        ("eval/slips_mended"): share of them that are followed at once by a reflection and the right
        step; absent without a slip. "mends" ("eval/mends"): explorations, whatever check they are
        behind, that put a right step in the place of a wrong one; "breaks" ("eval/breaks"): those
        that put a wrong step in the place of a right one.
        """
        actions = split_actions(response)
        mended: list[bool] = []
        mends = breaks = 0
        before: list[str] = []
        for number, steps in enumerate(self._standing(actions), start=1):
            before, earlier = list(steps), before
            is_check = actions[number - 1].startswith(REFLECT)
            if is_check or self.is_answer(steps[-1]) or len(steps) > num_steps:
                continue
            is_right_now = is_right(steps)
            if actions[number - 1].startswith(EXPLORE) and len(earlier) >= len(steps):
                was_right = is_right(earlier[: len(steps)])
                mends += is_right_now and not was_right
                breaks += was_right and not is_right_now
            if not is_right_now:
                check, correction = (*actions[number : number + 2], "", "")[:2]
                is_mended = check.startswith(REFLECT) and correction.startswith(EXPLORE)
                mended.append(is_mended and is_right((*steps[:-1], content(correction))))
        counts = {"slips": float(len(mended)), "mends": float(mends), "breaks": float(breaks)}
        return counts | ({"slips_mended": sum(mended) / len(mended)} if mended else {})

    def _standing(self, actions: Iterable[str]) -> Iterator[list[str]]:
        """Yield the steps that stand after each action, in a list that changes with the next."""
        steps: list[str] = []
        checked = 0  # where the step stands that an exploration does again
        for action in actions:
            text = content(action)
            if action.startswith(REFLECT):
                is_whole = bool(steps) and self.is_answer(steps[-1])
                checked = max(0, (self.num_checked(text) if is_whole else len(steps)) - 1)
            elif action.startswith(EXPLORE):
                steps[checked:] = [text]
            else:
                steps.append(text)
                checked = len(steps) - 1
            yield steps


def content(action: str) -> str:
    """Text of an action without its token."""
    for token in META_ACTION_TOKENS:
        action = action.removeprefix(token)
    return action.strip()
