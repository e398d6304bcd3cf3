# SPDX-License-Identifier: Apache-2.0
"""The kernels of the activation in the interpreter, against the reference in float64."""

import pytest
import torch

from satori_fast.kernels import reference_layers
from satori_fast.kernels.triton import activation

pytestmark = pytest.mark.usefixtures("interpreter")


def check(gate_up, grad, tolerance=1e-6):
    out = activation.swiglu(gate_up)
    expected = reference_layers.swiglu(gate_up.double())
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    gradient = activation.swiglu_backward(grad, gate_up)
    expected = reference_layers.swiglu_backward(grad.double(), gate_up.double())
    torch.testing.assert_close(gradient.double(), expected, atol=tolerance, rtol=tolerance)
    assert out.dtype == gradient.dtype == gate_up.dtype
    assert out.equal(activation.swiglu(gate_up))
    assert gradient.equal(activation.swiglu_backward(grad, gate_up))


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (7, 127), (33, 7), (3, 1025), (2, 3584)])
def test_equals_the_reference(rows, size):
    torch.manual_seed(0)
    check(3 * torch.randn(rows, 2 * size), torch.randn(rows, size))


def test_layouts():
    gate_up, grad = torch.randn(6, 4, 22), torch.randn(6, 4, 11)
    check(gate_up[:, 1], grad[:, 2])
    check(gate_up[::2], grad[::2])
    check(gate_up.transpose(0, 1), grad.transpose(0, 1))
    check(gate_up.mT.contiguous().mT, grad.mT.contiguous().mT)
    check(gate_up[0, 0], grad[0, 0])
    check(gate_up[:0], grad[:0])


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_large_gates_neither_overflow_nor_vanish():
    gate_up = torch.tensor([[-1e4, -100.0, 100.0, 1e4, 1.0, 1.0, 1.0, 1.0]])
    assert activation.swiglu(gate_up).tolist() == [[0.0, 0.0, 100.0, 1e4]]
    gradient = activation.swiglu_backward(torch.ones(1, 4), gate_up)
    assert gradient.tolist() == [[0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 100.0, 1e4]]


def test_half_precision_is_read_and_written():
    # The interpreter cuts float32 to bfloat16 where a GPU rounds: twice the error.
    check(torch.randn(9, 62).bfloat16(), torch.randn(9, 31).bfloat16(), tolerance=2**-6)
