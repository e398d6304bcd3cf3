# SPDX-License-Identifier: Apache-2.0
"""Rows that are copied to several places, and rows picked out of places; gradients without atomics.

A plain gather scatter-adds in its backward: slow on a host, and on a GPU in another order each
time. Here the places of every row are known beforehand, so a backward is gathers and sums of few
numbers, which half precision adds up in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Spread:
    """R rows laid into P places.

    rows:    int64 [P], the row in each place.
    places:  int64 [R], a place of each row: the one that is read back.
    repeats: rows with a gradient at k > 1 places, by k: (rows int64 [S], places int64 [S, k]).
             Places that are not named here have no gradient.
    """

    rows: Tensor
    places: Tensor
    repeats: tuple[tuple[Tensor, Tensor], ...] = ()


def spread(rows: Tensor, layout: Spread) -> Tensor:
    """Copy rows [R, ...] to their places, [P, ...]."""
    copied: Any = _Spread.apply(rows, layout)
    return copied


def gathered(values: Tensor, layout: Spread) -> Tensor:
    """Read the rows [R, ...] back from the places [P, ...] that `Spread.places` names."""
    read: Any = _Gathered.apply(values, layout)
    return read


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: Spread) -> Tensor:
        ctx.layout = layout
        return rows.index_select(0, layout.rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        layout: Spread = ctx.layout
        summed = grad.index_select(0, layout.places)
        for rows, places in layout.repeats:
            copies = grad.index_select(0, places.flatten()).unflatten(0, places.shape)
            summed.index_copy_(0, rows, copies.sum(1))
        return summed, None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, layout: Spread) -> Tensor:
        ctx.layout, ctx.shape = layout, values.shape
        return values.index_select(0, layout.places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.new_zeros(ctx.shape).index_copy_(0, ctx.layout.places, grad), None
