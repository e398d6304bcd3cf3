# SPDX-License-Identifier: Apache-2.0
"""Fast maths on tensors and on ragged integer sequences.

Knows no reinforcement learning beyond the words "policy loss". `reference` is the definition of
every operation; `ops` checks the arguments, `schemas` gives it a schema and a gradient, and
`dispatch` picks an implementation by device. The operations inside a transformer layer have files
of their own, `reference_layers` and `layers`.
"""

from satori_fast.kernels.layers import decode_attention, rms_norm, rope, swiglu
from satori_fast.kernels.ops import (
    MAX_LOG_RATIO,
    POLICY_STATS,
    PolicyTerms,
    gae,
    implementation,
    linear_logits,
    linear_logprob,
    linear_policy_loss,
    pack_bins,
    policy_loss,
    sample_tokens,
    segment_scan,
    sequence_similarity,
)

__all__ = [
    "MAX_LOG_RATIO",
    "POLICY_STATS",
    "PolicyTerms",
    "decode_attention",
    "gae",
    "implementation",
    "linear_logits",
    "linear_logprob",
    "linear_policy_loss",
    "pack_bins",
    "policy_loss",
    "rms_norm",
    "rope",
    "sample_tokens",
    "segment_scan",
    "sequence_similarity",
    "swiglu",
]
