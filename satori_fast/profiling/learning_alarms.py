# SPDX-License-Identifier: Apache-2.0
"""Alarms about the curves of a stage that samples: it goes on, and learns the wrong thing.

Each alarm is a line that says what was seen and the likely cause, and is raised once in a stage.
Thresholds are far from what runs that go well show (the tests have their curves). Not for: steps
without any signal or numbers that are not finite (`stages.alarms`), the host's memory
(`memory_growth`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

NUM_FIRST = 5  # steps that a stage begins with, and those that are "now"
HALF = 10  # steps of each of the two stretches that a change is looked for between
_CERTAIN, _LIKELY = 3.3, 1.64  # standard deviations: once in 2,000 by chance, and in 20
_COLLAPSED = 0.2  # entropy of now as a share of the first steps'
_SOLVED = 0.95
_OFTEN_CUT, _CUT_FROM_THE_START, _LEAST_RISE = 0.4, 0.5, 0.2
_OFTEN_LOOPS = 0.2
_LEAST_FALL = 0.05
_SAMPLED = "rollout/mean_response_tokens"
_ACCURACIES = ("rollout/accuracy_original", "rollout/accuracy")
_NO_TERMS = frozenset(
    {"reward/total", "reward/rule"}
    | {"reward/seconds", "reward/seconds_max", "reward/seconds_mean"}
)


class LearningAlarms:
    """Watches the metrics of one stage, step by step.

        alarms = LearningAlarms()
        for step, metrics in ...:
            for kind, message in alarms.look_at(metrics).items(): ...

    Kinds: "entropy", "length", "loops", and "reward/NAME" of a term. A resumed stage shows it the
    metrics of its earlier steps again. Steps that sample nothing are passed over.
    """

    def __init__(self) -> None:
        self._curves: dict[str, list[float]] = {}
        self._raised: set[str] = set()

    def look_at(self, metrics: Mapping[str, float | None]) -> dict[str, str]:
        """The alarms that this step raises, by kind; those that were raised before are not."""
        if _SAMPLED not in metrics:
            return {}
        for name, value in metrics.items():
            if value is not None and math.isfinite(value) and _is_watched(name):
                self._curves.setdefault(name, []).append(value)
        found = {
            "entropy": self._entropy(),
            "length": self._length(),
            "loops": self._loops(),
            **{name: self._term(name) for name in self._curves if _is_term(name)},
        }
        new = {kind: text for kind, text in found.items() if text and kind not in self._raised}
        self._raised |= new.keys()
        return new

    def _curve(self, name: str) -> list[float]:
        return self._curves.get(name, [])

    def _quality(self) -> tuple[str, list[float]]:
        """What the stage is to raise: the accuracy of whole problems, else of all, else the reward;
        what people call it, and its curve."""
        for name in _ACCURACIES:
            if name in self._curves:
                return "accuracy", self._curve(name)
        return "the reward", self._curve("reward/total")

    def _entropy(self) -> str | None:
        entropy, (name, quality) = self._curve("update/entropy"), self._quality()
        if len(entropy) < 2 * HALF or len(quality) < 2 * HALF:
            return None
        first, now = _median(entropy[:NUM_FIRST]), _median(entropy[-NUM_FIRST:])
        level = _median(quality[-NUM_FIRST:])
        solved = name == "accuracy" and level >= _SOLVED
        if now >= _COLLAPSED * first or solved or change(quality) > _LIKELY:
            return None
        return (
            f"entropy collapsed from {first:.3g} to {now:.3g} nats per token, and {name} no longer "
            f"rises from {level:.3g}: samples of a problem are nearly the same and teach little; "
            "likely causes: a learning rate that is too high, too many updates on one batch, a "
            "temperature that is too low; raise clip_high or entropy_coefficient, or lower the "
            "learning rate"
        )

    def _length(self) -> str | None:
        cut, tokens = self._curve("rollout/truncated"), self._curve(_SAMPLED)
        if len(cut) < NUM_FIRST:
            return None
        first, now = _median(cut[:NUM_FIRST]), _median(cut[-NUM_FIRST:])
        if first >= _CUT_FROM_THE_START:
            return (
                f"{first:.0%} of the responses are cut off at the limit from the first steps on; "
                "likely causes: rollout.max_new_tokens is too short for this model, or it does not "
                "know how to end (no format tuning, another chat template, a missing stop token)"
            )
        if now < _OFTEN_CUT or now - first < _LEAST_RISE:
            return None
        return (
            f"{now:.0%} of the responses are cut off at the limit, {first:.0%} in the first steps; "
            f"their mean length went from {_median(tokens[:NUM_FIRST]):.0f} to "
            f"{_median(tokens[-NUM_FIRST:]):.0f} tokens; likely cause: {self._cause_of_length(now)}"
        )

    def _cause_of_length(self, cut: float) -> str:
        if _median(self._curve("rollout/repeating")[-NUM_FIRST:]) >= cut / 2:
            return "most of them end in a loop; lower the learning rate, or begin with more tuning"
        entropy = self._curve("update/entropy")
        if entropy and _median(entropy[-NUM_FIRST:]) > 2 * _median(entropy[:NUM_FIRST]):
            return "the policy comes apart, its entropy rises too; lower the learning rate"
        return (
            "longer responses earn more, or cost nothing; look at the reward's terms, penalise "
            "length or raise rollout.max_new_tokens"
        )

    def _loops(self) -> str | None:
        loops = self._curve("rollout/repeating")
        now = _median(loops[-NUM_FIRST:])
        if len(loops) < NUM_FIRST or now < _OFTEN_LOOPS:
            return None
        first = _median(loops[:NUM_FIRST])
        cause = "a learning rate that is too high, or a reward that such responses do not lose"
        if first >= _OFTEN_LOOPS:
            cause = "a model that is not tuned to this prompt, or a temperature that is too low"
        return (
            f"{now:.0%} of the responses end in a loop, the same tokens over and over ({first:.0%} "
            f"in the first steps); likely causes: {cause}; read some in samples.jsonl"
        )

    def _term(self, name: str) -> str | None:
        term, (what, accuracy) = self._curve(name), self._quality()
        if what != "accuracy" or min(len(term), len(accuracy)) < 2 * HALF:
            return None
        before, after = np.mean(accuracy[-2 * HALF : -HALF]), np.mean(accuracy[-HALF:])
        falls = change(accuracy) < -_CERTAIN and before - after >= _LEAST_FALL
        if not falls or change(term) <= _CERTAIN:
            return None
        low, high = np.mean(term[-2 * HALF : -HALF]), np.mean(term[-HALF:])
        return (
            f"{name} rises from {low:.3g} to {high:.3g} while accuracy falls from {before:.3g} to "
            f"{after:.3g}, means of {HALF} steps; likely cause: this term is earned without right "
            "answers; read the samples that earn most of it, and lower its weight"
        )


def change(values: Sequence[float]) -> float:
    """Measure how surely the last `HALF` values lie above those before, in standard deviations.

    z of Mann and Whitney's U, ties half: the size of a jump or an outlier does not matter.
    """
    earlier, later = np.array(values[-2 * HALF : -HALF]), np.array(values[-HALF:])
    above = later[:, None] - earlier
    u = np.sum(above > 0) + np.sum(above == 0) / 2
    return float((u - HALF**2 / 2) / math.sqrt(HALF**2 * (2 * HALF + 1) / 12))


def _is_watched(name: str) -> bool:
    watched = {_SAMPLED, "update/entropy", "rollout/truncated", "rollout/repeating", *_ACCURACIES}
    return name in watched or name == "reward/total" or _is_term(name)


def _is_term(name: str) -> bool:
    return name.startswith("reward/") and name not in _NO_TERMS


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else 0.0
