# SPDX-License-Identifier: Apache-2.0
"""Push the trainer's weights into a rollout engine so that a wrong sync cannot pass in silence.

Tensors travel under their Hugging Face names in buckets. Each has a fingerprint that sender and
receiver compute from the bytes they hold; the last message lists every name, so a tensor that was
dropped, changed or late is named in the error. An engine whose sync failed refuses to sample until
one succeeds.

How a bucket reaches an engine is the engine's `WeightSink`. Not for reading or gathering weights:
`Learner.hf_weights` does that.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

NamedTensor = tuple[str, Tensor]

DEFAULT_BUCKET_BYTES = 512 * 2**20
DEFAULT_TIMEOUT_S = 300.0

# Odd multipliers of SplitMix64 as signed 64-bit numbers: a word counts by its place.
_STRIDE = 0x9E3779B97F4A7C15 - 2**64
_OFFSET = 0xBF58476D1CE4E5B9 - 2**64
# Words hashed at a time: bounds the int64 copy of a large tensor.
_HASH_WORDS = 2**24


class SyncError(RuntimeError):
    """A sync that did not leave exactly the sent weights in the engine. Names tensor and rank."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Description of one tensor by its sender. fingerprint: see `fingerprint`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    fingerprint: int


@dataclass(frozen=True, slots=True)
class SyncReport:
    """One finished sync. num_bytes: as sent, once, however many ranks receive."""

    version: int
    num_tensors: int
    num_bytes: int
    wall_s: float


