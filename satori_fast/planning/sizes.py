# SPDX-License-Identifier: Apache-2.0
"""Sizes of models: known ones by name, those of a folder, and the parameters that a rank holds.

What training makes of a parameter is `memory`; which architectures can be trained is
`backbone.architecture`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from satori_fast.planning.layouts import Layout
from satori_fast.profiling.flops import ModelShape

Kind = Literal["policy", "scalar"]


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """A dense decoder with all its parameters, norms and biases included.

    shape: as a policy; its `num_logits` are the rows of the vocabulary.
    tied:  the output matrix is the embedding. biased: queries, keys and values have a bias (Qwen2,
           Qwen2.5). normed: queries and keys have a norm for each head (Qwen3).
    """

    shape: ModelShape
    tied: bool
    biased: bool = False
    normed: bool = False

    @property
    def query_size(self) -> int:
        """Numbers of the queries of a token, all heads."""
        return self.shape.num_heads * self.shape.head_dim

    @property
    def key_size(self) -> int:
        """Numbers of the keys of a token, all heads; the values have as many."""
        return self.shape.num_kv_heads * self.shape.head_dim

    @property
    def embedding_size(self) -> int:
        """Elements of the embedding."""
        return self.shape.head_weights

    def shape_of(self, kind: Kind) -> ModelShape:
        """The shape with the outputs of this kind of model."""
        return self.shape if kind == "policy" else replace(self.shape, num_logits=1)

    def num_parameters(self, kind: Kind = "policy") -> int:
        """Parameters of the whole model; a tied embedding counts once."""
        return self.rank_parameters(Layout(), kind=kind)

    def rank_parameters(self, layout: Layout, *, kind: Kind = "policy", stage: int = 0) -> int:
        """Parameters on a rank of pipeline stage `stage`, 0 being the first.

        The embedding is on the first stage and the head on the last, which has a copy of a tied
        embedding where it is not the first; norms and the head of a scalar model are whole on every
        rank.
        """
        tensor, hidden = layout.tensor, self.shape.hidden_size
        found = self._layer_parameters(tensor) * self.shape.num_layers // layout.pipeline
        is_last = stage == layout.pipeline - 1
        if stage == 0:
            found += self._vocabulary(tensor)
        if is_last:
            found += hidden  # the last norm
        if is_last and kind == "scalar":
            found += hidden
        elif is_last and (stage or not self.tied):
            found += self._vocabulary(tensor)
        return found

    def _layer_parameters(self, tensor: int) -> int:
        split = self.shape.layer_weights
        if self.biased:
            split += self.query_size + 2 * self.key_size
        whole = 2 * self.shape.hidden_size
        if self.normed:
            whole += 2 * self.shape.head_dim
        return split // tensor + whole

    def _vocabulary(self, tensor: int) -> int:
        """Elements of a rank's rows of the vocabulary, padded to a multiple of `tensor`."""
        return -(-self.shape.num_logits // tensor) * self.shape.hidden_size


def _qwen2(
    layers: int, hidden: int, heads: int, groups: int, mlp: int, *, vocabulary: int, tied: bool
) -> ModelSizes:
    shape = ModelShape(layers, hidden, heads, groups, hidden // heads, mlp, vocabulary)
    return ModelSizes(shape, tied, biased=True)


# By the config.json of each. Variants (Math, Coder, Instruct) have the sizes of their base model.
KNOWN: Mapping[str, ModelSizes] = MappingProxyType(
    {
        "qwen2.5-0.5b": _qwen2(24, 896, 14, 2, 4864, vocabulary=151_936, tied=True),
        "qwen2.5-1.5b": _qwen2(28, 1536, 12, 2, 8960, vocabulary=151_936, tied=True),
        "qwen2.5-3b": _qwen2(36, 2048, 16, 2, 11_008, vocabulary=151_936, tied=True),
        "qwen2-7b": _qwen2(28, 3584, 28, 4, 18_944, vocabulary=152_064, tied=False),
        "qwen2.5-7b": _qwen2(28, 3584, 28, 4, 18_944, vocabulary=152_064, tied=False),
        "qwen2.5-14b": _qwen2(48, 5120, 40, 8, 13_824, vocabulary=152_064, tied=False),
        "qwen2.5-32b": _qwen2(64, 5120, 40, 8, 27_648, vocabulary=152_064, tied=False),
        "qwen2.5-72b": _qwen2(80, 8192, 64, 8, 29_568, vocabulary=152_064, tied=False),
        "llama-3.1-8b": ModelSizes(ModelShape(32, 4096, 32, 8, 128, 14_336, 128_256), tied=False),
        "smollm2-135m": ModelSizes(ModelShape(30, 576, 9, 3, 64, 1536, 49_152), tied=True),
    }
)
_VARIANT = re.compile(r"-(math|coder|instruct)(?=-|$)")


def sizes_of(path: str) -> ModelSizes:
    """Sizes of a model folder, or of a known model of this name ("owner/model"); else ValueError.

    Example: ``sizes_of("Qwen/Qwen2.5-Math-7B").num_parameters()`` is 7,615,616,512.
    """
    config = Path(path).expanduser() / "config.json"
    if config.is_file():
        return _sizes_in(config)
    name = _VARIANT.sub("", Path(path).name.lower())
    if name in KNOWN:
        return KNOWN[name]
    raise ValueError(
        f"model.path = {path!r} is no folder here, and no model whose sizes are known: put its "
        f"config.json into a folder and name that; known are {', '.join(KNOWN)} and their variants"
    )


def _sizes_in(path: Path) -> ModelSizes:
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        heads = int(read["num_attention_heads"])
        hidden = int(read["hidden_size"])
        shape = ModelShape(
            num_layers=int(read["num_hidden_layers"]),
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=int(read.get("num_key_value_heads") or heads),
            head_dim=int(read.get("head_dim") or hidden // heads),
            intermediate_size=int(read["intermediate_size"]),
            num_logits=int(read["vocab_size"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be planned with: {error!r} of a dense decoder") from None
    family = read.get("model_type")
    tied = bool(read.get("tie_word_embeddings", False))
    return ModelSizes(shape, tied, biased=family == "qwen2", normed=family == "qwen3")
