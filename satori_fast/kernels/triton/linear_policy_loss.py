# SPDX-License-Identifier: Apache-2.0
"""The policy loss of the output layer on the GPU with its gradients, in three matrix products; see
`reference.linear_policy_loss`.

Without a group one kernel takes a row of logits from its statistics through the policy loss to its
gradient, and reads it the second time from the cache. With a group the statistics of all shards
stand between the two passes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.distributed import ProcessGroup

from satori_fast.kernels.head import gather_statistics, shard_layout
from satori_fast.kernels.reference import PolicyInputs, PolicyTerms
from satori_fast.kernels.triton import head
from satori_fast.kernels.triton.launch import TYPE_NAMES, Configuration
from satori_fast.kernels.triton.linear_logprob import real_columns
from satori_fast.kernels.triton.policy_loss import (
    CHOICE_TYPES,
    choices,
    importance_weight,
    kl_and_gradient,
    policy_loss,
    surrogate_and_gradient,
    with_stand_ins,
)
from satori_fast.kernels.triton.products import (
    CHUNK_BYTES,
    Gradients,
    chunk_buffer,
    multiply,
    row_chunks,
)


@triton.jit(
    do_not_specialize=[
        "num_rows", "has_ref", "num_columns", "start", "has_temperatures",
        "kl_estimator", "importance",
    ]
)  # fmt: skip
def _rows(
    logits, logprobs, entropies,
    old_logprobs, advantages, loss_weights, rollout_logprobs, ref_logprobs,
    stride, num_rows, has_ref,
    targets, temperatures, num_columns, start, temperature, has_temperatures,
    clip_low, clip_high, clip_dual, kl_coefficient, entropy_coefficient,
    importance_low, importance_high, kl_estimator, importance,
    LANES: tl.constexpr, WIDTH: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Each program takes every so many-th row: log-probability and entropy, then the gradient of
    the logits over the logits."""
    for index in range(tl.program_id(0), num_rows, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        here = logits + row * stride
        scale = head.inverse_temperature(temperatures, row, temperature, has_temperatures)
        m, s, e = head.row_statistics(here, num_columns, scale, LANES, WIDTH)
        y = head.own_target(targets, row, start, num_columns)
        log_total = tl.log(s)
        logprob = tl.load(here + y, mask=y >= 0, other=0.0) * scale - m - log_total
        entropy = log_total - e / s  # pyright: ignore[reportOperatorIssue]
        tl.store(logprobs + row, logprob)
        tl.store(entropies + row, entropy)

        weight = tl.load(loss_weights + row)
        old = tl.load(old_logprobs + row)
        gap = old - tl.load(rollout_logprobs + row)
        u, _ = importance_weight(gap, importance_low, importance_high, importance)
        _, slope, _, _, _, _ = surrogate_and_gradient(
            logprob, old, tl.load(advantages + row), u, clip_low, clip_high, clip_dual
        )
        d = tl.where(has_ref != 0, tl.load(ref_logprobs + row) - logprob, 0.0)
        _, kl_slope = kl_and_gradient(d, kl_estimator)
        kl_slope = tl.where(kl_coefficient != 0, kl_coefficient * kl_slope, 0.0)
        g = weight * (kl_slope - slope)
        h = -entropy_coefficient * weight
        head.write_gradient(here, num_columns, scale, y, entropy, m, s, g, h, LANES, WIDTH, TYPE)


# One wide program a multiprocessor: the fewer rows are in flight, the more of the second pass finds
# its row in the cache.
ROWS = {
    dtype: Configuration(
        name=f"linear_policy_loss.rows.{TYPE_NAMES[dtype]}",
        kernel=_rows,
        types={
            **dict.fromkeys(("logits", "logprobs", "entropies"), "*fp32:16"),
            **dict.fromkeys(PolicyInputs._fields, "*fp32:16"),
            "stride": "i32:16",
            "num_rows": "i32",
            "has_ref": "i32",
            **head.ROW_TYPES,
            **CHOICE_TYPES,
        },
        constants={"LANES": 2048, "WIDTH": head.WIDTH, "TYPE": head.language_type(dtype)},
        num_warps=32,
        num_stages=1,
    )
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
}
CONFIGURATIONS = tuple(ROWS.values())


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    inputs: PolicyInputs,
    terms: PolicyTerms,
    *,
    temperature: float | Tensor,
    vocab_size: int | None,
    group: ProcessGroup | None,
    need_hidden: bool,
    need_weight: bool,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """`reference.linear_policy_loss` on the GPU. The host waits once, for the number of tokens
    whose weight is not 0: the others are left out of every product."""
    live = (inputs.loss_weights != 0).nonzero().squeeze(1)
    start, largest_shard = shard_layout(weight, group)
    columns = real_columns(weight, start, vocab_size)
    tokens = head.Rows.of(targets, temperature, start, len(columns)).take(live)
    inputs = _as_float32(inputs.take(live))
    outcome = hidden.new_empty((2, len(live)), dtype=torch.float32)
    needs_gradient = need_hidden or need_weight
    gradients = Gradients(
        hidden, weight, len(columns), group, need_hidden=need_hidden, need_weight=need_weight
    )
    # Each chunk has a collective of its own, so every rank must cut the same chunks.
    chunks = row_chunks(len(live), largest_shard, chunk_bytes)
    buffer = chunk_buffer(chunks, len(columns), hidden, torch.float32)
    for chunk in chunks:
        rows, x = tokens.take(chunk), hidden[live[chunk]]
        logits = multiply(x, columns.T, buffer[: chunk.stop - chunk.start])
        part = inputs.take(chunk)
        if group is None and needs_gradient:
            d = _fused_rows(logits, rows, part, terms, outcome[:, chunk], hidden.dtype)
        else:
            d = _sharded_rows(logits, rows, part, terms, outcome[:, chunk], group, hidden.dtype)
        if needs_gradient:
            gradients.add(d, x, live[chunk])
    # The result of the weight's gradient takes the place of the chunk.
    del buffer, chunks
    loss, stats, _, _ = policy_loss(outcome[0], outcome[1], inputs, terms)
    return loss, stats, *gradients.finish()


def _fused_rows(
    logits: Tensor,
    rows: head.Rows,
    inputs: PolicyInputs,
    terms: PolicyTerms,
    outcome: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Log-probabilities and entropies into `outcome` [2, R], and the gradient of the logits."""
    logprobs, entropies = outcome
    constants = with_stand_ins(logprobs, inputs)
    has_ref = int(inputs.ref_logprobs is not None)
    grid = (_num_programs(logits),)
    ROWS[dtype].launch(
        grid, logits, logprobs, entropies, *constants, logits.stride(0), len(logits), has_ref,
        *rows.arguments(), *choices(terms),
    )  # fmt: skip
    return head.in_place(logits, dtype)


def _sharded_rows(
    logits: Tensor,
    rows: head.Rows,
    inputs: PolicyInputs,
    terms: PolicyTerms,
    outcome: Tensor,
    group: ProcessGroup | None,
    dtype: torch.dtype,
) -> Tensor:
    """`_fused_rows` with the statistics of every shard in between."""
    statistics = logits.new_empty(len(logits), 4)
    head.statistics(logits, rows, statistics)
    logprobs, entropies, partitions = head.merge(gather_statistics(statistics, group))
    outcome[0], outcome[1] = logprobs, entropies
    _, _, grad_logprobs, grad_entropies = policy_loss(logprobs, entropies, inputs, terms)
    per_row = (entropies, partitions, grad_logprobs, grad_entropies)
    return head.logit_gradients(logits, rows, *per_row, dtype)


def _num_programs(logits: Tensor) -> int:
    """Programs whose rows fit in three quarters of the cache, from half of the multiprocessors, as
    fewer cannot fill the memory bus, to two for each."""
    if not logits.is_cuda:
        return min(len(logits), 2)
    device = torch.cuda.get_device_properties(logits.device)
    num_cached = device.L2_cache_size * 3 // 4 // (4 * logits.stride(0))
    num_processors = device.multi_processor_count
    wanted = max(num_processors // 2, min(2 * num_processors, num_cached))
    return min(len(logits), wanted)


def _as_float32(inputs: PolicyInputs) -> PolicyInputs:
    return PolicyInputs(
        *(None if t is None else t.to(torch.float32).contiguous() for t in inputs)  # pyright: ignore[reportArgumentType]
    )
