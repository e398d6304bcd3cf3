# SPDX-License-Identifier: Apache-2.0
"""A real language model in training: killed and resumed it ends in the same bits, and two processes
train it as one does."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from satori_fast.profiling.metrics import read_metrics
from tests.stages.test_run import timeless
from tests.stages.two_processes import run_on_two

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

CONFIG = """
schema_version = 1
base = "{base}"
name = "whole"
checkpoints_kept = 1
[model]
path = "{model}"
[parallel]
num_threads = 1
[data]
num_train = 60
[rollout]
max_new_tokens = 32
[synthesize]
num_problems = 8
[solutions]
num_problems = 4
num_samples = 2
[reinforce]
num_steps = 3
problems_per_step = 2
samples_per_problem = 4
checkpoint_every = 1
min_group_std = -1.0  # whatever the few samples are rewarded with is learnt from
[evaluation]
num_problems = 4
"""
# Of a run beside what another left: two checkpoints while one is written, and the models.
DISK_GB = 6.0
SAME = ("models/*/*.safetensors", "samples.jsonl", "demonstrations.jsonl", "solutions/*.jsonl")


@pytest.fixture
def config(real_model: Path, tmp_path: Path) -> Path:
    free = shutil.disk_usage(tmp_path).free / 1e9
    assert free > DISK_GB, f"{tmp_path} has {free:.1f} GB free, and {DISK_GB:g} are needed"
    path = tmp_path / "config.toml"
    base = Path(__file__).parents[2] / "configs/real/smollm2_words.toml"
    path.write_text(CONFIG.format(base=base, model=real_model))
    return path


def command(config: Path, *options: str) -> list[str]:
    own = ["run", str(config), "--output_dir", str(config.parent), *options]
    return [sys.executable, "-m", "satori_fast", *own]


def run_whole(config: Path, *options: str) -> Path:
    """Train it undisturbed -> the folder, without its checkpoints: they are 4 GB."""
    subprocess.run(command(config, *options), check=True, capture_output=True, timeout=900)
    whole = config.parent / "whole"
    shutil.rmtree(whole / "checkpoints")
    return whole


def test_killed_and_resumed_it_ends_in_the_same_bits(config: Path) -> None:
    whole, killed = run_whole(config), config.parent / "killed"
    process = subprocess.Popen(
        command(config, "--name", "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (killed / "checkpoints/reinforce/step-1/manifest.json").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "models/reinforce").exists()
    resume = command(config, "--name", "killed", "--resume")
    subprocess.run(resume, check=True, capture_output=True, timeout=900)
    names = [str(path.relative_to(whole)) for kind in SAME for path in whole.glob(kind)]
    assert len(names) >= 5
    for name in names:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert timeless(killed / "metrics.jsonl") == timeless(whole / "metrics.jsonl")


def test_two_processes_train_it_as_one_does(config: Path) -> None:
    """In float32, sums being of another order: the same samples, losses and gradient norms, and
    weights that differ by less than a step of Adam moves the least sure of them."""
    stages = ("--model.dtype", "float32", "--reinforce.num_steps", "1")
    one, two = run_whole(config, *stages), config.parent / "two"
    run_on_two(config, "--name", "two", *stages, timeout_s=1800)
    compared = 0
    for line, other in zip(
        *(read_metrics(folder / "metrics.jsonl") for folder in (one, two)), strict=True
    ):
        for name in line.keys() & {"update/loss", "update/grad_norm", "supervised/loss"}:
            assert other[name] == pytest.approx(line[name], rel=1e-3, abs=1e-5), name
            compared += 1
    assert compared >= 3
    assert (two / "samples.jsonl").read_bytes() == (one / "samples.jsonl").read_bytes()
    expected = load_file(one / "models/reinforce/model.safetensors")
    found = load_file(two / "models/reinforce/model.safetensors")
    assert found.keys() == expected.keys()
    differences = torch.cat([(found[n] - expected[n]).abs().flatten() for n in expected])
    assert differences.max() < 2e-3 and differences.mean() < 1e-6
