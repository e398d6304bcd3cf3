// SPDX-License-Identifier: Apache-2.0
// What module.cpp binds. Plain pointers and counts: no Python, no tensor library. Arguments are
// checked by satori_fast/kernels/ops.py, which also holds the definitions.
#pragma once

#include <cstdint>

namespace satori_fast {

// bins[i]: bin of lengths[i], best-fit decreasing; every length is in [0, capacity].
void pack_bins(const int64_t* lengths, int64_t count, int64_t capacity, int64_t* bins);

enum class KlEstimator { k1, k2, k3 };
enum class Importance { none, truncate, mask };

struct PolicyTerms {
    double clip_low, clip_high, clip_dual, kl_coefficient, entropy_coefficient, importance_low,
        importance_high;
    KlEstimator kl_estimator;
    Importance importance;
};

// Each [count]; rollout_logprobs and ref_logprobs may be null.
template <typename Real> struct PolicyArrays {
    const Real *logprobs, *entropies, *old_logprobs, *advantages, *loss_weights, *rollout_logprobs,
        *ref_logprobs;
    Real *grad_logprobs, *grad_entropies;
    int64_t count;
};

// Writes the two gradients, the loss and its metrics in the order of POLICY_STATS.
template <typename Real>
void policy_loss(const PolicyArrays<Real>& tokens, const PolicyTerms& terms, int num_threads,
                 Real* loss, float* stats);

// y[t] = x[t] + decay * y[t + 1] inside each sequence (reverse), or y[t - 1] (not reverse).
// Sequence n holds cu_seqlens[n] <= t < cu_seqlens[n + 1]. Throws std::invalid_argument unless
// cu_seqlens [num_sequences + 1] rises from 0 to num_tokens.
template <typename Real>
void segment_scan(const Real* x, int64_t num_tokens, Real decay, const int64_t* cu_seqlens,
                  int64_t num_sequences, bool reverse, int num_threads, Real* y);

// ratios[n] = SequenceMatcher(None, a_n, b_n, autojunk).ratio(), where a_n is
// a[a_offsets[n]:a_offsets[n + 1]]. Throws std::bad_alloc when out of memory.
void sequence_similarity(const int64_t* a, const int64_t* a_offsets, const int64_t* b,
                         const int64_t* b_offsets, int64_t num_pairs, bool autojunk,
                         int num_threads, double* ratios);

} // namespace satori_fast
