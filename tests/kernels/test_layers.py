# SPDX-License-Identifier: Apache-2.0
"""Norm, activation and rotary embedding: values and gradients against formulas in float64,
torch.library, torch.compile, layouts, errors. The kernels of a device go through the same."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from satori_fast.kernels import (
    decode_attention,
    implementation,
    layers,
    rms_norm,
    rope,
    swiglu,
)

EPS = 1e-6


def norm_formula(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def add_norm_formula(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return norm_formula(total, weight), total


def swiglu_formula(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


def rope_formula(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The product of complex numbers."""
    a, b = x.chunk(2, -1)
    turn = torch.complex(cos, sin).view(x.shape[0], *(1,) * (x.dim() - 2), -1)
    product = torch.complex(a, b) * turn
    return torch.cat([product.real, product.imag], -1)


def rope_eager(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As transformers writes it."""
    shape = (x.shape[0], *(1,) * (x.dim() - 2), -1)
    cos, sin = (torch.cat([t, t], -1).view(shape) for t in (cos, sin))
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Operation(NamedTuple):
    """A public function, its formula, what eager PyTorch makes of it, and its inputs: the first
    `num_differentiable` have gradients."""

    function: Callable
    formula: Callable
    eager: Callable
    inputs: Callable[[int, int], tuple[Tensor, ...]]
    num_differentiable: int


def eager_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPS)


def angles(rows: int, half: int) -> tuple[Tensor, Tensor]:
    turns = torch.rand(rows, half, dtype=torch.double) * 6.28
    return turns.cos(), turns.sin()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.double)


OPERATIONS = {
    "rms_norm": Operation(
        lambda x, weight: rms_norm(x, weight, eps=EPS),
        norm_formula,
        eager_norm,
        lambda rows, size: (normal(rows, size), 1 + 0.1 * normal(size)),
        2,
    ),
    "add_rms_norm": Operation(
        lambda x, residual, weight: rms_norm(x, weight, eps=EPS, residual=residual),
        add_norm_formula,
        lambda x, residual, weight: (eager_norm(x + residual, weight), x + residual),
        lambda rows, size: (normal(rows, size), normal(rows, size), 1 + 0.1 * normal(size)),
        3,
    ),
    "swiglu": Operation(
        swiglu,
        swiglu_formula,
        lambda gate_up: F.silu(gate_up.chunk(2, -1)[0]) * gate_up.chunk(2, -1)[1],
        lambda rows, size: (3 * normal(rows, 2 * size),),
        1,
    ),
    "rope": Operation(
        rope,
        rope_formula,
        rope_eager,
        lambda rows, size: (normal(rows, 3, 2 * min(size, 128)), *angles(rows, min(size, 128))),
        1,
    ),
}
every_operation = pytest.mark.parametrize("name", OPERATIONS)


def outputs_and_gradients(
    function: Callable, inputs: tuple[Tensor, ...], num_differentiable: int
) -> list[Tensor]:
    """Outputs, then gradients of the differentiable inputs under fixed random upstream ones."""
    inputs = tuple(
        t.detach().requires_grad_(index < num_differentiable) for index, t in enumerate(inputs)
    )
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(7)
    upstream = [torch.randn(t.shape, generator=generator, dtype=torch.double) for t in outputs]
    upstream = [u.to(t) for u, t in zip(upstream, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, inputs[:num_differentiable], upstream)
    return [t.detach() for t in (*outputs, *gradients)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Against the root mean square or 1, the order of all values here, whichever is larger: the
    gradient of a norm over one number is nothing but error."""
    scale = max(float(expected.norm()), expected.numel() ** 0.5)
    return float((actual.double() - expected).norm()) / scale


def check_accuracy(name: str, rows: int, size: int, dtype: torch.dtype, device: str) -> None:
    """Not more than twice the error of eager, nor more than rounding explains."""
    operation = OPERATIONS[name]
    torch.manual_seed(rows + size)
    inputs = tuple(t.to(device, dtype) for t in operation.inputs(rows, size))
    count = operation.num_differentiable
    truth = outputs_and_gradients(operation.formula, tuple(t.double() for t in inputs), count)
    ours = outputs_and_gradients(operation.function, inputs, count)
    eager = outputs_and_gradients(operation.eager, inputs, count)
    one_rounding = max(torch.finfo(dtype).eps / 2, 5e-7)
    for index, (mine, theirs, true) in enumerate(zip(ours, eager, truth, strict=True)):
        assert mine.dtype == dtype and mine.shape == true.shape
        error = relative_error(mine, true)
        assert error <= 2 * relative_error(theirs, true) + 1e-7, (index, error)
        assert error <= one_rounding, (index, error)


@every_operation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (7, 127), (333, 64), (127, 3584)])
def test_equals_the_formula_in_float64(name, rows, size, dtype):
    check_accuracy(name, rows, size, dtype, "cpu")


