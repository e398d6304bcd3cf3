# SPDX-License-Identifier: Apache-2.0
"""A stage that learns nothing any more says so once, and stops when it goes on."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from satori_fast.algorithms.credit import GroupMean, LeaveOneOut, Terminal
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.step import NonFiniteUpdate
from satori_fast.config import Config, ReinforceConfig, RewardConfig, SrlConfig
from satori_fast.stages import run_stages
from satori_fast.stages.alarms import (
    SkippedUpdates,
    TrainingStopped,
    UninformativeSteps,
    bonus_cancels,
    warn_of_idle_settings,
    warn_of_large_batch,
)
from satori_fast.types import Advantages, Experience, RewardBreakdown, Trajectory
from tests.algorithms.test_advantages import make_trajectory
from tests.stages.test_run import tiny_config
from tests.tiny_models import random_batch

# --- settings without effect ---------------------------------------------------------------------


def test_where_the_bonus_cancels() -> None:
    on, grpo = RewardConfig(), GroupMean()
    assert bonus_cancels(grpo, on, has_restarts=True)
    for rule in (GroupMean(divide_by_std=False), LeaveOneOut(), Terminal()):
        assert not bonus_cancels(rule, on, has_restarts=True)
    assert not bonus_cancels(grpo, on, has_restarts=False)
    others: list[dict[str, Any]] = [
        {"reflection_bonus": 0.0},
        {"preference_weight": 0.5},
        {"rule_weight": 0.0},
        {"functions": ({"path": "my_rewards.py:short_answers"},)},
    ]
    for other in others:
        assert not bonus_cancels(grpo, RewardConfig.model_validate(other), has_restarts=True)


def test_settings_without_effect_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_idle_settings("reinforce", [], bonus_cancels=False)
        assert caplog.records == []
        warn_of_idle_settings("reinforce", ["srl.gae_lambda", "srl.ratio_mean"], bonus_cancels=True)
    keys, bonus = [record.getMessage() for record in caplog.records]
    assert "does not use srl.gae_lambda, srl.ratio_mean: without effect" in keys
    assert bonus.startswith("reinforce: reward.reflection_bonus has no effect")


# --- updates that are not finite -----------------------------------------------------------------


class Told:
    """Takes alarms: their kinds and their lines."""

    def __init__(self) -> None:
        self.alarms: list[tuple[str, str]] = []

    def __call__(self, kind: str, message: str) -> None:
        assert "\n" not in message
        self.alarms.append((kind, message))


def test_each_learner_is_warned_of_once() -> None:
    told = Told()
    alarm = SkippedUpdates("reinforce_2", told)
    clean = {"update/num_skipped": 0.0, "update/loss": 1.0, "rollout/accuracy": 0.5}
    broken = {"update/num_skipped": 2.0, "update/loss": math.nan}
    exploded = {"critic/num_skipped": 1.0, "critic/loss": 0.25}
    for step, metrics in enumerate([clean, broken, broken | exploded, broken | exploded]):
        alarm.look_at(step, metrics)
    (kind, first), (other, second) = told.alarms
    assert (kind, other) == ("updates of the policy", "updates of the critic")
    assert first.startswith(
        "reinforce_2 step 1: 2 updates of the policy were skipped, the loss (nan) is not finite; "
        "max_skipped_updates of its optimizer says how many in a row stop the run; likely causes: "
        "a learning rate that is too high"
    )
    assert second.startswith("reinforce_2 step 2: 1 updates of the critic were skipped, the grad")


def failure(*, loss: float = math.nan) -> NonFiniteUpdate:
    batch = random_batch([5, 4]).annotated(old_logprobs=torch.full((9,), -0.5))
    advantages = Advantages(torch.linspace(0, 1, 9), returns=torch.ones(9))
    work = [(batch, advantages), (random_batch([3], 1), None)]
    return NonFiniteUpdate("critic", 11, loss=loss, grad_norm=math.inf, microbatches=work)


def test_the_batch_of_the_last_update_is_kept(tmp_path: Path) -> None:
    parallel = initialize_parallel(seed=0)
    error = SkippedUpdates("reinforce", Told()).stop(
        7, failure(), folder=tmp_path / "failures", parallel=parallel
    )
    path = tmp_path / "failures" / "reinforce-step-7.safetensors"
    assert str(error).startswith(
        "reinforce step 7: 11 updates of the critic in a row were skipped (max_skipped_updates of "
        "its optimizer = 10), the loss (nan) is not finite; likely causes: "
    )
    assert str(error).endswith(f"the last batch is in {path}") and "\n" not in str(error)
    tensors = load_file(path)
    ((batch, advantages), (second, _)) = failure().microbatches
    assert advantages is not None and advantages.returns is not None
    assert torch.equal(tensors["0.tokens"], batch.tokens)
    assert torch.equal(tensors["0.old_logprobs"], batch.require("old_logprobs"))
    assert torch.equal(tensors["0.advantages"], advantages.advantages)
    assert torch.equal(tensors["0.returns"], advantages.returns)
    assert torch.equal(tensors["1.loss_mask"], second.loss_mask)
    assert "1.advantages" not in tensors
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    assert facts == {
        "stage": "reinforce",
        "step": 7,
        "learner": "critic",
        "updates_skipped_in_a_row": 11,
        "loss": "nan",
        "grad_norm": "inf",
    }


def test_every_data_parallel_rank_keeps_its_own_batch(tmp_path: Path) -> None:
    third = replace(initialize_parallel(seed=0), data_size=4, data_rank=2)
    error = SkippedUpdates("reinforce", Told()).stop(0, failure(), folder=tmp_path, parallel=third)
    assert (tmp_path / "reinforce-step-0-rank-2.safetensors").exists()
    assert "reinforce-step-0-rank-2.safetensors" in str(error)
    second_half = replace(third, data_rank=1, tensor_size=2, tensor_rank=1)
    SkippedUpdates("reinforce", Told()).stop(0, failure(), folder=tmp_path, parallel=second_half)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_batch_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "failures").write_text("a file")
    error = SkippedUpdates("preference", Told()).stop(
        3, failure(loss=1.5), folder=tmp_path / "failures", parallel=initialize_parallel(seed=0)
    )
    assert "the gradient is not finite; likely causes" in str(error)
    assert "the last batch could not be written: " in str(error)


def stopped(config: Config) -> str:
    with pytest.raises(TrainingStopped) as caught:
        run_stages(config)
    return str(caught.value)


def test_a_run_whose_learning_rate_is_absurd_stops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("--stages", "['synthesize', 'supervised']", "--synthesize.num_problems", "8")
    optimizer = "{ learning_rate = 1e30, clip_grad = 0.0, max_skipped_updates = 1 }"
    options += ("--supervised.batch_size", "2", "--supervised.optimizer", optimizer)
    with caplog.at_level(logging.WARNING):
        message = stopped(tiny_config(tmp_path, *options))
    assert "2 updates of the policy in a row were skipped" in message
    (kept,) = (tmp_path / "tiny" / "failures").iterdir()
    assert str(kept) in message and load_file(kept)["0.tokens"].numel()
    assert not (tmp_path / "tiny" / "models" / "supervised").exists()


# --- steps without signal ------------------------------------------------------------------------


def answered(*rights: bool) -> list[Trajectory]:
    plain = make_trajectory(2, [3])
    return [
        plain.with_reward(RewardBreakdown({"rule": right - 1.0}, correct=right)) for right in rights
    ]


def kept_of(sampled: list[Trajectory], num_kept: int) -> Experience:
    """An experience that keeps the first of what was sampled."""
    return Experience(tuple(sampled[:num_kept]), sampled=tuple(sampled))


def alarm_of(
    limit: int, told: Told, *, min_group_std: float | None = 1e-6, **keys: Any
) -> UninformativeSteps:
    config = ReinforceConfig(max_uninformative_steps=limit, **keys)
    return UninformativeSteps("reinforce", config, min_group_std, section="reinforce", tell=told)


def test_steps_without_signal_warn_once_and_stop_at_the_limit() -> None:
    told = Told()
    alarm = alarm_of(3, told)
    wrong, mixed = answered(False, False), answered(True, False)
    alarm.look_at(0, kept_of(wrong, 0))
    alarm.look_at(1, kept_of(wrong, 2))  # a recipe that keeps every group learns nothing either
    alarm.look_at(2, kept_of(mixed, 2))  # starts a new count
    alarm.look_at(3, kept_of(mixed, 0))  # groups of equal rewards, right ones and wrong ones
    alarm.look_at(4, kept_of([], 0))  # partial rollouts finished no group
    alarm.look_at(5, kept_of(wrong, 0))
    with pytest.raises(TrainingStopped) as caught:
        alarm.look_at(6, kept_of(wrong, 0))
    ((kind, warning),) = told.alarms
    assert kind == "no signal"
    assert warning.startswith("reinforce step 0: nothing to learn from: no group of 1 round of ")
    assert "0% of its answers are right; likely causes: problems that are all too hard" in warning
    message = str(caught.value)
    assert message.startswith("reinforce step 6: nothing to learn from in 3 steps in a row (reinfo")
    assert "\n" not in message


def test_few_answers_are_named_as_the_reason() -> None:
    told = Told()
    plain = make_trajectory(2, [3])
    parts = [RewardBreakdown({"rule": -1.0}, correct=False, answered=n < 1) for n in range(32)]
    sampled = [plain.with_reward(part) for part in parts]
    alarm_of(0, told).look_at(0, kept_of(sampled[1:], 0))
    own = UninformativeSteps(
        "reinforce", ReinforceConfig(), None, section="reinforce", answer="a number", tell=told
    )
    own.look_at(0, kept_of(sampled, 0))
    many = [plain.with_reward(replace(part, answered=True)) for part in parts]
    alarm_of(0, told).look_at(0, kept_of(many, 0))
    none, one, all_of_them = [line for _, line in told.alarms]
    assert r"; 0 of 31 answers have a \boxed{}: ask for it in the prompt (data.template" in none
    assert "; 1 of 32 answers have a number: " in one
    assert "answers have" not in all_of_them and "0% of its answers are right" in all_of_them


def test_masked_responses_are_counted() -> None:
    told = Told()
    sampled = [replace(each, finish="length") for each in answered(True, False, False)]
    alarm_of(0, told, truncated="mask").look_at(0, kept_of(sampled, 0))
    assert told.alarms[0][1].endswith("; 3 of 3 responses were cut and left out")


def test_a_batch_that_never_fills_is_told_with_its_figures() -> None:
    rewards = [-1.0, -1.0, 0.4, 0.405]
    plain = make_trajectory(2, [3])
    sampled = tuple(plain.with_reward(RewardBreakdown({"similarity": x})) for x in rewards)
    experience = Experience((), sampled=sampled, stats={"rollout/num_rounds": 3.0})
    config = SrlConfig(max_uninformative_steps=1, max_sampling_rounds=3).reinforcement()
    with pytest.raises(TrainingStopped) as caught:
        alarm = UninformativeSteps("srl", config, 0.01, section="srl", tell=Told())
        alarm.look_at(4, experience)
    message = str(caught.value)
    assert message.startswith(
        "srl step 4: nothing to learn from in 1 steps in a row (srl.max_uninformative_steps): no "
        "group of 3 rounds of sampling has rewards with a standard deviation above "
        "srl.min_group_std = 0.01, rewards go from -1 to 0.405; likely causes: "
    )
    assert "responses that are not of the format; take other problems or" in message
    assert message.endswith("or srl.samples_per_problem, or lower srl.min_group_std")
    assert "\n" not in message and "reinforce" not in message and "right" not in message


def test_a_batch_that_is_filled_in_part_is_warned_of_once() -> None:
    told = Told()
    alarm = alarm_of(1, told, min_group_std=0.01, problems_per_step=2)
    part = replace(kept_of(answered(True, False, False, False), 2), stats={})
    refilled = replace(part, stats={"rollout/num_rounds": 2.0})
    alarm.look_at(0, part)  # without refilling a batch is what is left of one round
    alarm.look_at(1, refilled)
    alarm.look_at(2, refilled)
    ((_, warning),) = told.alarms
    assert warning == (
        "reinforce step 1: it learns from 1 groups, not from 2: no other group of 2 rounds of "
        "sampling has rewards with a standard deviation above reinforce.min_group_std = 0.01, "
        "rewards go from -1 to 0; more rounds (reinforce.max_sampling_rounds) may fill it"
    )


def test_answers_that_nothing_graded_have_no_share_of_right_ones() -> None:
    ungraded = make_trajectory(2, [3]).with_reward(RewardBreakdown({"length": 0.5}))
    told = Told()
    alarm_of(3, told, min_group_std=None).look_at(0, kept_of([ungraded, ungraded], 2))
    ((_, warning),) = told.alarms
    assert "from: all rewards are 0.5; likely causes" in warning and "right" not in warning


def test_without_a_limit_nothing_stops() -> None:
    alarm = alarm_of(0, Told())
    for step in range(200):
        alarm.look_at(step, kept_of(answered(True, True), 0))


# --- batches that are larger than the data -------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "warned"), [(20, False), (21, True)])
def test_a_batch_beyond_all_epochs_is_told(
    batch_size: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_large_batch("distill_2", batch_size, 8, num_epochs=2.5)
    told = "distill_2.batch_size = 21 exceeds the 8 examples of num_epochs = 2.5" in caplog.text
    assert told == warned
