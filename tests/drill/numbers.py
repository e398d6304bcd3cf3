# SPDX-License-Identifier: Apache-2.0
"""What NaN and absurd numbers do to runs: each must end in one line that names the culprit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.drill.scene import Outcome, Scene
from tests.drill.victim import run

# Case, changed settings, and what the line must hold.
_POISONED = "model.layers.0.mlp.up_proj.weight"
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "NaN in a weight of the model": (
        ("--model.path", "'ROOT/policy'", "--tokenizer.kind", "model"),
        (_POISONED,),
    ),
    "NaN in the head of the reward model": (
        (
            "--reward.model",
            "'ROOT/reward'",
            "--stages",
            '["synthesize", "supervised", "reinforce"]',
        ),
        ("score.weight",),
    ),
    "learning rate 1e20, imitation": (
        ("--supervised.optimizer.learning_rate", "1e20", "--supervised.optimizer.clip_grad", "0.0"),
        ("supervised", "learning rate"),
    ),
    "learning rate 1e20, PPO": (
        (
            *("--reinforce.optimizer.learning_rate", "1e20"),
            *("--reinforce.optimizer.clip_grad", "0.0", "--reinforce.num_steps", "40"),
        ),
        ("the policy", "log-prob"),
    ),
}


def numbers(scene: Scene, *, small: bool) -> Iterator[Outcome]:
    """NaN in the model and in the reward model, and learning rates that blow up."""
    for number, (case, (overrides, wanted)) in enumerate(CASES.items()):
        if small and number == 3:
            continue
        with scene.place(f"numbers-{number}") as place:
            models = scene.reference / "models"
            poisoned(models / "supervised", place / "policy", _POISONED)
            poisoned(models / "preference", place / "reward", "score.weight")
            more = [word.replace("ROOT", str(place)) for word in overrides]
            ending = run(scene.arguments(place, *more), place / "drill")
            judgement, detail = scene.judge(place, ending) if ending.code else ("NOT STOPPED", "")
            if judgement == "told in one line" and not all(word in detail for word in wanted):
                judgement = "CULPRIT NOT NAMED"
            yield Outcome("numbers that are none", case, judgement, detail)


def poisoned(model: Path, folder: Path, name: str) -> None:
    """A copy of a model folder with one NaN in the tensor `name`."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
