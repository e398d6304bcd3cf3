// SPDX-License-Identifier: Apache-2.0
// Between policy_loss.cpp and the files that hold its loop for one instruction set each.
#pragma once

#include "operations.h"

namespace satori_fast {

// The order of POLICY_STATS in satori_fast/kernels/reference.py.
enum PolicyStat {
    POLICY_LOSS,
    KL,
    ENTROPY,
    CLIP_LOW,
    CLIP_HIGH,
    CLIP_DUAL,
    RATIO_MAX,
    APPROX_KL,
    ROLLOUT_ABS_DIFF,
    ROLLOUT_ABS_DIFF_MAX,
    ROLLOUT_KL,
    ROLLOUT_CLIP,
    NUM_TOKENS,
    NUM_CLAMPED,
    NUM_POLICY_STATS
};

// Log-ratios are clamped to this many nats on either side before they are exponentiated; see
// MAX_LOG_RATIO in satori_fast/kernels/reference.py.
constexpr double MAX_LOG_RATIO = 20;

// Adds `value` to totals[stat], or raises a maximum to it; NaN wins, as in torch.
static inline void add_policy_stat(int stat, double value, double* totals) {
    if (stat != RATIO_MAX && stat != ROLLOUT_ABS_DIFF_MAX)
        totals[stat] += value;
    else if (value > totals[stat] || value != value)
        totals[stat] = value;
}

// Writes the gradients of tokens begin <= t < end and adds their metrics to totals
// [NUM_POLICY_STATS].
template <typename Real>
using PolicyLoop = void (*)(const PolicyArrays<Real>& tokens, const PolicyTerms& terms,
                            int64_t begin, int64_t end, double* totals);

template <typename Real>
void policy_loop_avx2(const PolicyArrays<Real>& tokens, const PolicyTerms& terms, int64_t begin,
                      int64_t end, double* totals);

} // namespace satori_fast
