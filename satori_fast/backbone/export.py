# SPDX-License-Identifier: Apache-2.0
"""A learner as a Hugging Face folder: configuration, safetensors, tokenizer, generation settings.

What `transformers` opens with nothing else at hand. Checkpoints to resume from are `checkpoint`.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from satori_fast.backbone.architecture import hf_architecture
from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.step import Learner
from satori_fast.storage import PARTIAL, begin_folder, finish_folder

_MAX_SHARD_BYTES = 4 * 10**9


def export_hf(
    learner: Learner,
    folder: str | os.PathLike[str],
    tokenizer: Any | None = None,
    *,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that `transformers` opens, in place of what it held.

    A policy becomes a causal language model, a scalar model a sequence classifier with one label;
    transformers gives its raw scores, whatever statistics the configuration carries.
    generation: content of generation_config.json, which policies get. Its `eos_token_id`, what ends
    a response, becomes the configuration's too: the two files agree.
    Every rank must call it.
    """
    target = Path(folder)
    config = _exported_config(learner, generation or {})
    _on_main(lambda: begin_folder(target))
    partial = target.with_name(target.name + PARTIAL)
    _write_safetensors(learner.hf_weights(), partial)

    def write_rest() -> None:
        config.save_pretrained(partial)
        if generation is not None and learner.module.kind == "policy":
            text = json.dumps(dict(generation), indent=2, ensure_ascii=False)
            (partial / "generation_config.json").write_text(text + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        finish_folder(target)

    _on_main(write_rest)


def _exported_config(learner: Learner, generation: Mapping[str, Any]) -> Any:
    config = copy.deepcopy(learner.hf_config)
    config.eos_token_id = generation.get("eos_token_id", config.eos_token_id)
    config.architectures = [hf_architecture(config, learner.module.kind)]
    config.dtype = next(learner.module.parameters()).dtype
    if learner.module.kind == "scalar":
        config.num_labels = 1
        # transformers reads the score at the last token that is not padding: where padding is the
        # end of text, it would read the token before. Without a padding token it takes the last.
        ends = config.eos_token_id
        if config.pad_token_id in (ends if isinstance(ends, list) else [ends]):
            config.pad_token_id = None
    return config


def _write_safetensors(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Shards of at most `_MAX_SHARD_BYTES`, so that one shard, not the model, is held in memory."""
    shards: list[dict[str, Any]] = []
    held: dict[str, Tensor] = {}
    num_bytes = total_bytes = 0

    def flush() -> None:
        path = folder / f"shard-{len(shards):05d}"
        _on_main(lambda: save_file(held, path, metadata={"format": "pt"}))
        shards.append({"path": path, "names": list(held)})
        held.clear()

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if held and num_bytes + size > _MAX_SHARD_BYTES:
            flush()
            num_bytes = 0
        held[name] = tensor.cpu().contiguous()
        num_bytes += size
        total_bytes += size
    flush()
    _on_main(lambda: _name_shards(shards, folder, total_bytes))


def _name_shards(shards: list[dict[str, Any]], folder: Path, total_bytes: int) -> None:
    if len(shards) == 1:
        shards[0]["path"].rename(folder / "model.safetensors")
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shard["path"].rename(folder / file_name)
        weight_map |= dict.fromkeys(shard["names"], file_name)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _on_main(action: Callable[[], Any]) -> None:
    parallel_state().on_main(action)
