# SPDX-License-Identifier: Apache-2.0
"""Model folders: read as learners and left by them, for the tokenizer of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from satori_fast.backbone.model import PolicyModel
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.config import ConfigError, OptimizerConfig
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.stages.models import (
    ModelFolders,
    initial_model_folder,
    model_folder,
    optimizer_settings,
)
from satori_fast.stages.run import build_run
from tests.stages.test_run import tiny_config
from tests.tiny_models import tiny_model

# Fewer tokens than the model of the tests has rows.
TOKENIZER = build_word_tokenizer([f"w{i}" for i in range(100)])


def folders(place: Path, *, max_seqlen: int = 64) -> ModelFolders:
    """`place` holds a model with its tokenizer."""
    initialize_parallel(seed=0)
    tiny_model("qwen2_tied").save_pretrained(place)
    TOKENIZER.save_pretrained(place)
    renderer = PromptRenderer(TOKENIZER, "{question}", max_prompt_tokens=32)
    return ModelFolders(renderer, place, "float32", recompute="none", max_seqlen=max_seqlen)


def test_a_policy_reads_and_leaves_the_same_weights(tmp_path: Path) -> None:
    models = folders(tmp_path / "model")
    policy = models.policy(tmp_path / "model")
    assert policy.optimizer is None
    models.export(policy, tmp_path / "copy")
    before, after = (
        dict(models.policy(tmp_path / name).hf_weights()) for name in ("model", "copy")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_policy_is_kept_to_the_ids_of_its_tokenizer(tmp_path: Path) -> None:
    policy = folders(tmp_path).policy(tmp_path)
    assert isinstance(policy.module, PolicyModel)
    assert policy.module.num_tokens == len(TOKENIZER) < policy.hf_config.vocab_size


def test_a_scalar_model_gives_one_number_per_token(tmp_path: Path) -> None:
    models = folders(tmp_path)
    scalar = models.scalar(tmp_path, OptimizerConfig(learning_rate=1e-3), num_steps=10)
    assert scalar.optimizer is not None and scalar.module.kind == "scalar"


def test_a_context_that_is_too_short_names_the_key(tmp_path: Path) -> None:
    models = folders(tmp_path, max_seqlen=513)
    with pytest.raises(ConfigError, match=r"rollout\.max_seqlen = 513 exceeds .* 512 positions"):
        models.policy(tmp_path)


@pytest.mark.parametrize(
    ("schedule", "num_steps", "warmup"),
    [("constant", 1, 1), ("linear", 1, 0), ("cosine", 3, 2), ("cosine", 10, 9)],
)
def test_a_decay_is_left_at_least_one_step(schedule: str, num_steps: int, warmup: int) -> None:
    values = {"schedule": schedule, "warmup_fraction": 0.95, "learning_rate": 0.5, "beta2": 0.9}
    settings = optimizer_settings(OptimizerConfig.model_validate(values), num_steps)
    assert (settings.warmup_steps, settings.decay_steps) == (warmup, num_steps)
    assert (settings.schedule, settings.learning_rate, settings.beta2) == (schedule, 0.5, 0.9)


@pytest.mark.parametrize("path", ["here", "./owner/model", "/owner/model", "a/b/c"])
def test_what_is_no_name_of_the_hub_is_a_folder(path: str) -> None:
    assert model_folder(path) == Path(path)


def test_a_folder_comes_before_a_name_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert model_folder("owner/model") == Path("owner/model")


def test_a_fresh_model_depends_on_the_seed_alone(tmp_path: Path) -> None:
    made: list[bytes] = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = tiny_config(tmp_path, "--name", name, "--seed", str(seed))
        with build_run(config) as run:
            folder = initial_model_folder(config, run.folder.path)
            made.append((folder / "model.safetensors").read_bytes())
        described = json.loads((folder / "config.json").read_text())
        assert described["hidden_size"] == 32 and described["max_position_embeddings"] == 128
        assert described["vocab_size"] == len(run.renderer.tokenizer)
    assert made[0] == made[1] != made[2]


def test_the_first_model_is_the_given_one(tmp_path: Path) -> None:
    folders(tmp_path / "given")
    config = tiny_config(tmp_path, "--model.path", f"'{tmp_path / 'given'}'")
    assert initial_model_folder(config, tmp_path / "run") == tmp_path / "given"
