# SPDX-License-Identifier: Apache-2.0
"""Weights in and out: bit-exact round trips, sharded folders, new tokens, errors with names."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from satori_fast.backbone.export import export_hf
from satori_fast.backbone.model import build_model
from satori_fast.backbone.step import build_learner
from satori_fast.backbone.weights import VOCABULARY, NewTokenRows, iter_hf, load_hf
from tests.tiny_models import NAMES, VOCAB_SIZE, random_batch, reference_logits, tiny_model


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
    new_tokens = {first: (), first + 1: (), first + 2: ()}
    model = build_model(reference.config, weights=NewTokenRows(state, new_tokens))
    for matrix, rows in iter_hf(model, reference.config):
        if matrix in ("model.embed_tokens.weight", "lm_head.weight"):
            trained = rows[:first]
            fresh = rows[first : first + 3]
            assert torch.equal(trained, state[matrix][:first])
            assert ((fresh - trained.mean(0)).abs() <= 0.06 * trained.std(0)).all()
            assert (rows[first + 3 :] == 50.0).all()


@pytest.mark.parametrize("name", ["qwen2", "qwen2_tied"])
def test_new_tokens_start_near_those_that_say_the_same(name: str) -> None:
    reference = tiny_model(name)
    state = reference.state_dict()
    reference.config.vocab_size = VOCAB_SIZE + 2
    alike = {VOCAB_SIZE: (4, 9, 4), VOCAB_SIZE + 1: (7,)}
    model = build_model(reference.config, weights=NewTokenRows(state, alike))
    for matrix, rows in iter_hf(model, reference.config):
        if matrix in VOCABULARY:
            old = state[matrix]
            means = torch.stack([(2 * old[4] + old[9]) / 3, old[7]])
            assert torch.equal(rows[:VOCAB_SIZE], old)
            assert ((rows[VOCAB_SIZE:] - means).abs() <= 0.06 * old.std(0)).all()


def test_smaller_vocabulary_than_the_checkpoint_is_refused() -> None:
    reference = tiny_model("qwen2")
    state = reference.state_dict()
    reference.config.vocab_size = VOCAB_SIZE - 1
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight has shape"):
        build_model(reference.config, weights=state)


def folder_of(tmp_path: Path, name: str, **changed: torch.Tensor) -> Path:
    """A model folder in which some tensors are others; `__` stands for a dot in a name."""
    reference = tiny_model(name)
    reference.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    new = {n.replace("__", "."): t for n, t in changed.items()}
    save_file(load_file(path) | new, path, metadata={"format": "pt"})
    return tmp_path


@pytest.mark.parametrize("name", ["qwen2_tied", "llama31"])
def test_a_head_that_differs_from_a_tied_embedding_is_kept(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    head = tiny_model(name).get_input_embeddings().weight.detach().clone()
    head[5] += 1
    folder = folder_of(tmp_path, name, lm_head__weight=head)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert expected.config.tie_word_embeddings
    learner = build_learner(expected.config, weights=folder)
    assert expected.config.tie_word_embeddings and not learner.hf_config.tie_word_embeddings
    assert "lm_head.weight differs from model.embed_tokens.weight" in caplog.text
    batch = random_batch([12, 7])
    with torch.no_grad():
        logits = learner.module(batch)
        assert (logits - reference_logits(expected, batch)).abs().max() <= 1e-5
    assert torch.equal(dict(learner.hf_weights())["lm_head.weight"], head)
    export_hf(learner, tmp_path / "exported")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    with torch.no_grad():
        assert (logits - reference_logits(opened, batch)).abs().max() <= 1e-5


def test_a_head_that_repeats_a_tied_embedding_changes_nothing(tmp_path: Path) -> None:
    embedding = tiny_model("qwen2_tied").get_input_embeddings().weight.detach()
    folder = folder_of(tmp_path, "qwen2_tied", lm_head__weight=embedding.clone())
    config = tiny_model("qwen2_tied").config
    for source in (folder, load_file(folder / "model.safetensors")):
        assert build_model(config, weights=source).hf_config.tie_word_embeddings


def test_a_tied_matrix_may_be_stored_as_the_head_alone(tmp_path: Path) -> None:
    reference = tiny_model("qwen2_tied")
    reference.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, path, metadata={"format": "pt"})
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    batch = random_batch([12, 7])
    with torch.no_grad():
        logits = build_model(expected.config, weights=tmp_path)(batch)
        assert (logits - reference_logits(expected, batch)).abs().max() <= 1e-5
        assert (logits - reference_logits(reference, batch)).abs().max() <= 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["policy", "scalar"])
@pytest.mark.parametrize(
    "name",
    ["model.layers.1.self_attn.k_proj.bias", "model.norm.weight", "model.embed_tokens.weight"],
)
def test_a_number_that_is_not_finite_is_refused_with_its_tensor(
    kind: Literal["policy", "scalar"], name: str, bad: float
) -> None:
    reference = tiny_model("qwen2")
    state = {n: t.clone() for n, t in reference.state_dict().items()}
    state[name].flatten()[3:5] = bad
    message = rf"tensor {name} of the checkpoint holds 2 of {state[name].numel()} numbers that"
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        build_model(reference.config, kind=kind, weights=state)


def test_a_head_of_a_reward_model_must_be_finite(tmp_path: Path) -> None:
    score = torch.zeros(1, 64)
    score[0, 2] = float("nan")
    folder = folder_of(tmp_path, "qwen2", score__weight=score)
    with pytest.raises(ValueError, match=r"score\.weight of the checkpoint holds 1 of 64") as error:
        build_model(tiny_model("qwen2").config, kind="scalar", weights=folder)
    assert str(error.value).startswith(f"model folder {folder}: ")


def test_large_numbers_are_finite_unless_the_model_cannot_hold_them() -> None:
    reference = tiny_model("qwen2")
    state = {n: t.clone() for n, t in reference.state_dict().items()}
    state["model.norm.weight"][:4] = 3e38  # their sum is not a float32
    loaded = dict(iter_hf(build_model(reference.config, weights=state), reference.config))
    assert torch.equal(loaded["model.norm.weight"], state["model.norm.weight"])
    state["model.norm.weight"] = state["model.norm.weight"].double() * 10
    with pytest.raises(ValueError, match=r"4 of 64 numbers that are NaN or infinite in float32"):
        build_model(reference.config, weights=state)


def test_other_precisions_are_cast_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    norm = tiny_model("qwen2").state_dict()["model.norm.weight"]
    for dtype in (torch.float64, torch.float16, torch.float8_e4m3fn):
        where = tmp_path / str(dtype)
        folder = folder_of(where, "qwen2", model__norm__weight=norm.to(dtype))
        with caplog.at_level("INFO"):
            models = [build_model(tiny_model("qwen2").config, weights=folder) for _ in range(2)]
        loaded = dict(iter_hf(models[1], models[1].hf_config))["model.norm.weight"]
        assert torch.equal(loaded, norm.to(dtype).float())
        name = str(dtype).removeprefix("torch.")
        assert caplog.text.count(f"{name} weights become float32") == 1


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8, torch.bool])
def test_integers_are_refused_with_their_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    norm = torch.ones(64, dtype=dtype)
    folder = folder_of(tmp_path, "qwen2", model__norm__weight=norm)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"model\.norm\.weight of the checkpoint holds {name}"):
        build_model(tiny_model("qwen2").config, weights=folder)