class WeightSink(Protocol):
    """The receiving end of one engine. A call returns when the engine has done its part."""

    bucket_bytes: int
    timeout_s: float

    def begin(self, version: int) -> None:
        """The engine stops sampling from its old weights."""
        ...

    def receive(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        """Check and load one bucket. Raises SyncError for a tensor that arrived changed."""
        ...

    def finish(self, records: Sequence[TensorRecord]) -> None:
        """`records` are all that were sent. Raises SyncError when one never arrived, or when the
        engine has parameters that none of them filled; else it samples from the new weights, with
        nothing cached of the old ones."""
        ...

    def abort(self) -> None:
        """The sync failed: no sampling until one succeeds."""
        ...


class SyncedEngine(Protocol):
    """The part of `rollout.engine.Engine` that a sync needs."""

    policy_version: int

    def weight_sink(self) -> WeightSink | None: ...


def push_weights(
    weights: Iterable[NamedTensor], engine: SyncedEngine, *, version: int
) -> SyncReport:
    """Make `engine` sample from `weights`, (Hugging Face name, tensor), under `version`.

    An engine that reads the trainer's parameters in place has no sink: only its version moves, and
    `weights` is left untouched. Otherwise every rank of the trainer calls this, because making the
    tensors may be collective.

    SyncError: a tensor changed on the way, is missing, or came later than the sink's time-out. The
    engine keeps its old version and refuses to sample; a later complete sync makes it whole.
    """
    begin = time.perf_counter()
    sink = engine.weight_sink()
    records: list[TensorRecord] = []
    num_bytes = 0
    if sink is not None:
        sink.begin(version)
        try:
            # After `begin`: an engine that is slow to stop is no fault of a tensor.
            in_time = _in_time(weights, sink.timeout_s)
            for bucket in _buckets(in_time, sink.bucket_bytes):
                described = describe(bucket)
                sink.receive(described, [tensor for _, tensor in bucket])
                records += described
                num_bytes += sum(tensor.nbytes for _, tensor in bucket)
            sink.finish(records)
        except BaseException:
            sink.abort()
            raise
    engine.policy_version = version
    return SyncReport(version, len(records), num_bytes, time.perf_counter() - begin)


def _in_time(weights: Iterable[NamedTensor], timeout_s: float) -> Iterator[NamedTensor]:
    """`weights`; SyncError names the first that comes more than `timeout_s` after the first was
    asked for, with the share of that time in which the engine took those before it."""
    begin = time.monotonic()
    in_engine = 0.0
    for name, tensor in weights:
        made = time.monotonic()
        if made - begin > timeout_s:
            raise SyncError(
                f"weight sync: tensor {name!r} came later than rollout.sync_timeout_s = "
                f"{timeout_s:g} ({in_engine:.1f} s of {made - begin:.1f} went into sending those "
                "before it); the engine waits for a complete sync"
            )
        yield name, tensor
        in_engine += time.monotonic() - made


def _buckets(weights: Iterable[NamedTensor], bucket_bytes: int) -> Iterator[list[NamedTensor]]:
    """Consecutive tensors of at most `bucket_bytes` together, or a single larger one."""
    bucket: list[NamedTensor] = []
    num_bytes = 0
    for name, tensor in weights:
        if bucket and num_bytes + tensor.nbytes > bucket_bytes:
            yield bucket
            bucket, num_bytes = [], 0
        bucket.append((name, tensor))
        num_bytes += tensor.nbytes
    if bucket:
        yield bucket


def describe(bucket: Sequence[NamedTensor]) -> list[TensorRecord]:
    """A record for each tensor; one transfer from the device for all of them."""
    prints = fingerprints([tensor for _, tensor in bucket])
    return [
        TensorRecord(name, dtype_name(tensor.dtype), tuple(tensor.shape), number)
        for (name, tensor), number in zip(bucket, prints, strict=True)
    ]


def rows_of(records: Sequence[TensorRecord]) -> list[list[Any]]:
    """Records as they stand in a message of JSON."""
    return [[r.name, r.dtype, list(r.shape), r.fingerprint] for r in records]


def records_of(rows: Sequence[Sequence[Any]]) -> list[TensorRecord]:
    """Inverse of `rows_of`."""
    return [TensorRecord(name, dtype, tuple(shape), number) for name, dtype, shape, number in rows]


def check_bucket(records: Sequence[TensorRecord], tensors: Sequence[Tensor], *, where: str) -> None:
    """Compare what arrived with what was sent. SyncError names the first tensor that differs."""
    for record, tensor in zip(records, tensors, strict=True):
        if (dtype_name(tensor.dtype), tuple(tensor.shape)) != (record.dtype, record.shape):
            raise SyncError(
                f"weight sync: tensor {record.name!r} was sent as {record.dtype} "
                f"{list(record.shape)} and arrived on {where} as {dtype_name(tensor.dtype)} "
                f"{list(tensor.shape)}"
            )
    for record, number in zip(records, fingerprints(tensors), strict=True):
        if number != record.fingerprint:
            raise SyncError(
                f"weight sync: tensor {record.name!r} changed on its way to {where} "
                f"(fingerprint {number:#x}, sent {record.fingerprint:#x}); sync again"
            )


def check_complete(sent: Sequence[TensorRecord], received: Iterable[str], *, where: str) -> None:
    """SyncError names the tensors of `sent` that are not in `received`."""
    names = set(received)
    missing = [record.name for record in sent if record.name not in names]
    if missing:
        raise SyncError(
            f"weight sync: {_listed(missing)} never arrived on {where} "
            f"({len(missing)} of {len(sent)} tensors missing); sync again"
        )


def _listed(names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def fingerprints(tensors: Sequence[Tensor]) -> list[int]:
    """`fingerprint` of each, as Python integers; waits for the device once."""
    if not tensors:
        return []
    return torch.stack([fingerprint(tensor) for tensor in tensors]).tolist()


def fingerprint(tensor: Tensor) -> Tensor:
    """int64 []: a hash of the bytes of `tensor`, on its device,

        sum_i word_i (i STRIDE + OFFSET)   modulo 2^64,   word_i its i-th 32 bits (or bytes).

    Any single changed word changes it, as does an exchange of two different ones, up to chance in
    2^32. Integer sums have no order, so host and device agree, for every number of threads.
    """
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    words = flat.view(torch.int32) if flat.numel() % 4 == 0 else flat
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, words.numel(), _HASH_WORDS):
        part = words[start : start + _HASH_WORDS].to(torch.int64)
        place = torch.arange(start, start + part.numel(), device=part.device)
        total += (part * (place * _STRIDE + _OFFSET)).sum()
    return total


def weights_fingerprint(weights: Iterable[NamedTensor]) -> str:
    """Name of a whole set of weights, from the fingerprints of its tensors: 16 hex digits.

    Every rank must call it where making the tensors is collective.
    """
    records = [record for named in weights for record in describe([named])]
    rows = json.dumps(sorted(rows_of(records)))
    return hashlib.sha256(rows.encode()).hexdigest()[:16]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
