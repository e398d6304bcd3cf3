# SPDX-License-Identifier: Apache-2.0
"""Registration of an operation with torch: one definition, an operator and an autograd node of it.

Not the operations themselves (`schemas`, `layers`), nor the choice of what computes them
(`dispatch`).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

# Calls an operation: (operation, *inputs) -> its outputs.
Run = Callable[..., Any]


class Operation:
    """An operation on tensors, called with its inputs in order.

    torch.compile sees `operator`, a single node of its graph. Eager code runs an autograd node over
    the same function and gradient, or the function alone where no gradient is recorded: an operator
    costs tens of microseconds of Python a call, which would show in a small model.

    compute:  the function, with annotations that make a schema and no default values; its outputs
              share no memory with its inputs.
    operator: `torch.ops.satori_fast.NAME`.
    """

    def __init__(self, name: str, compute: Callable[..., Any], mutates: Iterable[str]) -> None:
        self.compute = compute
        self._definition = torch.library.custom_op(
            f"satori_fast::{name}", compute, mutates_args=mutates
        )
        self.operator = getattr(torch.ops.satori_fast, name).default
        self.register_fake = self._definition.register_fake
        self._node = _node(name, compute)

    def __call__(self, *inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.operator(*inputs)
        if torch.is_grad_enabled():
            return self._node.apply(*inputs)
        return self.compute(*inputs)

    def register_gradient(
        self, gradient: Callable[..., Any], *, setup: Callable[[Any, tuple[Any, ...], Any], None]
    ) -> None:
        """Make the operation differentiable; one without a gradient refuses the backward.

        setup:    (ctx, inputs, output), saves what the gradient needs.
        gradient: (run, ctx, *gradients of the outputs), one gradient or None for each input. It
                  calls operations by `run(operation, *inputs)`, so that a traced gradient is made
                  of operators and an eager one is not.
        """

        def of_operator(ctx: Any, *gradients: Any) -> Any:
            return gradient(_as_operator, ctx, *gradients)

        def of_node(ctx: Any, *gradients: Any) -> Any:
            return gradient(Operation.__call__, ctx, *gradients)

        self._definition.register_autograd(of_operator, setup_context=setup)
        self._node = _node(self._node.__name__, self.compute, setup, of_node)


def operation(name: str, *, mutates: Iterable[str] = ()) -> Callable[..., Operation]:
    """Decorator: the operation `name` of a function. mutates: its arguments that it writes to."""
    return lambda compute: Operation(name, compute, mutates)


def _as_operator(operation: Operation, *inputs: Any) -> Any:
    return operation.operator(*inputs)


def _node(
    name: str,
    compute: Callable[..., Any],
    setup: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
    gradient: Callable[..., Any] | None = None,
) -> type[torch.autograd.Function]:
    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = compute(*inputs)
            if setup is not None:
                setup(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            if gradient is None:
                raise RuntimeError(f"the operation {name} has no gradient: call it on constants")
            return gradient(ctx, *gradients)

    Node.__name__ = name
    return Node