def test_half_precision_norms_are_those_of_torch_but_for_rare_roundings():
    torch.manual_seed(0)
    x, weight = torch.randn(500, 896).bfloat16(), torch.rand(896).bfloat16()
    mine, theirs = rms_norm(x, weight, eps=EPS), eager_norm(x, weight)
    assert (mine != theirs).float().mean() < 1e-3
    torch.testing.assert_close(mine, theirs, atol=0, rtol=2**-7)
    y, total = rms_norm(x, weight, eps=EPS, residual=mine)
    assert total.equal(x + mine) and y.equal(rms_norm(total, weight, eps=EPS))


@every_operation
def test_gradcheck(name):
    operation = OPERATIONS[name]
    torch.manual_seed(0)
    inputs = operation.inputs(3, 5)
    for index in range(operation.num_differentiable):
        inputs[index].requires_grad_()
    assert torch.autograd.gradcheck(operation.function, inputs)


def operator_arguments(name: str) -> tuple:
    inputs = [t.float() for t in OPERATIONS[name].inputs(4, 6)]
    for tensor in inputs[: OPERATIONS[name].num_differentiable]:
        tensor.requires_grad_()
    return (*inputs, *{"rms_norm": (EPS,), "add_rms_norm": (EPS,), "rope": (False,)}.get(name, ()))


@every_operation
def test_opcheck(name):
    torch.manual_seed(0)
    arguments = operator_arguments(name)
    transposed = [
        t.detach().mT.contiguous().mT.requires_grad_(t.requires_grad)
        if isinstance(t, Tensor) and t.dim() == 2 and name != "rope"
        else t
        for t in arguments
    ]
    for sample in (arguments, transposed):
        outcome = torch.library.opcheck(getattr(layers, f"_{name}").operator, tuple(sample))
        assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("has_sum", [True, False])
def test_opcheck_of_backwards(needs, has_sum):
    x, grad, gate_up = torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 12)
    grad_sum = torch.randn(4, 6) if has_sum else None
    arguments = (grad, grad_sum, x, torch.ones(6), torch.ones(4, 1), *needs)
    for operation, sample in {
        layers._rms_norm_backward: arguments,
        layers._swiglu_backward: (grad, gate_up),
    }.items():
        outcome = torch.library.opcheck(operation.operator, sample)
        assert set(outcome.values()) == {"SUCCESS"}


def everything(x, residual, weight, cos, sin):
    y, total = rms_norm(x, weight, eps=EPS, residual=residual)
    turned = rope(y.unflatten(1, (-1, 4)), cos, sin).flatten(1)
    return swiglu(turned) + rms_norm(total, weight, eps=EPS).chunk(2, -1)[0], total


def test_torch_compile_has_no_graph_break():
    torch.manual_seed(0)
    x, residual, weight = (t.requires_grad_() for t in OPERATIONS["add_rms_norm"].inputs(5, 8))
    cos, sin = angles(5, 2)
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for function in (everything, compiled):
        outputs = function(x, residual, weight, cos, sin)
        gradients = torch.autograd.grad(outputs[0].sum() + outputs[1].sum(), (x, residual, weight))
        if function is everything:
            expected = [*outputs, *gradients]
    torch.testing.assert_close([*outputs, *gradients], expected)


