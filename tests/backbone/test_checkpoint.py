# SPDX-License-Identifier: Apache-2.0
"""Resumed equals uninterrupted to the bit; folders are whole or absent."""

from __future__ import annotations

import errno
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from satori_fast.backbone import checkpoint
from satori_fast.backbone.checkpoint import (
    Saver,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.step import Learner, build_learner, score, update
from satori_fast.storage import DamagedFile, digests, read_sealed, write_sealed
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


def test_what_is_written_in_the_background_is_of_its_step(tmp_path: Path) -> None:
    """Training goes on under it, and nothing has the name of a checkpoint before it is whole."""
    learners = {"policy": _learners(seed=0)["policy"]}
    _train_policy(learners["policy"], 1)
    expected = _weights(learners)
    saver = Saver()
    assert not saver.finish() and not saver.finish_if_written()
    saver.begin(tmp_path / "step-1", learners, {"step": 1}, in_background=True)
    assert latest_checkpoint(tmp_path) is None
    _train_policy(learners["policy"], 2)
    saver.begin(tmp_path / "step-2", learners, {"step": 2}, in_background=True)  # ends the first
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1"
    assert saver.finish() and not saver.finish()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-2"
    assert load_checkpoint(tmp_path / "step-1", learners) == {"step": 1}
    assert all(torch.equal(t, expected[n]) for n, t in _weights(learners).items())


def test_whoever_changes_a_learner_waits_until_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offloading: None
) -> None:
    """A forward pass does not; a step, a load and a learner that is parked do."""
    learners = {"policy": _learners(seed=0)["policy"]}
    policy = learners["policy"]
    _train_policy(policy, 1)
    save_checkpoint(tmp_path / "step-1", learners, {})
    batches = [random_batch([12, 7], 2)]
    may_go_on = threading.Event()
    copied = checkpoint._copied

    def slow(tensor: torch.Tensor) -> torch.Tensor:
        assert may_go_on.wait(60)
        return copied(tensor)

    monkeypatch.setattr(checkpoint, "_copied", slow)
    for change in (
        lambda: _train_policy(policy, 2),
        lambda: load_checkpoint(tmp_path / "step-1", learners),
        policy.rest,
    ):
        expected = {name: tensor.clone() for name, tensor in _weights(learners).items()}
        may_go_on.clear()
        saver = Saver()
        saver.begin(tmp_path / "step-2", learners, {}, in_background=True)
        score(policy, batches, temperature=1.0)
        changing = threading.Thread(target=change)
        changing.start()
        changing.join(0.3)
        assert changing.is_alive()
        may_go_on.set()
        changing.join()
        assert saver.finish()
        load_checkpoint(tmp_path / "step-2", learners)
        assert all(torch.equal(t, expected[n]) for n, t in _weights(learners).items())


@pytest.mark.parametrize("failing", ["_copied", "write_pieces"])
def test_writing_that_fails_in_the_background_is_said_in_the_foreground(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, failing, full)
    saver = Saver()
    learners = {"policy": build_learner(tiny_model("qwen2", num_hidden_layers=1).config)}
    saver.begin(tmp_path / "step-1", learners, {}, in_background=True)
    with pytest.raises(RuntimeError, match=r"step-1 was not written: rank 0: OSError.*No space"):
        saver.finish()
    assert learners["policy"].is_copied.is_set()
    assert latest_checkpoint(tmp_path) is None
    saver.begin(tmp_path / "step-2", {}, {}, in_background=True)  # and it is not said again
    assert saver.finish()


def _train_policy(policy: Learner, seed: int) -> None:
    batches = [random_batch([12, 7], seed)]
    update(policy, None, batches, ones(batches), ImitationLoss())


