# SPDX-License-Identifier: Apache-2.0
"""Drawing tokens from logits: the public function, and what torch knows of it.

Not filters such as top-k: whoever wants them sets logits to -inf. Not the mathematics
(`reference`).
"""

import math

import torch
from torch import Tensor

from satori_fast.kernels.dispatch import function_for
from satori_fast.kernels.head import compute_dtype

__all__ = ["sample_tokens"]


def sample_tokens(
    logits: Tensor, uniform: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(tokens int64 [B], log-probabilities [B]) of p = softmax(logits / temperature), by inverse
    transform: the first token whose cumulative probability exceeds `uniform`.

    One number decides a row, so a sample depends neither on the other rows nor on their number. A
    logit of -inf is never drawn. No gradients.

    logits:  [B, V], V > 0; log-probabilities are float32 (float64 for float64).
    uniform: float64 [B] in [0, 1).

    ValueError for shapes or types that do not fit.
    """
    if logits.dim() != 2 or logits.shape[1] < 1 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point [B, V] with V > 0, got {logits.dtype} "
            f"{list(logits.shape)}"
        )
    if uniform.shape != logits.shape[:1] or uniform.dtype != torch.float64:
        raise ValueError(
            f"uniform must be float64 [{len(logits)}], got {uniform.dtype} {list(uniform.shape)}"
        )
    if not temperature > 0.0 or math.isinf(temperature):
        raise ValueError(f"temperature is {temperature}: it must be positive and finite")
    logits = logits.detach().to(compute_dtype(logits))
    if torch.compiler.is_compiling():
        return _sample_tokens(logits, uniform, temperature)
    return function_for("sample_tokens", logits)(logits, uniform, temperature)


@torch.library.custom_op("satori_fast::sample_tokens", mutates_args=())
def _sample_tokens(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return function_for("sample_tokens", logits)(logits, uniform, temperature)


@_sample_tokens.register_fake
def _(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return uniform.new_empty(uniform.shape, dtype=torch.int64), logits.new_empty(uniform.shape)
