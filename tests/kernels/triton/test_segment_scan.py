# SPDX-License-Identifier: Apache-2.0
"""The scan kernel in the interpreter, against the reference in float64."""

import pytest
import torch

from satori_fast.kernels import reference
from satori_fast.kernels.triton import segment_scan as file


@pytest.fixture(autouse=True)
def small_blocks(interpreter, resize):
    """The interpreter scans token by token: short sequences must cross blocks too."""
    resize(file.CONFIGURATIONS, BLOCK=32)


# Empty sequences at both ends and inside, one token, one block exactly and one more, several
# blocks, and no sequence at all.
@pytest.mark.parametrize("lengths", [[0, 1, 32, 0, 33, 127, 0], [333], [0], []])
@pytest.mark.parametrize("reverse", [True, False])
def test_equals_the_reference_in_float64(lengths, reverse):
    torch.manual_seed(0)
    boundaries = torch.tensor([0, *lengths]).cumsum(0)
    x = torch.randn(int(boundaries[-1]))
    expected = reference.segment_scan(x.double(), 0.97, boundaries, reverse=reverse)
    for dtype in (torch.int32, torch.int64):
        y = file.segment_scan(x, 0.97, boundaries.to(dtype), reverse=reverse)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
        assert y.equal(file.segment_scan(x, 0.97, boundaries.to(dtype), reverse=reverse))


def test_half_precision_is_summed_in_float32_and_strides_are_kept():
    torch.manual_seed(1)
    x = torch.randn(100, 2).bfloat16()[:, 1]
    boundaries = torch.tensor([0, 3, 100])
    y = file.segment_scan(x, 0.9, boundaries, reverse=True)
    expected = reference.segment_scan(x, 0.9, boundaries, reverse=True)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, atol=0, rtol=2**-7)