def test_latest_is_the_highest_number_and_none_without_one(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None
    assert latest_checkpoint(tmp_path) is None
    for step in (9, 10):
        save_checkpoint(tmp_path / f"step-{step}", {}, {"step": step})
    for name in ("notes", "step-11.partial", "best-12"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-13").write_text("a file of somebody's")
    assert latest_checkpoint(tmp_path) == tmp_path / "step-10"


def damage(path: Path, rng: np.random.Generator) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def test_every_flipped_bit_of_every_file_is_found_and_named(tmp_path: Path) -> None:
    learners = {"policy": _learners(seed=0)["policy"]}
    save_checkpoint(tmp_path / "step-1", learners, {"step": 1})
    files = [path for path in (tmp_path / "step-1").rglob("*") if path.is_file()]
    assert len(files) >= 4
    rng = np.random.default_rng(0)
    for path in files:
        whole = path.read_bytes()
        for _ in range(4):
            damage(path, rng)
            with pytest.raises(DamagedFile, match=re.escape(str(path))):
                load_checkpoint(tmp_path / "step-1", learners)
            path.write_bytes(whole)
        for damaged in (whole[: len(whole) // 2], b""):
            path.write_bytes(damaged)
            with pytest.raises(DamagedFile, match=re.escape(str(path))):
                load_checkpoint(tmp_path / "step-1", learners)
        path.unlink()
        with pytest.raises(DamagedFile, match=re.escape(f"{path} is missing")):
            load_checkpoint(tmp_path / "step-1", learners)
        path.write_bytes(whole)
    assert load_checkpoint(tmp_path / "step-1", learners) == {"step": 1}


def test_the_checkpoint_before_a_damaged_one_is_taken_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / f"step-{step}", {}, {"step": step})
    (tmp_path / "step-3" / "extra.json").write_text('{"step": 4}')
    (tmp_path / "step-2" / "manifest.json").unlink()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1"
    assert str(tmp_path / "step-3" / "extra.json") in caplog.text
    assert str(tmp_path / "step-2" / "manifest.json") in caplog.text
    assert f"going on from the checkpoint before: {tmp_path / 'step-1'}" in caplog.text
    (tmp_path / "step-1" / "extra.json").unlink()
    with pytest.raises(DamagedFile, match=r"no checkpoint can be used, the newest is step-3"):
        latest_checkpoint(tmp_path)


class _Command:
    """A pickle that creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.path}'",)


def test_a_prepared_index_is_refused_before_it_runs(tmp_path: Path) -> None:
    learners = {"policy": _learners(seed=0)["policy"]}
    save_checkpoint(tmp_path / "step-1", learners, {})
    index = tmp_path / "step-1" / "policy" / ".metadata"
    index.write_bytes(pickle.dumps(_Command(tmp_path / "ran")))
    # Whoever prepared the index has made the digests fit.
    manifest = tmp_path / "step-1" / "manifest.json"
    files = digests(tmp_path / "step-1")
    del files["manifest.json"]
    write_sealed(manifest, read_sealed(manifest) | {"files": files})
    with pytest.raises(DamagedFile, match=r"torch wrote: it names posix\.system"):
        load_checkpoint(tmp_path / "step-1", learners)
    assert not (tmp_path / "ran").exists()


def test_pruning_keeps_the_newest_and_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    for step in (8, 9, 10):
        save_checkpoint(tmp_path / f"step-{step}", {}, {})
    for name in ("notes", "step-11.partial", "step-9.replaced", "mine.partial"):
        (tmp_path / name).mkdir()
    prune_checkpoints(tmp_path, num_kept=2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["mine.partial", "notes", "step-10", "step-9"]


def test_missing_checkpoint_and_missing_learner_are_named(tmp_path: Path) -> None:
    learners = _learners(seed=0)
    with pytest.raises(ValueError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere", learners)
    save_checkpoint(tmp_path / "step-1", {"policy": learners["policy"]}, {})
    with pytest.raises(ValueError, match="'critic'"):
        load_checkpoint(tmp_path / "step-1", learners)


def test_a_checkpoint_of_another_version_or_model_is_said_so(tmp_path: Path) -> None:
    learners = {"policy": _learners(seed=0)["policy"]}
    save_checkpoint(tmp_path / "step-1", learners, {})
    config = tiny_model("qwen2_tied").config
    config.intermediate_size *= 2
    with pytest.raises(ValueError, match=r"fc1\.weight has shape .* it is of another model"):
        load_checkpoint(tmp_path / "step-1", {"policy": build_learner(config)})
    untied = build_learner(tiny_model("qwen2").config)
    with pytest.raises(ValueError, match=r"holds no tensor model\.output_layer\.weight"):
        load_checkpoint(tmp_path / "step-1", {"policy": untied})
    manifest = tmp_path / "step-1" / "manifest.json"
    write_sealed(manifest, read_sealed(manifest) | {"format": 3})
    with pytest.raises(DamagedFile, match="has format 3 and this version of satori-fast reads 2"):
        load_checkpoint(tmp_path / "step-1", learners)
