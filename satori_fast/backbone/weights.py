# SPDX-License-Identifier: Apache-2.0
"""Weights in and out of a model, by the one table of `weight_table.py`.

`load_hf` reads the table forwards, `iter_hf` backwards (export and rollout sync share that), and
`initialize` forwards from random numbers. Both directions copy bits: a round trip is exact.
"""

from __future__ import annotations

import copy
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor, nn

from satori_fast.backbone.weight_files import SafetensorsFolder, say_once
from satori_fast.backbone.weight_table import REPLICATED, Entry, Geometry, table

# Matrices with a row for each id.
VOCABULARY = _EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Scale of the noise that tells new embedding rows apart, in standard deviations of the old rows.
_NEW_ROW_NOISE = 0.01
_NO_TOKENS: Mapping[int, Sequence[int]] = MappingProxyType({})
# What every operation knows.
_USUAL = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class NewTokenRows:
    """A checkpoint, and the ids of tokens whose rows it has not trained: these are made afresh.

    source:     as for `load_hf`.
    new_tokens: by id the ids of known tokens that say the same, if there are any.
    """

    source: str | os.PathLike[str] | Mapping[str, Tensor]
    new_tokens: Mapping[int, tuple[int, ...]]


Source = str | os.PathLike[str] | Mapping[str, Tensor] | NewTokenRows


def load_hf(module: Any, source: Source, hf_config: Any) -> None:
    """Copy Hugging Face weights into this rank's part of `module`, one parameter at a time.

    source: a folder with safetensors, or a mapping of names to full tensors.

    A vocabulary larger than the checkpoint's grows: new rows are the mean of the old ones plus a
    little deterministic noise. So are the rows of new tokens (`NewTokenRows`), or the mean of the
    tokens that say the same: rows that all begin as one mean take long to part. A checkpoint padded
    beyond its tokenizer has rows for them that were never trained. A scalar model's head stays as
    it is when the source has none.

    ValueError: missing or damaged file; a tensor (named) that is missing, mis-shaped, unknown, not
    of a floating type, or holds a number that is not finite.
    """
    new_tokens = source.new_tokens if isinstance(source, NewTokenRows) else _NO_TOKENS
    with _opened(source) as tensors:
        try:
            _load(module, tensors, hf_config, new_tokens)
        except ValueError as error:
            raise ValueError(f"{_place(tensors)}: {error}") from None


def with_true_ties(hf_config: Any, source: Source) -> Any:
    """`hf_config`, untied where the checkpoint has an output matrix that is not its embedding.

    That is what transformers makes of such a checkpoint: its configuration is wrong.
    """
    if not hf_config.tie_word_embeddings:
        return hf_config
    with _opened(source) as tensors:
        if not {_EMBEDDING, _HEAD} <= tensors.keys() or _same_rows(tensors, _EMBEDDING, _HEAD):
            return hf_config
        say_once(
            f"{_place(tensors)}: tie_word_embeddings is true, but {_HEAD} differs from "
            f"{_EMBEDDING}: both are read, and models made from them say false",
            logging.WARNING,
        )
    changed = copy.deepcopy(hf_config)
    changed.tie_word_embeddings = False
    return changed


def _same_rows(tensors: Mapping[str, Tensor], first: str, second: str) -> bool:
    """True where two matrices are equal; read a block at a time, up to the first difference."""
    if isinstance(tensors, SafetensorsFolder):
        return tensors.same(first, second)
    a, b = tensors[first], tensors[second]
    return a.shape == b.shape and torch.equal(a.float(), b.float())


@contextmanager
def _opened(source: Source) -> Iterator[Mapping[str, Tensor]]:
    """The tensors of a source; files are closed at the end."""
    if isinstance(source, NewTokenRows):
        source = source.source
    if isinstance(source, Mapping):
        yield source
        return
    folder = SafetensorsFolder(source)
    try:
        yield folder
    finally:
        folder.close()


def _place(tensors: Mapping[str, Tensor]) -> str:
    return f"model folder {tensors.folder}" if isinstance(tensors, SafetensorsFolder) else "weights"


def initialize(module: Any, hf_config: Any, *, seed: int) -> None:
    """Fresh weights as transformers draws them: matrices normal(0, initializer_range), norms 1,
    biases and a scalar head 0. Each tensor has its own seed, so every parallel layout agrees."""
    _load(module, _RandomWeights(table(hf_config, module.kind), hf_config, seed), hf_config)


