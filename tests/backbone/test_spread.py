# SPDX-License-Identifier: Apache-2.0
"""Rows laid into places and read back: what plain indexing gives, and its gradient."""

from __future__ import annotations

import pytest
import torch

from satori_fast.backbone.spread import Spread, gathered, spread

# Row 0 in three places, row 1 in two, row 2 in one; place 6 pads and repeats row 2.
ROWS = torch.tensor([0, 1, 2, 0, 1, 0, 2])
LAYOUT = Spread(
    ROWS,
    torch.tensor([0, 1, 2]),
    (
        (torch.tensor([1]), torch.tensor([[1, 4]])),
        (torch.tensor([0]), torch.tensor([[0, 3, 5]])),
    ),
)


def test_each_place_has_its_row_and_each_row_the_sum_of_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    plain = rows.detach().clone().requires_grad_()
    upstream = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    upstream[6] = 0.0  # nothing real reads a padding place
    laid = spread(rows, LAYOUT)
    assert torch.equal(laid, plain[ROWS])
    laid.backward(upstream)
    plain[ROWS].backward(upstream)
    torch.testing.assert_close(rows.grad, plain.grad, rtol=1e-12, atol=1e-12)


def test_places_are_read_where_the_layout_says() -> None:
    values = torch.arange(14.0).view(7, 2).requires_grad_()
    read = gathered(values, LAYOUT)
    assert torch.equal(read, values[:3])
    read.backward(torch.ones(3, 2))
    assert values.grad is not None
    assert values.grad.sum(1).tolist() == [2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0]


def test_half_precision_adds_up_in_float32() -> None:
    # 256 + 1 is 256 in bfloat16: added one by one, 64 ones would be lost.
    layout = Spread(
        torch.zeros(65, dtype=torch.int64),
        torch.tensor([0]),
        ((torch.tensor([0]), torch.arange(65)[None]),),
    )
    rows = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.ones(65, 1, dtype=torch.bfloat16)
    upstream[0] = 256.0
    spread(rows, layout).backward(upstream)
    assert rows.grad is not None
    assert float(rows.grad) == pytest.approx(320.0)
