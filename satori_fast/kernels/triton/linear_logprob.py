# SPDX-License-Identifier: Apache-2.0
"""Log-probability and entropy of the output layer on the GPU, and the way back; see
`reference.linear_logprob`. cuBLAS makes the logits of a chunk of tokens, Triton what follows from
them.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from satori_fast.kernels.head import gather_statistics, kept_partition
from satori_fast.kernels.triton import head
from satori_fast.kernels.triton import stash as stashed
from satori_fast.kernels.triton.products import (
    CHUNK_BYTES,
    FORWARD_CHUNK_BYTES,
    Gradients,
    chunk_buffer,
    multiply,
    row_chunks,
)


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor,
    vocab_size: int | None,
    vocab_start: int,
    group: ProcessGroup | None,
    stash: Tensor | None = None,
    chunk_bytes: int = FORWARD_CHUNK_BYTES,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.linear_logprob` on the GPU: one matrix product, one collective, and no value
    read on the host."""
    columns = real_columns(weight, vocab_start, vocab_size)
    tokens = head.Rows.of(targets, temperature, vocab_start, len(columns))
    statistics = hidden.new_empty((len(hidden), 4), dtype=torch.float32)
    chunks = row_chunks(len(hidden), len(columns), chunk_bytes)
    buffer = chunk_buffer(chunks, len(columns), hidden, torch.float32)
    for chunk in chunks:
        rows = tokens.take(chunk)
        logits = multiply(hidden[chunk], columns.T, buffer[: chunk.stop - chunk.start])
        head.statistics(logits, rows, statistics[chunk])
        if stash is not None:
            stashed.keep(logits, statistics[chunk], rows, stash[chunk])
    logprob, entropy, partition = head.merge(gather_statistics(statistics, group))
    if stash is not None:
        partition = kept_partition(partition, statistics)
    return logprob, entropy, partition


def linear_logprob_backward(
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    entropy: Tensor,
    partition: Tensor,
    *,
    temperature: float | Tensor,
    vocab_size: int | None,
    vocab_start: int,
    group: ProcessGroup | None,
    need_hidden: bool,
    need_weight: bool,
    logprob: Tensor | None = None,
    stash: Tensor | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor | None, Tensor | None]:
    """`reference.linear_logprob_backward` on the GPU. The host waits once, for the number of
    tokens that have a gradient: the others are left out of every product."""
    zero = torch.zeros_like(entropy)
    incoming = [
        zero if gradient is None else gradient.to(zero.dtype)
        for gradient in (grad_logprob, grad_entropy)
    ]
    live = ((incoming[0] != 0) | (incoming[1] != 0)).nonzero().squeeze(1)
    columns = real_columns(weight, vocab_start, vocab_size)
    tokens = head.Rows.of(targets, temperature, vocab_start, len(columns)).take(live)
    entropy, partition, grad_logprob, grad_entropy = (
        tensor[live] for tensor in (entropy, partition, *incoming)
    )
    logprob = None if logprob is None else logprob[live]
    gradients = Gradients(
        hidden, weight, len(columns), group, need_hidden=need_hidden, need_weight=need_weight
    )
    chunks = row_chunks(len(live), len(columns), chunk_bytes)
    buffer_type = torch.float32 if stash is None else hidden.dtype
    buffer = chunk_buffer(chunks, len(columns), hidden, buffer_type)
    for chunk in chunks:
        rows, x = tokens.take(chunk), hidden[live[chunk]]
        logits = buffer[: chunk.stop - chunk.start]
        per_row = (entropy[chunk], partition[chunk], grad_logprob[chunk], grad_entropy[chunk])
        if stash is None or logprob is None:
            multiply(x, columns.T, logits)
            d = head.logit_gradients(logits, rows, *per_row, hidden.dtype)
        else:
            d = logits
            stashed.logit_gradients(stash, live[chunk], rows, (logprob[chunk], *per_row), d)
        gradients.add(d, x, live[chunk])
    # The result of the weight's gradient takes the place of the chunk.
    del buffer, chunks
    return gradients.finish()


def real_columns(weight: Tensor, vocab_start: int, vocab_size: int | None) -> Tensor:
    """[C, H]: without columns of padding, which do not even enter the product."""
    return weight if vocab_size is None else weight[: max(0, vocab_size - vocab_start)]
