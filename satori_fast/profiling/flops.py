# SPDX-License-Identifier: Apache-2.0
"""Least cost of a step: FLOPs and bytes of a dense decoder, and the share of the peak.

Model FLOPs, as in PaLM (arXiv 2204.02311, appendix B): the multiplications and additions of the
matrix products that the result needs, a multiply-add being two. Recomputed activations and logits
do not count (MFU, not HFU), nor do padding, norms, rotations and look-ups. Not for: what a device
could do (`peaks`), or how long it took (`spans`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from satori_fast.profiling.peaks import DevicePeaks
    from satori_fast.profiling.spans import StepTimes

# A backward pass makes two products for each one of the forward pass: a gradient for each factor.
TRAINING_PASSES = 3


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a dense decoder with grouped queries and a gated MLP (Llama, Qwen2, Qwen3).

    head_dim:   channels of one attention head; num_heads of them for queries, num_kv_heads for keys
                and for values.
    num_logits: outputs per token: the vocabulary of a policy, 1 of a scalar model.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    num_logits: int

    @property
    def layer_weights(self) -> int:
        """Elements of the matrices of one layer: four of the attention, three of the MLP."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def head_weights(self) -> int:
        """Elements of the output matrix, also where it is the embedding too."""
        return self.hidden_size * self.num_logits

    @property
    def num_weights_read(self) -> int:
        """Elements that one pass reads, however few its tokens: all matrices but the embedding."""
        return self.num_layers * self.layer_weights + self.head_weights


def forward_flops(
    shape: ModelShape,
    lengths: Sequence[int],
    *,
    num_head_tokens: int | None = None,
    row_share: float = 1.0,
) -> float:
    """FLOPs of one forward pass over packed sequences of these lengths, in tokens.

        2 layers layer_weights R + 2 head_weights T_head + 4 layers num_heads head_dim P

    R is the number of rows, `row_share` of the sum of the lengths T: what sequences begin with
    alike may be computed once (`PackedBatch.shared`). P: the query-key pairs under the causal mask,
    the sum of L (L + 1) / 2, each of which costs a multiply-add in the scores and one in their sum
    of values. num_head_tokens: T_head, tokens that need logits; None: all T.
    """
    num_tokens = sum(lengths)
    head_tokens = num_tokens if num_head_tokens is None else num_head_tokens
    num_pairs = sum(length * (length + 1) // 2 for length in lengths)
    products = shape.num_layers * shape.layer_weights * num_tokens * row_share
    products += shape.head_weights * head_tokens
    products += 2 * shape.num_layers * shape.num_heads * shape.head_dim * num_pairs
    return 2.0 * products


def training_flops(shape: ModelShape, lengths: Sequence[int], **counted: Any) -> float:
    """FLOPs of forward and backward; keywords of `forward_flops`, the logits being those of tokens
    with a loss."""
    return TRAINING_PASSES * forward_flops(shape, lengths, **counted)


def utilisation(times: StepTimes, peaks: DevicePeaks, *, num_devices: int = 1) -> dict[str, float]:
    """Shares of the peaks, 0 to 1, of the spans that FLOPs or bytes were counted for.

        NAME/mfu             = FLOPs / (seconds of span NAME x num_devices x peak FLOP/s)
        NAME/bandwidth_share = bytes / (seconds of span NAME x peak bytes/s)

    FLOPs are over all ranks, bytes those of this device. For "rollout" the bytes are the weights
    that each pass of the engine reads (`num_weights_read`), keys and values not counted; a pass is
    a decode step or a prefill. What has no peak, no seconds or no FLOPs is left out.
    """
    metrics: dict[str, float] = {}
    for name, flops in times.flops.items():
        seconds = times.spans_s.get(name, 0.0)
        if flops and peaks.flops_per_s and seconds > 0.0:
            metrics[f"{name}/mfu"] = flops / (seconds * num_devices * peaks.flops_per_s)
    for name, num_bytes in times.bytes_read.items():
        seconds = times.spans_s.get(name, 0.0)
        if peaks.bytes_per_s and seconds > 0.0:
            metrics[f"{name}/bandwidth_share"] = num_bytes / (seconds * peaks.bytes_per_s)
    return metrics
