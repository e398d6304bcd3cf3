# SPDX-License-Identifier: Apache-2.0
"""Rows are found where they lie, and copied only when two strides cannot say where."""

import pytest
import torch

from satori_fast.kernels.triton.rows import rows_of

MIXED = torch.arange(7 * 2 * 5 * 4).view(7, 2, 5, 4)


@pytest.mark.parametrize(
    ("x", "is_copied"),
    [
        (MIXED, False),
        (MIXED[0, 0, 0], False),
        (MIXED[:, :, :3], False),  # query heads of a mixed projection
        (MIXED[:, :, 3:4], False),  # its key
        (MIXED[:, :, 3], False),
        (MIXED.transpose(1, 2), True),
        (MIXED[:, 1:, ::2], False),
        (MIXED[..., 1:], False),
        (MIXED[..., ::2], True),
        (MIXED[..., :1], False),
        (MIXED.mT, True),
        (MIXED[:1].expand(6, 2, 5, 4), False),
        (MIXED[::2, :, ::2], True),
        (torch.zeros(()).expand(3, 4), True),
    ],
)
def test_every_row_is_found(x, is_copied):
    rows = rows_of(x)
    flat = x.reshape(-1, x.shape[-1])
    assert rows.count == len(flat)
    memory = rows.tensor.as_strided(
        (rows.tensor.untyped_storage().nbytes() // x.itemsize,), (1,), 0
    )
    for index, expected in enumerate(flat):
        place = index // rows.inner * rows.outer + index % rows.inner * rows.stride
        start = rows.tensor.storage_offset() + place
        assert memory[start : start + x.shape[-1]].equal(expected)
    assert (rows.tensor.data_ptr() != x.data_ptr()) == is_copied
