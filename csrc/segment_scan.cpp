// SPDX-License-Identifier: Apache-2.0
// Discounted scan inside each packed sequence. One sequence is one chain of dependent operations
// and keeps the bits of the plain loop; what is done at once are several sequences, because each
// step of a chain waits several cycles for the step before it.
#include "operations.h"
#include "parallel.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace satori_fast {
namespace {

constexpr int LANES = 8; // chains in flight

// x where `is_kept` is 1, and 0 where it is 0, whatever x is: by bits, because a choice between
// floats by bytes is not vectorised.
inline float keep(float x, uint8_t is_kept) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= 0u - is_kept;
    std::memcpy(&x, &bits, sizeof bits);
    return x;
}

inline double keep(double x, uint8_t is_kept) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= uint64_t{0} - is_kept;
    std::memcpy(&x, &bits, sizeof bits);
    return x;
}

template <typename Real> struct Chain {
    const Real* x; // the next token to read
    Real* y;
    int64_t left; // tokens that remain
    Real carry;
};

// Advances the first `count` chains by `steps` tokens.
template <int count, int stride, typename Real>
void advance(Chain<Real>* chains, Real decay, int64_t steps) {
    const Real* x[count];
    Real* y[count];
    Real carry[count];
    for (int lane = 0; lane < count; ++lane) {
        x[lane] = chains[lane].x;
        y[lane] = chains[lane].y;
        carry[lane] = chains[lane].carry;
    }
    for (int64_t step = 0; step < steps; ++step)
        for (int lane = 0; lane < count; ++lane)
            y[lane][step * stride] = carry[lane] = x[lane][step * stride] + decay * carry[lane];
    for (int lane = 0; lane < count; ++lane) {
        chains[lane].x += steps * stride;
        chains[lane].y += steps * stride;
        chains[lane].left -= steps;
        chains[lane].carry = carry[lane];
    }
}

// Advances all chains, as many at once as there are.
template <int width, int stride, typename Real>
void advance_all(Chain<Real>* chains, int count, Real decay, int64_t steps) {
    for (; count >= width; chains += width, count -= width)
        advance<width, stride>(chains, decay, steps);
    if constexpr (width > 1)
        advance_all<width / 2, stride>(chains, count, decay, steps);
}

// Sequences first <= n < last; `stride` is -1 for the reverse scan.
template <int stride, typename Real>
void scan(const Real* x, Real decay, const int64_t* cu_seqlens, int64_t first, int64_t last,
          Real* y) {
    Chain<Real> chains[LANES];
    int count = 0;
    for (int64_t n = first;;) {
        for (; count < LANES && n < last; ++n) {
            const int64_t begin = cu_seqlens[n], length = cu_seqlens[n + 1] - begin;
            const int64_t start = stride > 0 ? begin : begin + length - 1;
            if (length > 0)
                chains[count++] = {x + start, y + start, length, Real(0)};
        }
        if (count == 0)
            return;
        const auto shorter = [](const auto& a, const auto& b) { return a.left < b.left; };
        const int64_t steps = std::min_element(chains, chains + count, shorter)->left;
        advance_all<LANES, stride>(chains, count, decay, steps);
        const auto is_done = [](const auto& chain) { return chain.left == 0; };
        count = static_cast<int>(std::remove_if(chains, chains + count, is_done) - chains);
    }
}

} // namespace

template <typename Real>
void segment_scan(const Real* x, int64_t num_tokens, Real decay, const int64_t* cu_seqlens,
                  int64_t num_sequences, bool reverse, int num_threads, Real* y) {
    if (cu_seqlens[0] != 0 || cu_seqlens[num_sequences] != num_tokens ||
        !std::is_sorted(cu_seqlens, cu_seqlens + num_sequences + 1))
        throw std::invalid_argument("cu_seqlens must rise from 0 to " +
                                    std::to_string(num_tokens) + ", the length of x");
    // Several turns for each thread, because sequences differ in length.
    const int64_t turn = std::max<int64_t>(LANES, num_sequences / (4 * num_threads));
    parallel_for((num_sequences + turn - 1) / turn, num_threads, [=](int64_t i) {
        const int64_t first = i * turn, last = std::min(first + turn, num_sequences);
        if (reverse)
            scan<-1>(x, decay, cu_seqlens, first, last, y);
        else
            scan<1>(x, decay, cu_seqlens, first, last, y);
    });
}

template <typename Real>
void gae(const GaeArrays<Real>& tokens, Real gamma, Real decay, const int64_t* cu_seqlens,
         int64_t num_sequences, int num_threads) {
    const Real* rewards = tokens.rewards;
    const uint8_t* mask = tokens.mask;
    const int32_t* ids = tokens.segment_ids;
    Real *advantages = tokens.advantages, *returns = tokens.returns;
    const int64_t count = tokens.count;
    for (int64_t t = 0; t < count; ++t)
        returns[t] = keep(tokens.values[t], mask[t]);
    const auto make_deltas = [=](auto reward) {
        for (int64_t t = 0; t + 1 < count; ++t)
            advantages[t] = keep(reward(t) + gamma * returns[t + 1] - returns[t], mask[t]);
    };
    if (ids)
        make_deltas([=](int64_t t) { return keep(rewards[t], ids[t] != ids[t + 1]); });
    else
        make_deltas([=](int64_t t) { return rewards[t]; });
    if (count > 0) // the last entry of a sequence predicts nothing
        advantages[count - 1] = Real(0);
    segment_scan(advantages, count, decay, cu_seqlens, num_sequences, true, num_threads,
                 advantages);
    for (int64_t t = 0; t < count; ++t) {
        advantages[t] = keep(advantages[t], mask[t]);
        returns[t] += advantages[t];
    }
}

template void gae<float>(const GaeArrays<float>&, float, float, const int64_t*, int64_t, int);
template void gae<double>(const GaeArrays<double>&, double, double, const int64_t*, int64_t, int);
template void segment_scan<float>(const float*, int64_t, float, const int64_t*, int64_t, bool, int,
                                  float*);
template void segment_scan<double>(const double*, int64_t, double, const int64_t*, int64_t, bool,
                                   int, double*);

} // namespace satori_fast
