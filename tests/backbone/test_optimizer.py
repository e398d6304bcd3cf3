# SPDX-License-Identifier: Apache-2.0
"""Training steps against torch.optim.AdamW on the transformers model; the numbers of schedules."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.step import build_learner, update
from tests.tiny_models import ImitationLoss, imitation_reference, ones, random_batch, tiny_model

# Adam divides by sqrt(v) + epsilon: a larger epsilon keeps rounding in tiny gradients from showing.
_SETTINGS = OptimizerSettings(
    learning_rate=1e-3, weight_decay=0.1, beta2=0.95, epsilon=1e-5, clip_grad=1.0
)


@pytest.mark.parametrize("name", ["qwen2_tied", "qwen3"])
def test_three_steps_equal_torch_adamw(name: str) -> None:
    reference = tiny_model(name).train()
    learner = build_learner(reference.config, weights=reference.state_dict(), optimizer=_SETTINGS)
    decayed = [p for p in reference.parameters() if p.dim() > 1]
    kept = [p for p in reference.parameters() if p.dim() == 1]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.95),
        eps=1e-5,
    )
    for step in range(3):
        batch = random_batch([9, 20, 6], seed=step)
        stats = update(learner, None, [batch], ones([batch]), ImitationLoss())
        adamw.zero_grad()
        loss = imitation_reference(reference, [batch])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        adamw.step()
        assert stats["update/loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert stats["update/grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert norm > 1.0  # clipping is at work
    trained = dict(reference.named_parameters())
    for tensor_name, tensor in learner.hf_weights():
        assert (tensor - trained[tensor_name]).abs().max() < 5e-6, tensor_name


def test_norms_and_biases_do_not_decay() -> None:
    settings = OptimizerSettings(learning_rate=0.1, weight_decay=0.5)
    learner = build_learner(tiny_model("qwen2").config, optimizer=settings)
    before = {n: t.clone() for n, t in learner.hf_weights()}
    assert learner.optimizer is not None
    learner.optimizer.zero_grad()
    learner.optimizer.step()  # all gradients are zero: only the decay moves anything
    for name, tensor in learner.hf_weights():
        factor = 1.0 if tensor.dim() == 1 else 1 - 0.1 * 0.5
        torch.testing.assert_close(tensor, before[name] * factor, msg=name)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1]),
        (
            "cosine",
            [0.5, 1.0, *(0.55 + 0.45 * math.cos(math.pi * k / 4) for k in range(1, 5)), 0.1],
        ),
    ],
)
def test_schedule_warms_up_from_the_first_step_and_decays_to_the_floor(
    schedule: str, expected: list[float]
) -> None:
    settings = OptimizerSettings(
        learning_rate=1.0,
        schedule=schedule,  # type: ignore[arg-type]
        warmup_steps=2,
        decay_steps=6,
        min_learning_rate_ratio=0.1,
    )
    learner = build_learner(tiny_model("llama31", num_hidden_layers=1).config, optimizer=settings)
    assert learner.optimizer is not None
    rates = []
    for _ in expected:
        learner.optimizer.zero_grad()
        learner.optimizer.step()
        rates.append(learner.optimizer.learning_rate)
    assert rates == pytest.approx(expected)


def test_infinite_gradient_moves_nothing() -> None:
    learner = build_learner(tiny_model("qwen2", num_hidden_layers=1).config, optimizer=_SETTINGS)
    assert learner.optimizer is not None
    before = {n: t.clone() for n, t in learner.hf_weights()}
    learner.optimizer.zero_grad()
    next(learner.module.parameters()).main_grad[0, 0] = math.inf
    norm, stepped = learner.optimizer.step()
    assert math.isinf(norm) and not stepped and learner.optimizer.num_steps == 0
    assert all(torch.equal(t, before[n]) for n, t in learner.hf_weights())
    learner.optimizer.zero_grad()
    assert learner.optimizer.step() == (0.0, True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", 0.0), ("schedule", "step"), ("beta2", 1.0), ("clip_grad", -1.0)],
)
def test_settings_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        OptimizerSettings(**{"learning_rate": 1e-3, field: value})  # type: ignore[arg-type]


def test_decay_must_outlast_the_warm_up() -> None:
    with pytest.raises(ValueError, match="decay_steps"):
        OptimizerSettings(learning_rate=1e-3, schedule="cosine", warmup_steps=5, decay_steps=5)


def test_master_weights_are_those_that_were_loaded(tmp_path: Path) -> None:
    """In bfloat16 a step too small to see leaves the checkpoint's bits; masters made from other
    weights would put theirs in their place."""
    tiny_model("qwen2").bfloat16().save_pretrained(tmp_path)
    learner = build_learner(
        tiny_model("qwen2").config,
        weights=tmp_path,
        optimizer=OptimizerSettings(learning_rate=1e-12, weight_decay=0.0),
        dtype=torch.bfloat16,
    )
    before = {name: tensor.clone() for name, tensor in learner.hf_weights()}
    batch = random_batch([12, 7])
    update(learner, None, [batch], ones([batch]), ImitationLoss())
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.hf_weights())
