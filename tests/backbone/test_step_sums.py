# SPDX-License-Identifier: Apache-2.0
"""Sums of a step by hand. Over ranks and stages they are tested with the steps themselves."""

from __future__ import annotations

import math

import pytest
import torch

from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.step_sums import MinibatchSums, reduced, summary
from satori_fast.types import LossOutput


def test_sums_are_per_loss_token_and_maxes_of_any() -> None:
    state = initialize_parallel(seed=0)
    outputs = [
        LossOutput(torch.tensor(loss), {"kl": torch.tensor(kl)}, {"peak": torch.tensor(peak)})
        for loss, kl, peak in ((3.0, 0.5, 1.0), (5.0, 1.5, -2.0))
    ]
    assert reduced(outputs, 4, state) == ({"loss": 2.0, "kl": 0.5}, {"peak": 1.0})
    assert reduced([], 4, state) == ({}, {})


def test_a_summary_leaves_out_norms_that_are_not_finite_and_counts_the_steps() -> None:
    results = [
        MinibatchSums({"loss": 1.0}, {"peak": 3.0}, grad_norm=2.0, stepped=True),
        MinibatchSums({"loss": 4.0}, {"peak": 1.0}, grad_norm=math.inf, stepped=False),
    ]
    found = summary(results)
    assert found == {"loss": 2.5, "peak": 3.0, "grad_norm": 2.0, "num_skipped": 1.0}
    assert math.isnan(summary(results[1:])["grad_norm"])
    infinite = [
        MinibatchSums({"loss": loss}, {}, grad_norm=1.0, stepped=False)
        for loss in (math.inf, -math.inf)
    ]
    assert math.isnan(summary(infinite)["loss"])
    assert summary(results)["loss"] == pytest.approx(2.5)
