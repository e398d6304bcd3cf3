# SPDX-License-Identifier: Apache-2.0
"""What is supported builds; what is not is refused with its name and the supported list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from satori_fast.backbone.architecture import (
    load_hf_config,
    score_statistics,
    transformer_config,
    with_score_statistics,
)
from satori_fast.types import ScoreStatistics
from tests.tiny_models import tiny_model


def _convert(hf_config: Any) -> Any:
    return transformer_config(hf_config, dtype=torch.float32)


def test_sizes_are_carried_over() -> None:
    config = _convert(tiny_model("qwen3").config)
    assert (config.num_layers, config.hidden_size, config.ffn_hidden_size) == (4, 64, 96)
    assert (config.num_attention_heads, config.num_query_groups, config.kv_channels) == (8, 2, 16)
    assert config.qk_layernorm and not config.add_qkv_bias


def test_unsupported_architecture_is_named_with_the_supported_list() -> None:
    config = MistralConfig(architectures=["MistralForCausalLM"])
    with pytest.raises(ValueError, match=r"MistralForCausalLM .* supported: Qwen2 .*Qwen3.*Llama"):
        _convert(config)


@pytest.mark.parametrize(
    ("config", "feature"),
    [
        (LlamaConfig(attention_bias=True), "attention_bias"),
        (LlamaConfig(mlp_bias=True), "mlp_bias"),
        (LlamaConfig(hidden_act="gelu"), "gelu"),
        (Qwen2Config(use_sliding_window=True, max_window_layers=1), "use_sliding_window"),
    ],
)
def test_unsupported_feature_is_named(config: Any, feature: str) -> None:
    with pytest.raises(ValueError, match=feature):
        _convert(config)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("{", "cannot be used: .*not a valid JSON file"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        ("[]", "cannot be used: .*model_type"),
        ('{"model_type": "foo"}', "cannot be used: .*model type `foo`"),
        ('{"model_type": "qwen2", "hidden_size": "x"}', "cannot be used: .*hidden_size"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_one_line(
    tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=said) as refused:
        load_hf_config(tmp_path)
    text = str(refused.value)
    assert text.startswith(str(tmp_path / "config.json")) and "\n" not in text


def test_folder_without_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_hf_config(tmp_path)
    tiny_model("llama31").config.save_pretrained(tmp_path)
    assert load_hf_config(tmp_path).model_type == "llama"


def test_score_statistics_live_in_config_json(tmp_path: Path) -> None:
    plain = tiny_model("qwen2").config
    assert score_statistics(plain) is None
    statistics = ScoreStatistics(mean=-1.25, std=0.5)
    with_score_statistics(plain, statistics).save_pretrained(tmp_path)
    assert score_statistics(plain) is None
    opened = load_hf_config(tmp_path)
    # The names of OpenRLHF, so that reward models can be exchanged.
    assert (opened.mean, opened.std) == (-1.25, 0.5)
    assert score_statistics(opened) == statistics
    assert score_statistics(with_score_statistics(opened, None)) is None