class _RandomWeights(Mapping[str, Tensor]):
    def __init__(self, entries: list[Entry], hf_config: Any, seed: int) -> None:
        self._shapes = dict(part for entry in entries for part in entry.hf)
        self._std = hf_config.initializer_range
        self._seed = seed

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        if name == "score.weight":
            return torch.zeros(shape)
        return torch.randn(shape, generator=_generator(name, self._seed)) * self._std

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _generator(name: str, seed: int) -> torch.Generator:
    # The generator keeps 32 bits of its seed: hash both into them.
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))


@torch.no_grad()
def _load(
    module: Any,
    source: Mapping[str, Tensor],
    hf_config: Any,
    new_tokens: Mapping[int, Sequence[int]] = _NO_TOKENS,
) -> None:
    entries = table(hf_config, module.kind)
    _refuse_unknown(source, entries)
    parameters = global_parameters([module])
    geometry = Geometry.of(hf_config, mpu.get_tensor_model_parallel_world_size())
    stored: dict[str, str] = {}
    if hf_config.tie_word_embeddings and _EMBEDDING not in source and _HEAD in source:
        stored[_EMBEDDING] = _HEAD  # the one matrix, under its other name
    size, rank = mpu.get_tensor_model_parallel_world_size(), mpu.get_tensor_model_parallel_rank()
    for entry in entries:
        if entry.name not in parameters:  # held by another pipeline stage, or a tie on this one
            continue
        parameter = parameters.pop(entry.name)
        if entry.hf[0][0] == "score.weight" and "score.weight" not in source:
            continue
        dtype = parameter.dtype
        parts = [
            _fetch(source, stored.get(name, name), shape, dtype, new_tokens)
            for name, shape in entry.hf
        ]
        local = entry.layout.shard(entry.layout.merge(parts, geometry), size, rank)
        assert local.shape == parameter.shape, (entry.name, local.shape, parameter.shape)
        parameter.copy_(local)
        _check_finite(parameter, {name: p for (name, _), p in zip(entry.hf, parts, strict=True)})
    assert not parameters, f"parameters without an entry in the table: {sorted(parameters)}"


def _refuse_unknown(source: Mapping[str, Tensor], entries: list[Entry]) -> None:
    known = {name for entry in entries for name, _ in entry.hf}
    # A tied checkpoint may repeat its embedding; heads of the other kind and rotary tables are
    # recomputed or replaced here.
    ignored = {"lm_head.weight", "score.weight"}
    for name in source:
        if name not in known and name not in ignored and not name.endswith("rotary_emb.inv_freq"):
            raise ValueError(f"tensor {name} of the checkpoint has no place in this architecture")


def _check_finite(parameter: Tensor, parts: dict[str, Tensor]) -> None:
    """Raise ValueError, naming the tensor, where not every number of a loaded parameter is finite.

    A sum tells: one pass and one number to wait for. Where it overflowed, the numbers decide.
    """
    if torch.isfinite(parameter.sum()) or torch.isfinite(parameter).all():
        return
    for name, part in parts.items():
        num_bad = int((~torch.isfinite(part.to(parameter.dtype))).sum())
        if num_bad:
            raise ValueError(
                f"tensor {name} of the checkpoint holds {num_bad} of {part.numel()} numbers that "
                f"are NaN or infinite in {_short(parameter.dtype)}: the checkpoint is damaged, or "
                "its training had diverged; take another one"
            )


def _fetch(
    source: Mapping[str, Tensor],
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    new_tokens: Mapping[int, Sequence[int]],
) -> Tensor:
    """A full tensor of a checkpoint, its vocabulary grown to `shape`, for a model of `dtype`."""
    if name not in source:
        raise ValueError(f"tensor {name} is missing in the checkpoint")
    tensor = source[name]
    if not tensor.is_floating_point():
        raise ValueError(
            f"tensor {name} of the checkpoint holds {_short(tensor.dtype)} numbers: quantised "
            "weights cannot be trained; take the model's bfloat16 or float32 release"
        )
    if tensor.dtype != dtype and isinstance(source, SafetensorsFolder):
        say_once(
            f"{_place(source)}: {_short(tensor.dtype)} weights become {_short(dtype)}",
            logging.INFO if tensor.dtype in _USUAL else logging.WARNING,
        )
    if tensor.dtype not in _USUAL:
        tensor = tensor.to(dtype)
    is_vocabulary = name in VOCABULARY
    if is_vocabulary and tensor.dim() == 2 and tensor.shape[0] <= shape[0]:
        tensor = _with_new_rows(tensor, shape[0], name, new_tokens)
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"tensor {name} has shape {tuple(tensor.shape)}, the configuration asks for {shape}"
        )
    return tensor


