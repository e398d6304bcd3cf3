# SPDX-License-Identifier: Apache-2.0
"""Alarms on made-up curves of runs that go wrong, and silence on the curves of runs that went well.

good_curves.json: of six seeds of the quickstart and of three runs of SRL's, as they were measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from satori_fast.profiling.learning_alarms import HALF, LearningAlarms, change

GOOD: dict[str, dict[str, list[float]]] = json.loads(
    (Path(__file__).parent / "good_curves.json").read_text(encoding="utf-8")
)
STEPS = np.arange(60)


def noise(scale: float, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, len(STEPS))


def a_run(**changed: np.ndarray) -> dict[str, np.ndarray]:
    """Curves of a run that neither learns nor breaks, with some in place of its own."""
    flat = {
        "rollout_accuracy": 0.4 + noise(0.04, seed=1),
        "rollout_mean_response_tokens": 200 + noise(10, seed=2),
        "rollout_truncated": np.clip(0.05 + noise(0.02, seed=3), 0, 1),
        "rollout_repeating": np.clip(noise(0.01, seed=4), 0, 1),
        "update_entropy": 0.3 + noise(0.03, seed=5),
        "reward_total": 0.4 + noise(0.04, seed=6),
        "reward_length": 0.1 + noise(0.02, seed=7),
    }
    return {name.replace("_", "/", 1): curve for name, curve in (flat | changed).items()}


def alarms_of(curves: Mapping[str, Sequence[float]]) -> dict[str, tuple[int, str]]:
    """Each alarm with its step."""
    watch, found = LearningAlarms(), {}
    for step, values in enumerate(zip(*curves.values(), strict=True)):
        for kind, message in watch.look_at(dict(zip(curves, values, strict=True))).items():
            assert kind not in found and "\n" not in message
            found[kind] = (step, message)
    return found


@pytest.mark.parametrize("name", GOOD)
def test_silent_where_all_goes_well(name: str) -> None:
    assert len(GOOD[name]) >= 5
    assert alarms_of(GOOD[name]) == {}


def test_silent_on_noise() -> None:
    assert alarms_of(a_run()) == {}


def test_entropy_that_collapses_without_learning() -> None:
    entropy = 0.3 * np.exp(-STEPS / 8) + 0.01
    ((kind, (step, message)),) = alarms_of(a_run(update_entropy=entropy)).items()
    assert kind == "entropy" and 19 <= step <= 25
    assert message.startswith("entropy collapsed from 0.2") and "learning rate" in message
    # The same fall is no alarm while accuracy still rises, nor where nothing is left to learn.
    rising = 0.2 + 0.01 * STEPS + noise(0.02)
    assert alarms_of(a_run(update_entropy=entropy, rollout_accuracy=rising)) == {}
    solved = 1 - np.exp(-STEPS / 3) * 0.6
    assert alarms_of(a_run(update_entropy=entropy, rollout_accuracy=solved)) == {}


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({}, "longer responses earn more"),
        ({"rollout_repeating": np.clip(0.012 * STEPS, 0, 1)}, "most of them end in a loop"),
        ({"update_entropy": 0.3 + 0.05 * STEPS}, "the policy comes apart"),
    ],
)
def test_length_that_runs_to_the_limit(changed: dict[str, np.ndarray], cause: str) -> None:
    lengths = {
        "rollout_truncated": np.clip(0.05 + 0.015 * STEPS, 0, 1),
        "rollout_mean_response_tokens": 200.0 + 10 * STEPS,
    }
    step, message = alarms_of(a_run(**lengths, **changed))["length"]
    # 40 % is reached at step 23.3, and by the median of five steps two later.
    assert step == 26 and cause in message
    assert message.startswith("41% of the responses are cut off at the limit, 8% in the first")
    assert "from 220 to 440 tokens" in message


def test_responses_that_are_cut_from_the_start() -> None:
    found = alarms_of(a_run(rollout_truncated=0.7 + noise(0.02)))
    step, message = found["length"]
    assert step == 4 and "rollout.max_new_tokens is too short" in message and len(found) == 1


def test_answers_that_repeat_themselves() -> None:
    loops = np.clip(np.where(STEPS < 30, 0.02, 0.5) + noise(0.01), 0, 1)
    ((kind, (step, message)),) = alarms_of(a_run(rollout_repeating=loops)).items()
    assert kind == "loops" and step == 32  # three of the last five
    assert "end in a loop" in message and "a learning rate that is too high" in message
    _, message = alarms_of(a_run(rollout_repeating=0.6 + noise(0.01)))["loops"]
    assert "a model that is not tuned to this prompt" in message


def test_a_term_that_rises_while_accuracy_falls() -> None:
    falling = 0.6 - 0.006 * STEPS + noise(0.01)
    rising = 0.1 + 0.02 * STEPS + noise(0.05)
    found = alarms_of(a_run(rollout_accuracy=falling, reward_length=rising))
    ((kind, (_, message)),) = found.items()
    assert kind == "reward/length" and message.startswith("reward/length rises from ")
    assert "while accuracy falls from 0.5" in message
    # Neither alone is one, nor the terms that are accuracy by another name.
    assert alarms_of(a_run(rollout_accuracy=falling)) == {}
    assert alarms_of(a_run(reward_length=rising)) == {}
    others = {"reward_rule": rising, "reward_total": rising, "reward_seconds": rising}
    assert alarms_of(a_run(rollout_accuracy=falling, **others)) == {}


def test_few_false_alarms_on_noise_that_wanders() -> None:
    """Of 40 runs of 60 steps whose curves are noise with a memory of several steps."""
    num_alarms = 0
    for seed in range(40):
        curves = a_run()
        for number, (name, scale) in enumerate((("rollout/accuracy", 0.03), ("reward/length", 1))):
            steps = np.random.default_rng([seed, number]).normal(0, scale, len(STEPS))
            wander = np.convolve(steps, 0.7 ** np.arange(12), mode="full")[: len(STEPS)]
            curves[name] = 0.4 + wander
        num_alarms += len(alarms_of(curves))
    assert num_alarms <= 1


def test_steps_that_sample_nothing_and_numbers_that_are_not_finite_are_passed_over() -> None:
    watch = LearningAlarms()
    for step in range(40):
        assert watch.look_at({"update/entropy": 1.0 / (step + 1), "reward/total": 0.0}) == {}
    sampled = {"rollout/mean_response_tokens": 1.0, "rollout/truncated": float("nan")}
    for _ in range(10):
        assert watch.look_at({**sampled, "update/entropy": None}) == {}


def test_change_is_mann_whitney() -> None:
    """Ten values above ten others: U = 100, mean 50, variance 10 x 10 x 21 / 12 = 175."""
    assert change([*range(2 * HALF)]) == pytest.approx(50 / 175**0.5)
    assert change([*range(2 * HALF, 0, -1)]) == pytest.approx(-50 / 175**0.5)
    assert change([1.0] * 50) == 0.0
