# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding of packed tokens, on the GPU; see `reference_layers.rope`.

Bound by memory: heads are read where the projection left them, and computed in float32. The
gradient is the rotation the other way.
"""

import triton
import triton.language as tl
from torch import Tensor

from satori_fast.kernels.triton.launch import Configuration
from satori_fast.kernels.triton.rows import rows_of

# Half the channels of a head, rounded up, and pairs of channels that a program turns.
HALVES = (32, 64, 128)
PAIRS = 1024


@triton.jit
def _rope(
    x, cos, sin, out, num_rows, num_heads, half, outer, inner, stride,
    INVERSE: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """A program turns ROWS heads. Row i belongs to token i // num_heads; x may be strided."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    is_inside = (row < num_rows)[:, None] & (column < half)[None, :]
    row = row.to(tl.int64)
    source = (row // inner * outer + row % inner * stride)[:, None] + column[None, :]
    angle = (row // num_heads * half)[:, None] + column[None, :]
    c = tl.load(cos + angle, mask=is_inside, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=is_inside, other=0.0).to(tl.float32)
    if INVERSE:
        s = -s
    a = tl.load(x + source, mask=is_inside, other=0.0).to(tl.float32)
    b = tl.load(x + source + half, mask=is_inside, other=0.0).to(tl.float32)
    target = out + (row * (2 * half))[:, None] + column[None, :]
    tl.store(target, a * c - b * s, mask=is_inside)
    tl.store(target + half, b * c + a * s, mask=is_inside)


def _configuration(inverse: bool, half: int) -> Configuration:
    return Configuration(
        name=f"rope.{'inverse' if inverse else 'forward'}_{2 * half}",
        kernel=_rope,
        types={
            **dict.fromkeys(("x", "cos", "sin", "out"), "*bf16:16"),
            "num_rows": "i32",
            "num_heads": "i32",
            "half": "i32:16",
            "outer": "i32:16",
            "inner": "i32",
            "stride": "i32:16",
        },
        constants={"INVERSE": inverse, "ROWS": PAIRS // half, "HALF": half},
    )


ROPE = {
    (inverse, half): _configuration(inverse, half) for inverse in (False, True) for half in HALVES
}
CONFIGURATIONS = tuple(ROPE.values())


def rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    """`reference_layers.rope` on the GPU."""
    rows, count, *layout = rows_of(x)
    half = cos.shape[1]
    if half > HALVES[-1]:
        raise ValueError(f"x has heads of {2 * half} channels: at most {2 * HALVES[-1]} on a GPU")
    out = x.new_empty(x.shape)
    if x.numel():
        configuration = ROPE[inverse, next(padded for padded in HALVES if padded >= half)]
        configuration.launch(
            (triton.cdiv(count, configuration.constants["ROWS"]),),
            rows, cos.contiguous(), sin.contiguous(), out,
            count, count // x.shape[0], half, *layout,
        )  # fmt: skip
    return out
