# SPDX-License-Identifier: Apache-2.0
"""Weights in and out: bit-exact round trips, sharded folders, new tokens, errors with names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from satori_fast.backbone.model import build_model
from satori_fast.backbone.weights import Untaught, iter_hf, load_hf
from tests.tiny_models import NAMES, VOCAB_SIZE, tiny_model


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_returns_the_same_bits_in_the_same_order(name: str) -> None:
    reference = tiny_model(name)
    model = build_model(reference.config, weights=reference.state_dict())
    exported = list(iter_hf(model, reference.config))
    expected = dict(reference.named_parameters())  # a tied matrix once
    assert sorted(name for name, _ in exported) == sorted(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in exported)


def test_folder_of_several_shards_loads_the_same_bits(tmp_path: Path) -> None:
    reference = tiny_model("qwen2_tied")
    reference.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = build_model(reference.config, weights=tmp_path)
    expected = dict(reference.named_parameters())
    assert all(torch.equal(t, expected[n]) for n, t in iter_hf(model, reference.config))
    missing = sorted(tmp_path.glob("*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(ValueError, match=missing.name):
        load_hf(model, tmp_path, reference.config)


def test_missing_folder_and_folder_without_weights_are_named(tmp_path: Path) -> None:
    model = build_model(tiny_model("qwen2").config)
    with pytest.raises(ValueError, match="nowhere"):
        load_hf(model, tmp_path / "nowhere", tiny_model("qwen2").config)
    with pytest.raises(ValueError, match="safetensors"):
        load_hf(model, tmp_path, tiny_model("qwen2").config)


def test_missing_misshaped_and_unknown_tensors_are_named() -> None:
    reference = tiny_model("qwen2")
    model = build_model(reference.config)
    name = "model.layers.1.self_attn.k_proj.bias"
    without = {n: t for n, t in reference.state_dict().items() if n != name}
    with pytest.raises(ValueError, match=f"{name} is missing"):
        load_hf(model, without, reference.config)
    with pytest.raises(ValueError, match=rf"{name} has shape \(3,\)"):
        load_hf(model, {**without, name: torch.zeros(3)}, reference.config)
    extra = "model.layers.1.self_attn.o_proj.bias"
    with pytest.raises(ValueError, match=extra):
        load_hf(model, {**reference.state_dict(), extra: torch.zeros(64)}, reference.config)


@pytest.mark.parametrize("name", ["qwen2", "qwen2_tied"])
def test_added_tokens_start_near_the_mean_row(name: str) -> None:
    reference = tiny_model(name)
    state = reference.state_dict()
    reference.config.vocab_size = VOCAB_SIZE + 5
    model = build_model(reference.config, weights=state)
    grown = dict(iter_hf(model, reference.config))
    again = dict(iter_hf(build_model(reference.config, weights=state), reference.config))
    matrices = ["model.embed_tokens.weight"] + ["lm_head.weight"] * (name == "qwen2")
    for matrix in matrices:
        old, new = grown[matrix].split([VOCAB_SIZE, 5])
        assert torch.equal(old, state[matrix])
        assert ((new - old.mean(0)).abs() <= 0.06 * old.std(0)).all()
        assert len(new.unique(dim=0)) == 5
        assert torch.equal(grown[matrix], again[matrix])


def test_tokens_in_untrained_padding_start_near_the_mean_of_the_trained_rows() -> None:
    reference = tiny_model("qwen2")
    state = reference.state_dict()
    first = VOCAB_SIZE - 7
    for matrix in ("model.embed_tokens.weight", "lm_head.weight"):
        state[matrix][first:] = 50.0  # padding rows hold anything
    new_tokens = (first, first + 1, first + 2)
    model = build_model(reference.config, weights=Untaught(state, new_tokens))
    for matrix, rows in iter_hf(model, reference.config):
        if matrix in ("model.embed_tokens.weight", "lm_head.weight"):
            trained = rows[:first]
            fresh = rows[first : first + 3]
            assert torch.equal(trained, state[matrix][:first])
            assert ((fresh - trained.mean(0)).abs() <= 0.06 * trained.std(0)).all()
            assert (rows[first + 3 :] == 50.0).all()


def test_smaller_vocabulary_than_the_checkpoint_is_refused() -> None:
    reference = tiny_model("qwen2")
    state = reference.state_dict()
    reference.config.vocab_size = VOCAB_SIZE - 1
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight has shape"):
        build_model(reference.config, weights=state)
