# SPDX-License-Identifier: Apache-2.0
"""One definition, two ways into torch: the autograd node of eager code and the traced operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from satori_fast.kernels.registration import Run, operation

calls: list[bool] = []


@operation("tests_cube")
def cube(x: Tensor, scale: float) -> Tensor:
    calls.append(torch.is_grad_enabled())
    return scale * x**3


@cube.register_fake
def _(x: Tensor, scale: float) -> Tensor:
    return x.new_empty(x.shape)


@operation("tests_cube_backward")
def cube_backward(grad: Tensor, x: Tensor, scale: float) -> Tensor:
    return 3 * scale * grad * x**2


@cube_backward.register_fake
def _(grad: Tensor, x: Tensor, scale: float) -> Tensor:
    return grad.new_empty(x.shape)


def cube_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.scale = inputs
    ctx.save_for_backward(x)


def cube_gradient(run: Run, ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return run(cube_backward, grad, *ctx.saved_tensors, ctx.scale), None


cube.register_gradient(cube_gradient, setup=cube_setup)


def gradient_of(function: Any, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(function(x).sum(), x)
    return gradient


def operators_of(function: Any, x: Tensor) -> set[str]:
    """Operators of the tests that torch's dispatcher sees in forward and backward."""
    with torch.profiler.profile() as profile:
        function(x)
    return {e.name for e in profile.events() if e.name.startswith("satori_fast::tests_")}


def test_eager_code_meets_no_operator_and_compiled_code_nothing_else() -> None:
    x = torch.tensor([1.0, 2.0, -3.0], requires_grad=True)
    traced: list[torch.fx.GraphModule] = []

    def keep_graph(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        traced.append(graph)
        return graph

    compiled = torch.compile(lambda x: cube(x, 2.0), fullgraph=True, backend=keep_graph)
    for function in (lambda x: cube(x, 2.0), compiled):
        assert gradient_of(function, x).tolist() == [6.0, 24.0, 54.0]
    assert operators_of(lambda x: gradient_of(lambda x: cube(x, 2.0), x), x) == set()
    assert operators_of(lambda x: gradient_of(compiled, x), x) == {
        "satori_fast::tests_cube",
        "satori_fast::tests_cube_backward",
    }
    assert [node.target for node in traced[0].graph.nodes if node.op == "call_function"] == [
        cube.operator
    ]


def test_opcheck_finds_schema_fake_and_gradient() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    for checked, inputs in ((cube, (x, 2.0)), (cube_backward, (x.detach(), x.detach(), 2.0))):
        outcome = torch.library.opcheck(checked.operator, inputs)
        assert set(outcome.values()) == {"SUCCESS"}


def test_the_function_never_records_a_gradient_itself() -> None:
    calls.clear()
    x = torch.tensor([2.0], requires_grad=True)
    assert cube(x, 1.0).requires_grad and not cube(x.detach(), 1.0).requires_grad
    with torch.no_grad():
        assert not cube(x, 1.0).requires_grad
    assert calls == [False] * 3


def test_an_operation_without_a_gradient_refuses_the_backward() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    result = cube_backward(torch.ones(1), x, 1.0)
    with pytest.raises(RuntimeError, match="tests_cube_backward has no gradient: call it on const"):
        result.sum().backward()
