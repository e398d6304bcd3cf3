# SPDX-License-Identifier: Apache-2.0
"""Memory that waits on the host: it is free meanwhile, and what comes back are the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.parking import Parking
from satori_fast.backbone.step import Learner, build_learner, score, update
from tests.tiny_models import ImitationLoss, ones, random_batch, tiny_model

_SETTINGS = OptimizerSettings(learning_rate=1e-3)


def test_views_of_a_parked_storage_are_as_they_were() -> None:
    whole, other = torch.randn(10), torch.randn(3)
    first, last = whole[:4], whole[6:]
    wanted = [tensor.clone() for tensor in (whole, first, last)]
    parking = Parking(lambda: [first, last, torch.empty(0)], staying=lambda: [other])
    for _ in range(2):
        parking.park()
        parking.park()
        assert parking.is_parked and parking.num_bytes == 40
        assert whole.untyped_storage().nbytes() == 0 and other.untyped_storage().nbytes() == 12
        parking.fetch()
        parking.fetch()
        assert not parking.is_parked and parking.num_bytes == 0
        for tensor, held in zip((whole, first, last), wanted, strict=True):
            assert torch.equal(tensor, held)
        whole += 1
        wanted = [held + 1 for held in wanted]


def test_what_others_read_stays_and_what_is_dropped_has_room_again() -> None:
    kept, dropped, read = torch.randn(4), torch.randn(5), torch.randn(6)
    parking = Parking(
        lambda: [kept, read[1:]], dropped=lambda: [dropped, kept], staying=lambda: [read]
    )
    before = kept.clone()
    parking.park()
    assert parking.num_bytes == 16 + 20 and read.untyped_storage().nbytes() == 24
    parking.fetch()
    assert torch.equal(kept, before) and dropped.zero_().tolist() == [0.0] * 5


def learner(dtype: torch.dtype, *, trained: bool = True) -> Learner:
    reference = tiny_model("qwen2_tied")
    return build_learner(
        reference.config,
        weights=reference.state_dict(),
        optimizer=_SETTINGS if trained else None,
        dtype=dtype,
    )


def steps(policy: Learner, *, rests: bool) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of three updates, and the weights after them."""
    losses = []
    for seed in range(3):
        batches = [random_batch([12, 7, 30], seed)]
        if rests:
            policy.rest()
        score(policy, batches, temperature=1.0)
        losses.append(update(policy, None, batches, ones(batches), ImitationLoss())["update/loss"])
    return losses, dict(policy.hf_weights())


@pytest.mark.parametrize(("dtype", "num_bytes"), [(torch.float32, 12), (torch.bfloat16, 16)])
def test_an_optimizer_that_rests_takes_the_same_steps(
    dtype: torch.dtype, num_bytes: int, offloading: None
) -> None:
    """What is free: moments, gradients, and of half precision the copies; not what is sampled."""
    policy = learner(dtype)
    losses, weights = steps(policy, rests=True)
    policy.rest()
    assert policy.parking is not None
    numbers = sum(parameter.numel() for parameter in policy.module.parameters())
    assert policy.parking.num_bytes == pytest.approx(num_bytes * numbers, rel=0.02)
    assert policy.optimizer is not None
    states = [tensors["exp_avg"] for _, _, tensors in policy.optimizer.adam_state()]
    assert not policy.parking.is_parked and all(state.abs().sum() > 0 for state in states)
    expected, plain = steps(learner(dtype), rests=False)
    assert losses == expected
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


def test_a_frozen_model_comes_to_score(offloading: None) -> None:
    frozen = learner(torch.float32, trained=False)
    batches = [random_batch([12, 7, 30])]
    (before,) = score(frozen, batches, temperature=1.0)
    frozen.rest()
    numbers = sum(parameter.numel() for parameter in frozen.module.parameters())
    assert frozen.parking is not None and frozen.parking.num_bytes == 4 * numbers
    (after,) = score(frozen, batches, temperature=1.0)
    assert torch.equal(before, after)


def test_without_offload_nothing_rests() -> None:
    initialize_parallel(seed=0)
    policy = learner(torch.float32)
    steps(policy, rests=True)
    policy.rest()
    assert policy.parking is not None and not policy.parking.is_parked
