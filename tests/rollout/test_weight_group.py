# SPDX-License-Identifier: Apache-2.0
"""Broadcasts between two members of a weight group, and what a late or absent member does."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from satori_fast.rollout import weight_group
from satori_fast.rollout.weight_group import GroupConfig, WeightGroup, address_towards, open_store
from satori_fast.rollout.weight_sync import SyncError

NAMES = ["a", "b", "c"]


def meet(timeout_s: float = 30.0) -> tuple[WeightGroup, WeightGroup]:
    """Rank 0 and rank 1, both in this process."""
    store = open_store("127.0.0.1", timeout_s)
    config = GroupConfig("127.0.0.1", store.port, "test", size=2, rank=0, timeout_s=timeout_s)
    with ThreadPoolExecutor() as pool:
        other = pool.submit(WeightGroup, replace(config, rank=1))
        return WeightGroup(config, store=store), other.result()


def weights() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, 5), torch.randn(7).bfloat16(), torch.randn(2, 2, 2)]


def test_tensors_of_any_type_arrive_as_they_were_sent() -> None:
    sender, receiver = meet()
    sent, got = weights(), [torch.zeros_like(t) for t in weights()]
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(sender.broadcast, sent, NAMES)
        receiver.broadcast(got, NAMES)
        sending.result()
    assert all(torch.equal(a, b) for a, b in zip(sent, got, strict=True))
    sender.close()
    receiver.close()


@pytest.mark.parametrize("poll_s", [0.0005, 1.5])
def test_a_tensor_that_does_not_come_is_named(
    poll_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the machine is so busy that gloo's own time-out is the first to be seen."""
    monkeypatch.setattr(weight_group, "_POLL_S", poll_s)
    _, receiver = meet(timeout_s=1.0)
    with pytest.raises(SyncError, match=r"rank 1 could not receive tensor 'a'.*sync_timeout_s = 1"):
        receiver.broadcast(weights(), NAMES)


def test_waiting_ends_when_the_other_side_gave_up() -> None:
    _, receiver = meet()
    begin = time.monotonic()
    with pytest.raises(SyncError, match="tensor 'a': the other side gave up"):
        receiver.broadcast(weights(), NAMES, give_up=lambda: time.monotonic() > begin + 0.2)
    assert time.monotonic() < begin + 10


def test_a_member_that_never_comes_is_an_error_and_no_hang() -> None:
    store = open_store("127.0.0.1", 1.0)
    config = GroupConfig("127.0.0.1", store.port, "alone", size=2, rank=0, timeout_s=1.0)
    with pytest.raises(SyncError, match="rank 0 of 2 could not meet the others"):
        WeightGroup(config, store=store)


def test_address_towards_this_machine_is_loopback() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