def _with_new_rows(
    rows: Tensor, num_rows: int, name: str, new_tokens: Mapping[int, Sequence[int]]
) -> Tensor:
    new = torch.tensor(sorted({*new_tokens, *range(len(rows), num_rows)}), device=rows.device)
    if not len(new):
        return rows
    # Tokens are added at the end: what lies beyond the first new one is padding, never trained.
    known = rows[: int(new[0])].float()
    noise = torch.randn(len(new), rows.shape[1], generator=_generator(name, 0))
    grown = rows.new_zeros(num_rows, rows.shape[1])
    grown[: len(rows)] = rows
    mean = known.mean(0)
    alike = [new_tokens.get(number, ()) for number in new.tolist()]
    begun = torch.stack([known[list(ids)].mean(0) if ids else mean for ids in alike])
    fresh = begun + _NEW_ROW_NOISE * known.std(0) * noise.to(known.device)
    return grown.index_copy_(0, new, fresh.to(rows.dtype))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def iter_hf(module: Any, hf_config: Any, *others: Any) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, full tensor) of every parameter, in Hugging Face's order, on every rank.

    Gathers over tensor and pipeline ranks one parameter at a time, so ALL ranks must iterate to the
    end. A tied model yields its embedding once, as its checkpoints do. The tensors may share memory
    with the parameters: copy what must outlive the next optimizer step.

    others: the other parts of the model on this rank, in an interleaved pipeline.
    """
    parameters = global_parameters([module, *others])
    owners = _pipeline_owners(parameters)
    geometry = Geometry.of(hf_config, mpu.get_tensor_model_parallel_world_size())
    for entry in table(hf_config, module.kind):
        if entry.is_copy:
            continue
        full = _gathered(parameters.get(entry.name), entry, owners)
        parts = entry.layout.split(full, geometry)
        yield from ((name, part) for (name, _), part in zip(entry.hf, parts, strict=True))


def _gathered(
    parameter: Tensor | None, entry: Entry, owners: dict[str, tuple[int, torch.Size, torch.dtype]]
) -> Tensor:
    owner, shape, dtype = owners[entry.name]
    if parameter is None:
        local = torch.empty(shape, dtype=dtype, device=torch.cuda.current_device())
    else:
        local = parameter.detach()
    if mpu.get_pipeline_model_parallel_world_size() > 1:
        group: Any = mpu.get_pipeline_model_parallel_group()
        local = local.contiguous()
        dist.broadcast(local, src=dist.get_global_rank(group, owner), group=group)
    size = mpu.get_tensor_model_parallel_world_size()
    if size == 1 or entry.layout is REPLICATED:
        return local
    shards = [torch.empty_like(local) for _ in range(size)]
    dist.all_gather(shards, local.contiguous(), group=mpu.get_tensor_model_parallel_group())
    return entry.layout.join(shards)


def _pipeline_owners(
    parameters: dict[str, nn.Parameter],
) -> dict[str, tuple[int, torch.Size, torch.dtype]]:
    mine = {name: (p.shape, p.dtype) for name, p in parameters.items()}
    stages: list[Any] = [mine]
    if mpu.get_pipeline_model_parallel_world_size() > 1:
        stages = [None] * mpu.get_pipeline_model_parallel_world_size()
        dist.all_gather_object(stages, mine, group=mpu.get_pipeline_model_parallel_group())
    return {
        name: (stage, *description)
        for stage, held in enumerate(stages)
        for name, description in held.items()
    }


def global_parameters(modules: Iterable[Any]) -> dict[str, nn.Parameter]:
    """Parameters of this rank under names that carry the layer's number in the whole model."""
    parameters = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            if name.startswith("decoder.layers."):
                _, _, local, rest = name.split(".", 3)
                number = module.decoder.layers[int(local)].layer_number - 1
                name = f"decoder.layers.{number}.{rest}"
            parameters[name] = parameter
    return parameters
