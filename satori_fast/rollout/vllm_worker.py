# SPDX-License-Identifier: Apache-2.0
"""The engine's end of a weight sync: runs inside vLLM's workers, in this process or another.

`SyncExtension` is mixed into vLLM's worker class, so its methods can be called by name on every
rank; `Receiver` loads checked tensors into the model. Not for sampling (`vllm_engine`) nor for the
sender (`weight_sync`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.config import set_current_vllm_config  # pyright: ignore[reportMissingImports]
from vllm.model_executor.model_loader.reload import (  # pyright: ignore[reportMissingImports]
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info  # pyright: ignore[reportMissingImports]
from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

from satori_fast.rollout.weight_sync import (
    SyncError,
    TensorRecord,
    check_bucket,
    check_complete,
    fingerprints,
)


class Receiver:
    """Loads buckets of Hugging Face tensors into a vLLM model, layer by layer.

    Layer by layer, because vLLM packs weights for its kernels after loading (on CPU the unpacked
    ones are gone); a plain `load_weights` would write into nothing.
    """

    def __init__(self, model: Any, model_config: Any, *, where: str) -> None:
        self._model = model
        self._model_config = model_config
        self._where = where
        self._received: set[str] | None = None

    def begin(self) -> None:
        self.abort()  # of a sync whose sender went away
        self._received = set()
        initialize_layerwise_reload(self._model)

    def receive(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        if self._received is None:
            raise SyncError("weight sync: a bucket arrived before the sync began")
        check_bucket(records, tensors, where=self._where)
        # vLLM keeps references until a layer is complete, and the sender may reuse its memory.
        named = [(r.name, t.clone()) for r, t in zip(records, tensors, strict=True)]
        self._model.load_weights(iter(named))
        self._received.update(record.name for record in records)

    def finish(self, records: Sequence[TensorRecord]) -> None:
        if self._received is None:
            raise SyncError("weight sync: it ended before it began")
        check_complete(records, self._received, where=self._where)
        self._check_filled()
        finalize_layerwise_reload(self._model, self._model_config)
        _repack_tied_head(self._model)
        self._received = None

    def abort(self) -> None:
        """Close the layers that a failed sync left open. What they hold is worth nothing, but the
        next sync finds them in order."""
        if self._received is not None:
            finalize_layerwise_reload(self._model, self._model_config)
            self._received = None

    def _check_filled(self) -> None:
        """vLLM puts old weights back, with a warning, where a layer got no new ones."""
        tied = _tied_head(self._model)
        for name, layer in self._model.named_modules():
            info = get_layerwise_info(layer)
            if layer is tied or not info.can_load() or not list(layer.parameters(recurse=False)):
                continue
            # A vocabulary is padded, and no checkpoint fills the padding.
            needed = 1 if hasattr(layer, "num_embeddings_padded") else info.load_numel_total or 0
            if info.load_numel < needed:
                raise SyncError(
                    f"weight sync: {name!r} on {self._where} got {info.load_numel} of "
                    f"{info.load_numel_total} numbers; the sender left out a tensor of it"
                )


class SyncExtension:
    """Methods that vLLM's workers gain (`worker_extension_cls`); see `vllm_engine` for the calls.

    model_runner, vllm_config, rank and model_config are the worker's own.
    """

    model_runner: Any
    vllm_config: Any
    rank: int

    @cached_property
    def _satori_receiver(self) -> Receiver:
        model, config = self.model_runner.model, self.vllm_config.model_config
        return Receiver(model, config, where=f"engine rank {self.rank}")

    def satori_begin(self) -> None:
        with set_current_vllm_config(self.vllm_config):
            self._satori_receiver.begin()

    def satori_abort(self) -> None:
        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            self._satori_receiver.abort()

    def satori_receive(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        with set_current_vllm_config(self.vllm_config):
            self._satori_receiver.receive(records, tensors)

    def satori_finish(self, records: Sequence[TensorRecord]) -> None:
        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            self._satori_receiver.finish(records)
        self.model_runner.reset_lora_state()

    def satori_fingerprints(self) -> dict[str, int]:
        """Fingerprints of the parameters as this rank holds them, in the kernels' own layout."""
        held = {n: p for n, p in self.model_runner.model.named_parameters() if p.numel()}
        return dict(zip(held, fingerprints(list(held.values())), strict=True))


def _tied_head(model: Any) -> Any:
    """The output projection when it shares the embedding's weight, else None."""
    config = getattr(model, "config", None)
    is_tied = bool(getattr(config, "tie_word_embeddings", False))
    return getattr(model, "lm_head", None) if is_tied else None


def _repack_tied_head(model: Any) -> None:
    """Pack a tied head again: on CPU a copy of the OLD embedding outlives a reload, and samples are
    taken from it without a word (vLLM 0.32)."""
    if not current_platform.is_cpu():
        return
    head = _tied_head(model)
    embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is None or embedding is None or head is embedding:
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm  # pyright: ignore[reportMissingImports]

    dispatch_cpu_unquantized_gemm(head, remove_weight=False)
