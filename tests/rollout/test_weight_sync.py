# SPDX-License-Identifier: Apache-2.0
"""The sender's side of a weight sync, with a scripted receiver."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from satori_fast.rollout import weight_sync
from satori_fast.rollout.weight_sync import (
    SyncError,
    TensorRecord,
    check_bucket,
    check_complete,
    describe,
    fingerprint,
    push_weights,
)
from tests.rollout.held_clock import HeldClock


class Sink:
    """Keeps what arrives; the real checks of a receiver."""

    def __init__(self, *, bucket_bytes: int = 2**20, timeout_s: float = 60.0) -> None:
        self.bucket_bytes, self.timeout_s = bucket_bytes, timeout_s
        self.policy_version = 0
        self.buckets: list[dict[str, Tensor]] = []
        self.calls: list[str] = []

    def weight_sink(self) -> Sink:
        return self

    def begin(self, version: int) -> None:
        self.calls.append(f"begin {version}")

    def receive(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        check_bucket(records, tensors, where="rank 3")
        self.buckets.append({r.name: t for r, t in zip(records, tensors, strict=True)})

    def finish(self, records: Sequence[TensorRecord]) -> None:
        names = [name for bucket in self.buckets for name in bucket]
        check_complete(records, names, where="rank 3")
        self.calls.append("finish")

    def abort(self) -> None:
        self.calls.append("abort")


class InPlace(Sink):
    def weight_sink(self) -> None:
        return None


def weights(count: int = 5) -> list[tuple[str, Tensor]]:
    return [(f"layer.{i}", torch.randn(10, 10)) for i in range(count)]


def test_everything_arrives_in_buckets_that_fit() -> None:
    sink, sent = Sink(bucket_bytes=900), weights()
    report = push_weights(iter(sent), sink, version=7)
    assert [len(bucket) for bucket in sink.buckets] == [2, 2, 1]
    assert {n: t for bucket in sink.buckets for n, t in bucket.items()} == dict(sent)
    assert sink.calls == ["begin 7", "finish"] and sink.policy_version == 7
    assert (report.num_tensors, report.num_bytes) == (5, 5 * 400)


def test_an_engine_on_the_trainers_weights_only_moves_its_version() -> None:
    engine = InPlace()

    def never():
        raise AssertionError("read")
        yield

    report = push_weights(never(), engine, version=3)
    assert engine.policy_version == 3 and report.num_bytes == 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HeldClock:
    held = HeldClock()
    monkeypatch.setattr(weight_sync, "time", held)
    return held


def test_a_late_tensor_is_named_and_the_sync_aborted(clock: HeldClock) -> None:
    sink = Sink(timeout_s=2.0)
    slow = clock.delayed(weights(), "layer.3", 2.5)
    match = r"'layer.3' came later than rollout.sync_timeout_s = 2 \(0.0 s of 2.5 went"
    with pytest.raises(SyncError, match=match):
        push_weights(slow, sink, version=2)
    assert sink.calls[-1] == "abort" and sink.policy_version == 0


def test_time_in_the_engine_is_told_apart(clock: HeldClock) -> None:
    class Slow(Sink):
        def begin(self, version: int) -> None:
            super().begin(version)
            clock.now += 100.0  # is not the tensors' time

        def receive(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
            super().receive(records, tensors)
            clock.now += 1.5

    one_a_bucket = Slow(bucket_bytes=400, timeout_s=2.0)
    push_weights(weights(2), one_a_bucket, version=1)
    with pytest.raises(SyncError, match=r"'layer.3' came later .* \(3.0 s of 3.0 went into"):
        push_weights(weights(), one_a_bucket, version=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
def test_one_changed_number_changes_the_fingerprint(dtype: torch.dtype) -> None:
    tensor = (torch.randn(33, 7) * 50).to(dtype)
    number = int(fingerprint(tensor))
    assert int(fingerprint(tensor.clone())) == number
    for place in (0, 100, tensor.numel() - 1):
        changed = tensor.clone()
        changed.view(-1)[place] += 1
        assert int(fingerprint(changed)) != number
    swapped = tensor.clone().view(-1)
    swapped[[0, 1]] = swapped[[1, 0]]
    assert int(fingerprint(swapped)) != number
    assert int(fingerprint(tensor.T)) == int(fingerprint(tensor.T.contiguous()))


def test_fingerprints_do_not_depend_on_threads_or_size() -> None:
    tensor = torch.randn(2**24 + 5)  # more than one part
    before = torch.get_num_threads()
    numbers = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        numbers.add(int(fingerprint(tensor)))
    torch.set_num_threads(before)
    assert len(numbers) == 1
    assert int(fingerprint(torch.empty(0))) == 0


def test_a_changed_tensor_is_named() -> None:
    bucket = weights(3)
    records = describe(bucket)
    tensors = [t.clone() for _, t in bucket]
    tensors[1][0, 0] += 1
    with pytest.raises(SyncError, match=r"'layer.1' changed on its way to rank 3"):
        check_bucket(records, tensors, where="rank 3")
    with pytest.raises(SyncError, match=r"'layer.0' was sent as float32 \[10, 10\] and arrived"):
        check_bucket(records, [t.bfloat16() for t in tensors], where="rank 3")


def test_missing_tensors_are_listed() -> None:
    records = describe(weights(6))
    with pytest.raises(SyncError, match=r"'layer.1', 'layer.2', 'layer.3' and 2 more never"):
        check_complete(records, ["layer.0"], where="rank 3")
