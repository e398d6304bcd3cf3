# SPDX-License-Identifier: Apache-2.0
"""Registration of an operation with torch at the least cost per call.

`torch.library.custom_op` does the same and checks more, but takes some 80 microseconds of every
call, which small operations do not have. Not for operations whose schema has default values or
keyword-only arguments, and not the operations themselves (`schemas`).
"""

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("satori_fast", "FRAGMENT")


def define(
    schema: str,
    kernel: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    gradient: Callable[..., tuple[Any, ...]],
) -> Callable[..., Any]:
    """torch.ops.satori_fast.NAME of `schema`: one node for torch.compile, differentiable.

    kernel:        computes it on every device; its outputs share no memory with its inputs.
    fake:          outputs without values, for tracing.
    setup_context: (ctx, inputs, output), saves what the gradient needs.
    gradient:      (ctx, *gradients of the outputs), one gradient or None for each input; made of
                   operations that torch can trace.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    operation = getattr(torch.ops.satori_fast, name).default

    def below_autograd(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operation(*inputs)

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = below_autograd(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradient(ctx, *gradients)

    def dispatch(*inputs: Any) -> Any:
        is_differentiated = torch.is_grad_enabled() and any(
            isinstance(x, torch.Tensor) and x.requires_grad for x in inputs
        )
        return (Differentiable.apply if is_differentiated else below_autograd)(*inputs)

    Differentiable.__name__ = f"{name}_autograd"
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    LIBRARY.impl(name, dispatch, "Autograd")
    torch.library.register_fake(operation, fake, lib=LIBRARY)
    return operation
