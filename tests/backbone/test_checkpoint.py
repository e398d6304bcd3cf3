# SPDX-License-Identifier: Apache-2.0
"""Resumed equals uninterrupted to the bit; folders are whole or absent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from satori_fast.backbone.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.step import Learner, build_learner, update
from tests.tiny_models import ImitationLoss, ones, random_batch, tiny_model

_SETTINGS = OptimizerSettings(
    learning_rate=1e-3, schedule="cosine", warmup_steps=1, decay_steps=8, weight_decay=0.1
)


def _learners(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Learner]:
    config = tiny_model("qwen2_tied").config
    policy = build_learner(config, optimizer=_SETTINGS, seed=seed, dtype=dtype)
    critic = build_learner(config, kind="scalar", optimizer=_SETTINGS, seed=seed, dtype=dtype)
    return {"policy": policy, "critic": critic}


def _train(learners: dict[str, Learner], steps: range) -> None:
    for step in steps:
        batches = [random_batch([12, 7, 30], step)]
        update(learners["policy"], learners["critic"], batches, ones(batches), ImitationLoss())


def _weights(learners: dict[str, Learner]) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{tensor_name}": tensor.clone()
        for name, learner in learners.items()
        for tensor_name, tensor in learner.hf_weights()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saved_at", [0, 2])
def test_resumed_equals_uninterrupted_to_the_bit(
    tmp_path: Path, saved_at: int, dtype: torch.dtype
) -> None:
    straight = _learners(seed=0, dtype=dtype)
    _train(straight, range(saved_at))
    save_checkpoint(tmp_path / "step-2", straight, {"step": saved_at})
    _train(straight, range(saved_at, 4))
    resumed = _learners(seed=1, dtype=dtype)
    _train(resumed, range(7, 8))  # what the loaded state must overwrite
    assert load_checkpoint(tmp_path / "step-2", resumed) == {"step": saved_at}
    _train(resumed, range(saved_at, 4))
    expected = _weights(straight)
    assert all(torch.equal(t, expected[n]) for n, t in _weights(resumed).items())


_RESUME_ELSEWHERE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_checkpoint import _learners, _train, _weights
from satori_fast.backbone.checkpoint import load_checkpoint
from satori_fast.backbone.parallel import initialize_parallel
initialize_parallel()
learners = _learners(seed=1)
load_checkpoint(sys.argv[2] + "/step-2", learners)
_train(learners, range(2, 4))
torch.save(_weights(learners), sys.argv[2] + "/weights.pt")
"""


def test_resuming_in_a_new_process_gives_the_same_bits(tmp_path: Path) -> None:
    learners = _learners(seed=0)
    _train(learners, range(2))
    save_checkpoint(tmp_path / "step-2", learners, {})
    here = str(Path(__file__).parent)
    threads = torch.get_num_threads()
    code = f"import torch; torch.set_num_threads({threads})" + _RESUME_ELSEWHERE
    subprocess.run([sys.executable, "-c", code, here, str(tmp_path)], check=True, timeout=120)
    _train(learners, range(2, 4))
    expected = torch.load(tmp_path / "weights.pt")
    assert all(torch.equal(t, expected[n]) for n, t in _weights(learners).items())


def test_saving_that_dies_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    learners = {"policy": _learners(seed=0)["policy"]}
    save_checkpoint(tmp_path / "step-1", learners, {"step": 1})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "step-1", learners, {"step": object()})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "step-2", learners, {"step": object()})
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1"
    assert load_checkpoint(tmp_path / "step-1", learners) == {"step": 1}
    save_checkpoint(tmp_path / "step-1", learners, {"step": 5})  # over the old and the debris
    assert load_checkpoint(tmp_path / "step-1", learners) == {"step": 5}


def test_latest_is_the_highest_number_and_none_without_one(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None
    for name in ("step-9", "step-10", "notes", "step-11"):
        (tmp_path / name).mkdir()
        if name != "step-11":  # not complete
            (tmp_path / name / "extra.json").write_text("{}")
    assert latest_checkpoint(tmp_path) == tmp_path / "step-10"


def test_missing_checkpoint_and_missing_learner_are_named(tmp_path: Path) -> None:
    learners = _learners(seed=0)
    with pytest.raises(ValueError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere", learners)
    save_checkpoint(tmp_path / "step-1", {"policy": learners["policy"]}, {})
    with pytest.raises(ValueError, match="'critic'"):
        load_checkpoint(tmp_path / "step-1", learners)
