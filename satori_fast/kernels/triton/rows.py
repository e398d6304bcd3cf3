# SPDX-License-Identifier: Apache-2.0
"""The rows (last dimensions) of a tensor that need not be contiguous, as a kernel finds them."""

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """Row i of `tensor` starts at element (i // inner) * outer + (i % inner) * stride.

    Enough for a slice of the heads of a projection, without a copy.
    """

    tensor: Tensor
    count: int
    outer: int
    inner: int
    stride: int


def rows_of(x: Tensor) -> Rows:
    """The rows of x [.., size], where they lie; where two strides do not describe that, of a copy.

    Neighbours in a row are neighbours in memory.
    """
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        x = x.contiguous()
    # Leading dimensions that are one walk through memory count as one: (length, stride).
    walks: list[tuple[int, int]] = []
    for length, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if walks and walks[-1][1] == stride * length:
            walks[-1] = (walks[-1][0] * length, stride)
        elif length != 1:
            walks.append((length, stride))
    if len(walks) > 2:
        return rows_of(x.contiguous())
    (first, outer), (inner, stride) = ([*walks, (1, 0), (1, 0)])[:2]
    return Rows(x, first * inner, outer, inner, stride)