@every_operation
def test_layouts_agree_and_runs_give_the_same_bits(name):
    operation = OPERATIONS[name]
    count = operation.num_differentiable
    torch.manual_seed(0)
    inputs = tuple(t.float() for t in operation.inputs(9, 32))
    expected = outputs_and_gradients(operation.function, inputs, count)
    strided = tuple(torch.stack([t, t + 1], -1)[..., 0] for t in inputs)
    sliced = tuple(torch.cat([t - 1, t, t + 1], -1).chunk(3, -1)[1] for t in inputs)
    again = outputs_and_gradients(operation.function, inputs, count)
    assert all(a.equal(b) for a, b in zip(again, expected, strict=True))
    for variant in (strided, sliced):
        mine = outputs_and_gradients(operation.function, variant, count)
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-6)
        assert all(t.is_contiguous() for t in mine)
    with torch.no_grad():
        quiet = operation.function(*inputs)
    quiet = quiet if isinstance(quiet, tuple) else (quiet,)
    assert all(a.equal(b) for a, b in zip(quiet, expected, strict=False))


@every_operation
def test_threads_do_not_change_the_bits(name):
    operation = OPERATIONS[name]
    torch.manual_seed(0)
    inputs = tuple(t.float() for t in operation.inputs(700, 96))
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            count = operation.num_differentiable
            results.append(outputs_and_gradients(operation.function, inputs, count))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm"])
def test_each_gradient_of_a_norm_alone(name):
    operation = OPERATIONS[name]
    torch.manual_seed(0)
    inputs = operation.inputs(5, 8)
    *_, full = outputs_and_gradients(operation.function, inputs, len(inputs))
    for index in range(len(inputs)):
        detached = tuple(t.clone().requires_grad_(i == index) for i, t in enumerate(inputs))
        outputs = operation.function(*detached)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        (alone,) = torch.autograd.grad(outputs[0].square().sum(), detached[index])
        together = tuple(t.clone().requires_grad_() for t in inputs)
        outputs = operation.function(*together)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        expected = torch.autograd.grad(outputs[0].square().sum(), together)[index]
        torch.testing.assert_close(alone, expected)
    assert full.shape == inputs[-1].shape


def test_the_sum_alone_has_a_gradient():
    x, residual, weight = (t.requires_grad_() for t in OPERATIONS["add_rms_norm"].inputs(5, 8))
    _, total = rms_norm(x, weight, eps=EPS, residual=residual)
    gradients = torch.autograd.grad(
        (3 * total).sum(), (x, residual, weight), allow_unused=True, materialize_grads=True
    )
    assert [t.unique().tolist() for t in gradients] == [[3.0], [3.0], [0.0]]


@every_operation
def test_no_row_at_all(name):
    operation = OPERATIONS[name]
    for tensor in outputs_and_gradients(
        operation.function, operation.inputs(0, 4), operation.num_differentiable
    ):
        assert not tensor.any()


@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm", "swiglu"])
def test_second_derivatives_are_refused(name):
    operation = OPERATIONS[name]
    inputs = operation.inputs(2, 4)
    inputs[0].requires_grad_()
    outputs = operation.function(*inputs)
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    (gradient,) = torch.autograd.grad(first.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="_backward has no gradient"):
        gradient.sum().backward()


def test_rope_is_its_own_second_derivative():
    torch.manual_seed(0)
    x, cos, sin = OPERATIONS["rope"].inputs(2, 4)
    assert torch.autograd.gradgradcheck(lambda x: rope(x, cos, sin), x.requires_grad_())


