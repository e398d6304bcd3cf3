# SPDX-License-Identifier: Apache-2.0
"""Fast maths on tensors and on ragged integer sequences.

Knows no reinforcement learning beyond the words "policy loss". `reference` is the definition of
every operation; `ops` gives it a schema and picks an implementation by device. Sampling has a file
of its own, and the operations inside a transformer layer have two, `reference_layers` and `layers`.
"""

from satori_fast.kernels.layers import decode_attention, rms_norm, rope, swiglu
from satori_fast.kernels.ops import (
    MAX_LOG_RATIO,
    POLICY_STATS,
    PolicyTerms,
    gae,
    implementation,
    linear_logprob,
    linear_policy_loss,
    pack_bins,
    policy_loss,
    segment_scan,
    sequence_similarity,
)
from satori_fast.kernels.sampling import sample_tokens

__all__ = [
    "MAX_LOG_RATIO",
    "POLICY_STATS",
    "PolicyTerms",
    "decode_attention",
    "gae",
    "implementation",
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
