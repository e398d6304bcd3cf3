# SPDX-License-Identifier: Apache-2.0
"""The matrix products around the row kernels, by cuBLAS, and where their results are kept.

Sums are float32 inside every product and between chunks of tokens. On the host, where the kernels
run in Triton's interpreter, operands are widened first, as torch would round the result.

Memory beyond inputs and gradients, for T 32768, H 3584, V 152064 in bfloat16 (1 GiB = 2^30 bytes):

    sum of the weight's gradient, float32     4 V H         2.03 GiB
    its result, bfloat16, not there yet      -2 V H        -1.02 GiB
    logits of a chunk, float32                4 V rows      1.31 GiB for 2304 rows of CHUNK_BYTES
    hidden states and their gradient of it   (2 + 4) H rows 0.05 GiB
    total, while chunks are worked on                       2.37 GiB
    total, while the sum is rounded to the result           2.03 GiB

The chunk is gone before the result is allocated. Fewer rows would cost time: 2304 rows make 18 x 14
tiles of 128 x 256 for the gradient of the hidden states, 1.9 waves of 132 multiprocessors, and the
sum of the weight's gradient is read and written once a chunk.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

# Logits in float32 held at a time: with a gradient, and without one, where nothing is gained by
# more than the products need to fill the device.
CHUNK_BYTES = 1344 * 2**20
FORWARD_CHUNK_BYTES = 512 * 2**20
# Rows of a tile of cuBLAS: a chunk that is no multiple of it wastes the rest of one.
TILE_ROWS = 128


def row_chunks(num_rows: int, num_columns: int, chunk_bytes: int) -> list[slice]:
    """Consecutive rows whose float32 logits fit in `chunk_bytes`; at least one row."""
    size = max(1, chunk_bytes // (4 * max(1, num_columns)))
    if size > TILE_ROWS:
        size -= size % TILE_ROWS
    return [slice(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]


def chunk_buffer(chunks: list[slice], num_columns: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for the largest chunk, [rows, num_columns]; rows start at aligned addresses."""
    num_rows = max((chunk.stop - chunk.start for chunk in chunks), default=0)
    stride = -(-max(1, num_columns) // 16) * 16
    return like.new_empty(num_rows, stride, dtype=dtype)[:, :num_columns]


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """out = a b; `out` is float32."""
    if a.is_cuda and a.dtype != out.dtype:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def multiply_add(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """out += a b; `out` is float32."""
    if a.is_cuda and a.dtype != out.dtype:
        # In place: torch takes a sum of the type of the result since 2.10, and copies nothing.
        return torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    return out.addmm_(a.to(out.dtype), b.to(out.dtype))


class Gradients:
    """Gradients of `hidden` and `weight`, from chunk to chunk of the gradient of the logits."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        num_columns: int,
        group: ProcessGroup | None,
        *,
        need_hidden: bool,
        need_weight: bool,
    ) -> None:
        self._columns = weight[:num_columns]
        self._dtype = hidden.dtype
        self._group = group
        self._hidden = torch.zeros_like(hidden) if need_hidden else None
        self._weight = None
        if need_weight:
            self._weight = weight.new_empty(weight.shape, dtype=torch.float32)
            # Padding rows of the weight keep the gradient 0.
            self._weight[num_columns:].zero_()
        self._is_first = True

    def add(self, d: Tensor, x: Tensor, rows: Tensor) -> None:
        """Add the products of d, the gradient of the logits [R, C] of the tokens `rows`, with x
        [R, H], their hidden states."""
        part, reduction = None, None
        if self._hidden is not None:
            # In float32, as cuBLAS may sum in several parts and would round each of them.
            part = multiply(d, self._columns, x.new_empty(x.shape, dtype=torch.float32))
            if self._group is not None:
                # Each shard holds what comes from its own columns. Summed up while the weight's
                # gradient is made.
                reduction = dist.all_reduce(part, group=self._group, async_op=True)
        if self._weight is not None:
            step = multiply if self._is_first else multiply_add
            step(d.T, x, self._weight[: len(self._columns)])
        if reduction is not None:
            reduction.wait()
        if self._hidden is not None and part is not None:
            self._hidden.index_copy_(0, rows, part.to(self._dtype))
        self._is_first = False

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        """Both gradients in the type of the inputs. The caller has let go of its chunk buffer."""
        if self._weight is not None and self._is_first:
            self._weight.zero_()
        return self._hidden, None if self._weight is None else self._weight.to(self._dtype)
