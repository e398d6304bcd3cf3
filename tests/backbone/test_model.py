# SPDX-License-Identifier: Apache-2.0
"""The models against transformers: logits, gradients, packing; and how fresh models start."""

from __future__ import annotations

import pytest
import torch

from satori_fast.backbone.architecture import Recompute, with_score_statistics
from satori_fast.backbone.model import build_model
from satori_fast.backbone.weights import iter_hf, load_hf
from satori_fast.types import ScoreStatistics
from tests.tiny_models import (
    NAMES,
    VOCAB_SIZE,
    ImitationLoss,
    imitation_reference,
    ones,
    random_batch,
    reference_logits,
    tiny_model,
)

_LENGTHS = [7, 12, 33, 1, 80, 5]


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(name: str) -> None:
    reference = tiny_model(name)
    model = build_model(reference.config, weights=reference.state_dict())
    batch = random_batch(_LENGTHS)
    with torch.no_grad():
        logits, expected = model(batch), reference_logits(reference, batch)
    assert logits.shape == (sum(_LENGTHS), VOCAB_SIZE) and logits.dtype == torch.float32
    assert (logits - expected).abs().max() <= 1e-5


def test_packed_equals_one_sequence_at_a_time() -> None:
    reference = tiny_model("qwen3")
    model = build_model(reference.config, weights=reference.state_dict())
    packed = random_batch(_LENGTHS)
    bounds = packed.cu_seqlens.tolist()
    with torch.no_grad():
        together = model(packed)
        for start, length in zip(bounds, _LENGTHS, strict=False):
            alone = random_batch([length])
            alone.tokens.copy_(packed.tokens[start : start + length])
            torch.testing.assert_close(
                model(alone), together[start : start + length], atol=2e-6, rtol=1e-5
            )


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_those_of_transformers(name: str, recompute: Recompute) -> None:
    reference = tiny_model(name)
    model = build_model(reference.config, weights=reference.state_dict(), recompute=recompute)
    batch = random_batch(_LENGTHS)
    terms, (advantages,) = ImitationLoss(), ones([batch])
    output = model(batch, lambda *head, **shard: terms.policy(*head, batch, advantages, **shard))
    (output.loss / batch.num_minibatch_tokens).backward()
    imitation_reference(reference, [batch]).backward()
    # The same table that carries weights carries the expected gradients.
    expected = build_model(
        reference.config,
        weights={name: p.grad for name, p in reference.named_parameters()},
    )
    for (parameter_name, mine), theirs in zip(
        model.named_parameters(), expected.parameters(), strict=True
    ):
        error = (mine.grad - theirs).abs().max() / theirs.abs().max()
        assert error < 1e-4, (parameter_name, float(error))


def test_fresh_model_starts_like_transformers_and_from_its_seed() -> None:
    config = tiny_model("qwen2").config
    tensors = dict(iter_hf(build_model(config, seed=1), config))
    again = dict(iter_hf(build_model(config, seed=1), config))
    other = dict(iter_hf(build_model(config, seed=2), config))
    for name, tensor in tensors.items():
        assert torch.equal(tensor, again[name])
        if tensor.dim() == 2:
            assert abs(float(tensor.std()) / config.initializer_range - 1) < 0.1, name
            assert not torch.equal(tensor, other[name])
        else:
            assert (tensor == (0.0 if name.endswith("bias") else 1.0)).all(), name
    names = ["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(tensors[names[0]], tensors[names[1]])


def test_scalar_model_shares_the_trunk_and_starts_at_zero() -> None:
    reference = tiny_model("qwen2_tied")
    model = build_model(reference.config, kind="scalar", weights=reference.state_dict())
    batch = random_batch(_LENGTHS)
    values = model(batch)
    assert values.shape == (sum(_LENGTHS),) and values.dtype == torch.float32
    assert (values == 0).all()
    head = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    load_hf(model, {**reference.state_dict(), "score.weight": head}, reference.config)
    with torch.no_grad():
        hidden = [
            reference.model(s[None]).last_hidden_state[0] for s in batch.tokens.split(_LENGTHS)
        ]
        torch.testing.assert_close(
            model(batch), (torch.cat(hidden) @ head.T).squeeze(1), atol=1e-5, rtol=1e-5
        )


def test_half_precision_stays_close() -> None:
    reference = tiny_model("llama31")
    model = build_model(reference.config, weights=reference.state_dict(), dtype=torch.bfloat16)
    batch = random_batch(_LENGTHS)
    with torch.no_grad():
        logits, expected = model(batch), reference_logits(reference, batch)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().mean() < 0.02


def test_scalar_values_are_normalised_by_the_statistics_of_the_configuration() -> None:
    reference = tiny_model("qwen2")
    weights = reference.state_dict() | {"score.weight": torch.linspace(-1, 1, 64)[None]}
    statistics = ScoreStatistics(mean=0.75, std=4.0)
    normalized = with_score_statistics(reference.config, statistics)
    batch = random_batch([7, 12])
    with torch.no_grad():
        raw, scaled = (
            build_model(config, kind="scalar", weights=weights)(batch)
            for config in (reference.config, normalized)
        )
    torch.testing.assert_close(scaled, (raw - 0.75) / 4.0)
    assert raw.std() > 0.1
