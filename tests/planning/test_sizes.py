# SPDX-License-Identifier: Apache-2.0
"""Parameters of known models against their published numbers, and of a rank's share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from satori_fast.planning.layouts import Layout
from satori_fast.planning.sizes import KNOWN, sizes_of

# total_size of each model.safetensors.index.json on the hub over 2 bytes, or num_parameters of its
# page.
PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2-7b": 7_615_616_512,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "llama-3.1-8b": 8_030_261_248,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_models_have_their_published_size(name: str) -> None:
    assert KNOWN[name].num_parameters() == PUBLISHED[name]


@pytest.mark.parametrize(
    "path",
    ["Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-Math-7B", "models/qwen2.5-coder-7b-instruct/", "Qwen2.5-7B"],
)
def test_variants_have_the_sizes_of_their_base(path: str) -> None:
    assert sizes_of(path) is KNOWN["qwen2.5-7b"]


def test_an_unknown_model_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'who/knows-7B' is no folder here.*llama-3\.1-8b"):
        sizes_of("who/knows-7B")


def test_a_folder_is_read(tmp_path: Path) -> None:
    """Qwen3-0.6B: norms of heads, no biases, heads wider than the hidden size has room for."""
    config = {
        **{"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28},
        **{"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
        **{"intermediate_size": 3072, "vocab_size": 151_936, "tie_word_embeddings": True},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert sizes_of(str(tmp_path)).num_parameters() == 596_049_920
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"config\.json cannot be planned with: KeyError"):
        sizes_of(str(tmp_path))


def test_ranks_hold_the_model_between_them() -> None:
    """Matrices are split, norms are whole everywhere; both ends of a pipeline hold a vocabulary."""
    seven = KNOWN["qwen2.5-7b"]
    hidden, vocabulary = 3584, 152_064 * 3584
    split = Layout(tensor=4, pipeline=2)
    first, last = (seven.rank_parameters(split, stage=n) for n in (0, 1))
    assert last - first == hidden  # the last norm
    norms = 28 * 2 * hidden + hidden
    assert 4 * (first + last) == seven.num_parameters() + 3 * norms
    scalar = seven.rank_parameters(split, kind="scalar", stage=1)
    assert last - scalar == vocabulary // 4 - hidden


def test_a_tied_embedding_has_a_copy_at_the_end_of_a_pipeline() -> None:
    small = KNOWN["qwen2.5-1.5b"]
    vocabulary = 151_936 * 1536
    stages = [small.rank_parameters(Layout(pipeline=2), stage=n) for n in (0, 1)]
    assert sum(stages) == small.num_parameters() + vocabulary
    # The critic of a tied policy has no head to leave out.
    assert small.num_parameters("scalar") == small.num_parameters() + 1536
    # Odd vocabularies are padded.
    odd = KNOWN["llama-3.1-8b"].rank_parameters(Layout(tensor=3))
    assert odd > KNOWN["llama-3.1-8b"].num_parameters() // 3
