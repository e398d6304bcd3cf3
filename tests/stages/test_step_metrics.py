# SPDX-License-Identifier: Apache-2.0
"""Metrics of a reinforcement step, against loops over its trajectories."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from satori_fast.data.formats.coat import COAT
from satori_fast.data.formats.trials import TRIALS
from satori_fast.data.mixture import CORRECT, INCORRECT, ORIGINAL
from satori_fast.data.packing import PackingSpec, Weighting, pack
from satori_fast.stages.step_metrics import (
    advantage_metrics,
    experience_metrics,
    update_metrics,
)
from satori_fast.types import (
    Advantages,
    Credit,
    Experience,
    PackedBatch,
    Prefix,
    Problem,
    RewardBreakdown,
    Trajectory,
)
from tests.algorithms.test_advantages import alone, make_trajectory
from tests.evaluation.test_verification import GROUP
from tests.rewards.test_process import judged

PREFIXES = {
    ORIGINAL: None,
    CORRECT: Prefix("a<|reflect|>", "restart", True),
    INCORRECT: Prefix("a<|reflect|>", "restart", False),
}
# Where the problem started, whether the answer is right, response tokens, advantage of each token.
ANSWERS = [
    (ORIGINAL, True, 4, 0.5),
    (ORIGINAL, True, 2, -1.0),
    (ORIGINAL, False, 5, -0.25),
    (CORRECT, False, 3, 2.0),
    (INCORRECT, True, 1, 8.0),
]

CREDIT = Credit(np.zeros(1, np.float32), np.zeros(1, np.float32))


def answer(origin: str, right: bool, num_tokens: int) -> Trajectory:
    reward = RewardBreakdown({}, correct=right)
    problem = Problem("p", "q", "a", PREFIXES[origin])
    return replace(make_trajectory(2, [num_tokens]), problem=problem, reward=reward)


def estimates(batches: list[PackedBatch], values: list[float]) -> list[Advantages]:
    """Every response token of answer i has advantage values[i]."""
    found: list[Advantages] = []
    for batch in batches:
        per_sequence = torch.tensor([values[i] if i >= 0 else 99.0 for i in batch.source.tolist()])
        per_token = per_sequence[batch.sequence_of_token()]
        found.append(Advantages(torch.where(batch.loss_mask, per_token, 0.0)))
    return found


@pytest.mark.parametrize(
    ("weighting", "right_original"),
    [("token", (4 * 0.5 - 2 * 1.0) / 6), ("sequence", (0.5 - 1.0) / 2)],
)
def test_advantages_of_right_and_wrong_answers_by_origin(
    weighting: Weighting, right_original: float
) -> None:
    answers = [answer(origin, right, length) for origin, right, length, _ in ANSWERS]
    # Microbatches of ten tokens at most: a class is spread over several, in another order.
    batches = pack(answers, [CREDIT] * 5, PackingSpec(10, num_minibatches=2), weighting)
    assert len(batches) > 2
    advantages = estimates(batches, [advantage for *_, advantage in ANSWERS])
    assert advantage_metrics(batches, advantages, answers, alone) == pytest.approx(
        {
            "advantage/right_original": right_original,
            "advantage/wrong_original": -0.25,
            "advantage/wrong_restart_correct": 2.0,
            "advantage/right_restart_incorrect": 8.0,
        }
    )


def test_terms_are_means_over_all_trajectories_and_accuracy_over_graded_ones() -> None:
    plain = make_trajectory(2, [1, 1])
    parts = [
        RewardBreakdown({"rule": -1.0, "length": 0.5}, correct=False),
        RewardBreakdown({"rule": 0.0, "length": 0.25}, correct=True),
        RewardBreakdown({"length": 0.25}, np.array([1.0, -0.5], np.float32)),
        RewardBreakdown({}),
    ]
    scored = tuple(plain.with_reward(part) for part in parts)
    experience = Experience(scored, stats={"rollout/kept": 1.0, "passes": 3.0})
    metrics = experience_metrics(experience, format_of=lambda _: COAT)
    assert metrics["rollout/kept"] == 1.0 and "passes" not in metrics
    assert {k: v for k, v in metrics.items() if k.startswith("reward/")} == {
        "reward/total": 0.0,
        "reward/rule": -0.25,
        "reward/length": 0.25,
        "reward/process": 0.25,
    }
    assert metrics["rollout/accuracy"] == metrics["rollout/accuracy_original"] == 0.5
    ungraded = experience_metrics(Experience((), sampled=scored[2:]), format_of=lambda _: COAT)
    assert not [name for name in ungraded if name.startswith("rollout/accuracy")]
    assert "reward/rule" not in ungraded


def test_verifications_of_a_step_are_counted() -> None:
    experience = Experience(tuple(judged(text) for text in GROUP))
    metrics = experience_metrics(experience, format_of=lambda _: TRIALS.in_dialect("words"))
    assert metrics == metrics | {
        "rollout/verifications": 6.0,
        "rollout/verification_accuracy": pytest.approx(4 / 6),
        "rollout/error_recall": 0.5,
        "rollout/correct_precision": 0.5,
        "rollout/wrong_to_right": pytest.approx(1 / 3),
        "rollout/right_to_wrong": 0.0,
        "rollout/trials": 1.5,
        "reward/process": 0.0,  # six actions of twelve are right
    }
    # A rate without a denominator is left out.
    right = experience_metrics(
        Experience((judged(GROUP[1]),)), format_of=lambda _: TRIALS.in_dialect("words")
    )
    assert not {"rollout/error_recall", "rollout/wrong_to_right"} & right.keys()
    assert "rollout/verifications" not in experience_metrics(experience, format_of=lambda _: COAT)


def test_answers_without_a_verdict_are_neither_right_nor_wrong() -> None:
    answers = [answer(ORIGINAL, True, 2), answer(ORIGINAL, True, 2)]
    answers[1] = answers[1].with_reward(RewardBreakdown({"length": 1.0}))
    batches = pack(answers, [CREDIT] * 2, PackingSpec(64, 1), "token")
    metrics = advantage_metrics(batches, estimates(batches, [1.0, 9.0]), answers, alone)
    assert metrics == {"advantage/right_original": 1.0}


def test_ranks_are_added_before_the_division() -> None:
    answers = [answer(ORIGINAL, True, 4), answer(ORIGINAL, True, 2)]
    sums: list[torch.Tensor] = []

    def added(of_this_rank: torch.Tensor) -> torch.Tensor:
        sums.append(of_this_rank)
        return torch.stack(sums).sum(0)

    for rank in range(2):
        spec = PackingSpec(64, 1, data_parallel_size=2, data_parallel_rank=rank)
        batches = pack(answers, [CREDIT] * 2, spec, "token")
        metrics = advantage_metrics(batches, estimates(batches, [1.0, 4.0]), answers, added)
    assert metrics == pytest.approx({"advantage/right_original": (4 * 1.0 + 2 * 4.0) / 6})


def test_clamped_ratios_are_a_share_of_the_loss_tokens() -> None:
    # `update` divides every sum by the loss tokens.
    assert update_metrics({"update/num_clamped_ratios": 0.25}) == {"update/clamp_fraction": 0.25}


def test_nothing_kept_leaves_no_metric() -> None:
    assert advantage_metrics([], [], [], alone) == {}


def test_responses_without_an_answer_are_a_share_of_the_graded_ones() -> None:
    flags = [True, False, None, False]
    sampled = [
        replace(answer(ORIGINAL, False, 3), reward=RewardBreakdown({}, answered=flag))
        for flag in flags
    ]
    metrics = experience_metrics(Experience(tuple(sampled)), format_of=lambda _: COAT)
    assert metrics["rollout/no_answer"] == pytest.approx(2 / 3)
    ungraded = Experience((sampled[2],))
    assert "rollout/no_answer" not in experience_metrics(ungraded, format_of=lambda _: COAT)
