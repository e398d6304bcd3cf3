# SPDX-License-Identifier: Apache-2.0
"""Exported folders open in transformers: equal logits, equal scores, and the same ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from satori_fast.backbone.architecture import with_score_statistics
from satori_fast.backbone.export import export_hf
from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.step import build_learner, score, update, value
from satori_fast.types import ScoreStatistics
from tests.tiny_models import ImitationLoss, ones, random_batch, reference_logits, tiny_model

_SETTINGS = OptimizerSettings(
    learning_rate=1e-3, schedule="cosine", warmup_steps=1, decay_steps=8, weight_decay=0.1
)


@pytest.mark.parametrize("name", ["qwen2", "qwen2_tied", "llama31", "qwen3"])
def test_exported_policy_opens_in_transformers_with_equal_logits(tmp_path: Path, name: str) -> None:
    reference = tiny_model(name)
    learner = build_learner(reference.config, weights=reference.state_dict(), optimizer=_SETTINGS)
    batch = random_batch([12, 7, 30])
    update(learner, None, [batch], ones([batch]), ImitationLoss())
    export_hf(learner, tmp_path / "model")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    state = opened.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in learner.hf_weights())
    with torch.no_grad():
        difference = learner.module(batch) - reference_logits(opened, batch)
    assert opened.dtype == torch.float32 and difference.abs().max() <= 1e-5


def test_exported_scalar_model_is_a_classifier_with_one_label(tmp_path: Path) -> None:
    learner = build_learner(tiny_model("qwen2_tied").config, kind="scalar", seed=0)
    torch.nn.init.normal_(learner.module.output_layer.weight)
    export_hf(learner, tmp_path / "model")
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    batch = random_batch([12])
    with torch.no_grad():
        logits = opened(batch.tokens[None]).logits
        torch.testing.assert_close(learner.module(batch)[-1], logits[0, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "llama31", "qwen3"])
def test_exported_reward_model_gives_transformers_its_raw_scores(tmp_path: Path, name: str) -> None:
    """Also where the end of text is the padding, which transformers would otherwise skip."""
    eos_id = 5
    config = tiny_model(name, eos_token_id=eos_id, pad_token_id=eos_id).config
    weights = tiny_model(name).state_dict() | {"score.weight": torch.linspace(-1, 1, 64)[None]}
    raw = build_learner(config, kind="scalar", weights=weights)
    statistics = ScoreStatistics(mean=0.5, std=3.0)
    described = with_score_statistics(raw.hf_config, statistics)
    export_hf(replace(raw, hf_config=described), tmp_path / "model")
    assert raw.hf_config.pad_token_id == eos_id
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert opened.config.num_labels == 1
    again = build_learner(opened.config, kind="scalar", weights=tmp_path / "model")
    batch = random_batch([12, 7])
    batch.tokens[batch.last_tokens] = eos_id
    with torch.no_grad():
        scores = torch.stack(
            [opened(batch.tokens[None, a:b]).logits[0, 0] for a, b in ((0, 12), (12, 19))]
        )
    ends = batch.last_tokens
    torch.testing.assert_close(value(raw, [batch])[0][ends], scores, atol=1e-5, rtol=1e-5)
    normalized = value(again, [batch])[0][ends]
    torch.testing.assert_close(normalized, (scores - 0.5) / 3.0, atol=1e-5, rtol=1e-5)


def test_export_splits_into_shards_that_load_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("satori_fast.backbone.export._MAX_SHARD_BYTES", 60_000)
    reference = tiny_model("qwen3")
    learner = build_learner(reference.config, weights=reference.state_dict())
    export_hf(learner, tmp_path / "model")
    assert len(list((tmp_path / "model").glob("model-*-of-*.safetensors"))) > 2
    again = build_learner(reference.config, weights=tmp_path / "model")
    batch = random_batch([12, 7])
    (expected,) = score(learner, [batch], temperature=1.0)
    assert torch.equal(score(again, [batch], temperature=1.0)[0], expected)
