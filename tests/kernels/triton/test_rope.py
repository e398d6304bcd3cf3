# SPDX-License-Identifier: Apache-2.0
"""The rotation kernel in the interpreter, against the reference in float64."""

import pytest
import torch

from satori_fast.kernels import reference_layers
from satori_fast.kernels.triton import rope as file

pytestmark = pytest.mark.usefixtures("interpreter")


def angles(rows, half):
    turns = 6.28 * torch.rand(rows, half)
    return turns.cos(), turns.sin()


def check(x, tolerance=1e-6):
    cos, sin = (t.to(x.dtype) for t in angles(x.shape[0], x.shape[-1] // 2))
    for inverse in (False, True):
        turned = file.rope(x, cos, sin, inverse)
        expected = reference_layers.rope(x.double(), cos.double(), sin.double(), inverse)
        assert turned.is_contiguous() and turned.dtype == x.dtype
        torch.testing.assert_close(turned.double(), expected, atol=tolerance, rtol=tolerance)
        assert turned.equal(file.rope(x, cos, sin, inverse))


# Half a head of 1, 7, 40, 64 and 127 channels; no head dimension, one, two; one token.
@pytest.mark.parametrize(
    "shape", [(1, 2), (333, 2), (7, 3, 14), (33, 2, 3, 80), (127, 1, 128), (5, 2, 254)]
)
def test_equals_the_reference(shape):
    torch.manual_seed(0)
    check(torch.randn(shape))


def test_heads_are_turned_where_they_lie():
    mixed = torch.randn(13, 2, 6, 16)
    for heads in (mixed[:, :, :4], mixed[:, :, 4:5], mixed.transpose(1, 2), mixed[..., ::2]):
        check(heads)
    check(mixed.flatten(1, 2).transpose(0, 1).contiguous().transpose(0, 1))


def test_half_precision_is_read_and_written():
    # The interpreter cuts float32 to bfloat16 where a GPU rounds: twice the error.
    check(torch.randn(9, 3, 16).bfloat16(), tolerance=2**-7)


def test_no_token_at_all():
    cos, sin = angles(0, 4)
    assert file.rope(torch.empty(0, 3, 8), cos, sin, False).shape == (0, 3, 8)


def test_too_wide_heads_are_refused():
    with pytest.raises(ValueError, match="258 channels"):
        file.rope(torch.ones(1, 258), *angles(1, 129), False)
