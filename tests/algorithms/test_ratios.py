# SPDX-License-Identifier: Apache-2.0
"""Log ratios of segments and sequences against loops over their tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from satori_fast.algorithms.ratios import RatioUnit, unit_log_ratios
from satori_fast.types import PackedBatch
from tests.algorithms.test_advantages import random_batch


def with_old(batch: PackedBatch, seed: int = 0) -> tuple[Tensor, PackedBatch]:
    """Log-probabilities of now, and the batch with the old ones; junk where masked."""
    generator = torch.Generator().manual_seed(seed)
    now, old = -3 * torch.rand(2, batch.num_tokens, generator=generator)
    old = torch.where(batch.loss_mask, old, math.nan)
    return torch.where(batch.loss_mask, now, math.inf), batch.annotated(old_logprobs=old)


def units_of(batch: PackedBatch, unit: RatioUnit) -> list[list[int]]:
    ids = batch.segment_ids if unit == "segment" else batch.sequence_of_token()
    places = batch.loss_mask.nonzero()[:, 0].tolist()
    found = {int(ids[place]): list[int]() for place in places}
    for place in places:
        found[int(ids[place])].append(place)
    return list(found.values())


@pytest.mark.parametrize("unit", ["segment", "sequence"])
@pytest.mark.parametrize("mean", [True, False])
def test_every_token_gets_the_ratio_of_its_unit(unit: RatioUnit, mean: bool) -> None:
    logprobs, batch = with_old(random_batch(seed=6))
    ratios, counts = unit_log_ratios(logprobs, batch, unit, mean=mean)
    gaps = logprobs.double() - batch.require("old_logprobs").double()
    units = units_of(batch, unit)
    assert len(units) > 5
    for places in units:
        total = math.fsum(gaps[places].tolist())
        wanted = total / len(places) if mean else total
        assert ratios[places].tolist() == pytest.approx([wanted] * len(places), abs=1e-12)
        assert counts[places].tolist() == [len(places)] * len(places)
    assert not ratios[~batch.loss_mask].any() and not counts[~batch.loss_mask].any()
    assert ratios.dtype == counts.dtype == torch.float64


@pytest.mark.parametrize("broken", [-math.inf, math.inf, math.nan])
def test_a_broken_token_stays_in_its_unit(broken: float) -> None:
    logprobs, batch = with_old(random_batch(seed=7))
    whole, _ = unit_log_ratios(logprobs, batch, "segment", mean=False)
    first, *others = units_of(batch, "segment")
    logprobs[first[-1]] = broken
    ratios, _ = unit_log_ratios(logprobs, batch, "segment", mean=False)
    rest = [place for places in others for place in places]
    assert ratios[rest].tolist() == pytest.approx(whole[rest].tolist(), abs=1e-5)
    # Far beyond the clamp of the loss, or, for what is not a number, that of the other tokens.
    assert ratios[first].isfinite().all()
    if math.isinf(broken):
        assert (ratios[first] * math.copysign(1.0, broken) > 1e8).all()


def test_nothing_looks_at_a_value() -> None:
    """Also works on a device without values, where a look at one raises."""
    logprobs, batch = with_old(random_batch(seed=8))
    ratios, counts = unit_log_ratios(logprobs.to("meta"), batch.to("meta"), "sequence", mean=True)
    assert ratios.is_meta and counts.is_meta and ratios.shape == (batch.num_tokens,)