def test_errors_name_the_argument():
    x, half = torch.randn(3, 8), torch.randn(3, 4)
    for message, call in {
        r"weight has shape \[7\], expected \[8\]": lambda: rms_norm(x, torch.ones(7), eps=EPS),
        "residual is torch.float32": lambda: rms_norm(x, torch.ones(8), eps=EPS, residual=half),
        "residual is torch.bfloat16": lambda: rms_norm(
            x, torch.ones(8), eps=EPS, residual=x.bfloat16()
        ),
        "must be even": lambda: swiglu(x[:, 1:]),
        "cos and sin have shapes": lambda: rope(x, half[1:], half),
        "expected .* even d": lambda: rope(x[:, 1:], half[:, 1:], half[:, 1:]),
        "make them one": lambda: rope(x.bfloat16(), half, half),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def decode_inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    queries, keys = torch.randn(3, 2, 4, 8, dtype=dtype), torch.randn(3, 2, 8, dtype=dtype)
    cache, angles = torch.randn(2, 4, 2, 9, 8, dtype=dtype), torch.randn(3, 4, dtype=dtype)
    return {
        "queries": queries,
        "keys": keys,
        "values": keys.flip(0),
        "key_cache": cache[0],
        "value_cache": cache[1],
        "positions": torch.tensor([8, 0, 4]),
        "cos": angles.cos(),
        "sin": angles.sin(),
    }


@pytest.mark.parametrize("slots", [None, torch.tensor([3, 0, 2])])
def test_decode_attention_is_the_last_row_of_causal_attention(slots: Tensor | None) -> None:
    inputs = decode_inputs(torch.float64)
    queries, key_cache, value_cache = (inputs[n] for n in ("queries", "key_cache", "value_cache"))
    turns = (inputs["cos"], inputs["sin"])
    if slots is None:
        inputs |= {"key_cache": key_cache[:3], "value_cache": value_cache[:3]}
    out = decode_attention(**inputs, slots=slots)
    for row, position in enumerate(inputs["positions"].tolist()):
        slot = row if slots is None else int(slots[row])
        past = slice(0, position + 1)
        expected = F.scaled_dot_product_attention(
            rope(queries, *turns)[row], key_cache[slot, :, past], value_cache[slot, :, past]
        )
        torch.testing.assert_close(out[row], expected)
        assert torch.equal(value_cache[slot, :, position], inputs["values"][row])


def test_decode_attention_is_one_node_of_a_graph() -> None:
    inputs = tuple(decode_inputs().values())
    inputs = (*inputs, torch.tensor([3, 0, 2]))
    outcome = torch.library.opcheck(layers._decode_attention.operator, inputs)
    assert set(outcome.values()) == {"SUCCESS"}
    keywords = decode_inputs()
    expected = decode_attention(**decode_inputs(), slots=inputs[-1])
    compiled = torch.compile(decode_attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**keywords, slots=inputs[-1]), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": torch.randn(3, 2, 6)}, r"keys and values \[B, K, D\] and the caches"),
        ({"key_cache": torch.randn(4, 1, 9, 8)}, "queries must be"),
        ({"keys": torch.randn(3, 2, 8).bfloat16()}, "make the tensors one type"),
        ({"cos": torch.randn(3, 8)}, "cos and sin have shapes"),
        ({"sin": torch.randn(3, 4).double()}, "make them one"),
        ({"positions": torch.zeros(3)}, r"positions must be integers \[3\]"),
        ({"slots": torch.zeros(4, dtype=torch.int64)}, r"slots must be integers \[3\]"),
        ({"queries": torch.randn(3, 2, 4, 8, requires_grad=True)}, "has no gradient"),
        (
            {"value_cache": torch.randn(4, 2, 8, 9).mT, "key_cache": torch.randn(4, 2, 8, 9).mT},
            "must be dense",
        ),
    ],
)
def test_decode_attention_refuses(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_attention(**(decode_inputs() | changes))


def test_implementation_by_device():
    on_host = implementation("rms_norm", "cpu")
    assert on_host in ("cpp", "reference")
    assert implementation("decode_attention", "cpu") == on_host
    assert implementation("decode_attention", "cuda") == "reference"
    for name in ("rms_norm", "swiglu", "rope"):
        assert implementation(name, "cpu") == on_host
        has_triton = importlib.util.find_spec("triton") is not None
        assert implementation(name, "cuda") == ("triton" if has_triton else "reference")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_operation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "size"), [(1, 1), (7, 127), (333, 64), (1027, 3584), (65, 8192), (17, 16384)]
)
def test_the_device_equals_the_formula_in_float64(name, rows, size, dtype):
    check_accuracy(name, rows, size, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_operation
def test_the_device_repeats_its_bits_and_reads_slices(name):
    operation = OPERATIONS[name]
    count = operation.num_differentiable
    inputs = tuple(t.to("cuda", torch.bfloat16) for t in operation.inputs(1000, 896))
    expected = outputs_and_gradients(operation.function, inputs, count)
    sliced = tuple(torch.cat([t - 1, t, t + 1], -1).chunk(3, -1)[1] for t in inputs)
    for variant in (inputs, sliced):
        for mine, one in zip(
            outputs_and_gradients(operation.function, variant, count), expected, strict=True
        ):
            assert mine.equal(one)
