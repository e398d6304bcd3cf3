# SPDX-License-Identifier: Apache-2.0
"""The kernels of the norm in the interpreter, against the reference in float64."""

import pytest
import torch

from satori_fast.kernels import reference_layers
from satori_fast.kernels.triton import norm

EPS = 1e-6
SHAPES = [(1, 1), (7, 127), (127, 7), (11, 333), (3, 3584), (2, 9000)]

pytestmark = pytest.mark.usefixtures("interpreter")


def problem(rows, size):
    """x, residual, gradient of y, gradient of the sum, weight."""
    torch.manual_seed(rows + size)
    return *torch.randn(4, rows, size).unbind(), 1 + 0.1 * torch.randn(size)


def doubles(*tensors):
    return [t.double() for t in tensors]


def close(actual, expected):
    torch.testing.assert_close([t.double() for t in actual], list(expected), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(("rows", "size"), SHAPES)
def test_forward_equals_the_reference(rows, size):
    x, residual, _, _, weight = problem(rows, size)
    close(norm.rms_norm(x, weight, EPS), reference_layers.rms_norm(*doubles(x, weight), EPS))
    y, total, rstd = norm.add_rms_norm(x, residual, weight, EPS)
    assert total.equal(x + residual) and rstd.shape == (rows, 1)
    close((y, rstd), reference_layers.rms_norm(*doubles(total, weight), EPS))


@pytest.mark.parametrize("num_programs", [2, 256])
@pytest.mark.parametrize("has_sum", [True, False])
@pytest.mark.parametrize(("rows", "size"), SHAPES)
def test_backward_equals_the_reference(rows, size, has_sum, num_programs, monkeypatch):
    monkeypatch.setattr(norm, "NUM_PROGRAMS", dict.fromkeys(norm.SIZES, num_programs))
    x, _, grad, grad_sum, weight = problem(rows, size)
    rstd = reference_layers.rms_norm(x.double(), weight.double(), EPS)[1]
    upstream = (grad, grad_sum if has_sum else None)
    expected = reference_layers.rms_norm_backward(
        *(None if t is None else t.double() for t in upstream),
        *doubles(x, weight),
        rstd,
        True,
        True,
    )
    arguments = (*upstream, x, weight, rstd.float())
    gradients = norm.rms_norm_backward(*arguments, True, True)
    # Near one channel the gradient of x is a difference of large numbers.
    scale = float(rstd.max())
    torch.testing.assert_close(doubles(*gradients), list(expected), atol=2e-6 * scale, rtol=1e-5)
    again = norm.rms_norm_backward(*arguments, True, True)
    assert all(a.equal(b) for a, b in zip(gradients, again, strict=True))
    assert norm.rms_norm_backward(*arguments, False, True)[0] is None
    assert norm.rms_norm_backward(*arguments, True, False)[1] is None


def test_heads_are_normed_where_they_lie():
    mixed, weight = torch.randn(9, 2, 6, 16), torch.rand(16)
    for heads in (mixed[:, :, :4], mixed[:, :, 4:5], mixed.transpose(0, 1), mixed[..., ::2]):
        w = weight[: heads.shape[-1]]
        y, rstd = norm.rms_norm(heads, w, EPS)
        assert y.is_contiguous() and y.shape == heads.shape
        close((y, rstd), reference_layers.rms_norm(*doubles(heads, w), EPS))
        arguments = (torch.randn(heads.shape), None, heads, w, rstd)
        close(
            norm.rms_norm_backward(*arguments, True, True),
            reference_layers.rms_norm_backward(
                *(None if t is None else t.double() for t in arguments), True, True
            ),
        )


def test_no_row_at_all():
    x, weight = torch.empty(0, 8), torch.ones(8)
    y, total, rstd = norm.add_rms_norm(x, x, weight, EPS)
    assert y.shape == total.shape == (0, 8) and rstd.shape == (0, 1)
    grad_x, grad_weight = norm.rms_norm_backward(y, None, x, weight, rstd, True, True)
    assert grad_x.shape == (0, 8) and grad_weight.tolist() == [0.0] * 8


def test_half_precision_is_read_and_written():
    # The interpreter cuts float32 to bfloat16 where a GPU rounds: twice the error.
    x, residual, grad, _, weight = (t.bfloat16() for t in problem(7, 127))
    y, total, rstd = norm.add_rms_norm(x, residual, weight, EPS)
    gradients = norm.rms_norm_backward(grad, None, total, weight, rstd, True, True)
    expected = reference_layers.rms_norm(*doubles(total, weight), EPS)[0]
    expected_gradients = reference_layers.rms_norm_backward(
        grad.double(), None, *doubles(total, weight), rstd.double(), True, True
    )
    torch.testing.assert_close(total, x + residual, atol=2**-7, rtol=2**-7)
    for actual, true in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual.double(), true, atol=2**-7, rtol=2**-7)


def test_too_many_channels_are_refused():
    with pytest.raises(ValueError, match="16385 channels"):
        norm.rms_norm(torch.ones(1, 16385), torch.ones(16385), EPS)
