// SPDX-License-Identifier: Apache-2.0
// The loop of policy_loss over a range of tokens. Each file that includes it is compiled for one
// instruction set and gets a copy of its own, so everything here has internal linkage and nothing
// of the standard library is instantiated: the linker keeps only one copy of that, of any set.
#pragma once

#include "policy_loss.h"

#include <cstring>

// Vectors are the extension of GCC and Clang, and pass between inlined functions only.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif
#define INLINE inline __attribute__((always_inline))

namespace satori_fast {
namespace {

#ifdef __AVX__
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
template <typename Real> constexpr int64_t WIDTH = VECTOR_BYTES / sizeof(Real);
constexpr int64_t TILE = 256; // tokens whose sums stay in the type of the inputs
template <typename Real> constexpr int64_t VECTORS = TILE / WIDTH<Real>;
constexpr int TOGETHER = 4; // vectors whose exponentials are taken at once

// A vector of each type, and what exp needs to know of its format.
template <typename Real> struct Lanes;

template <> struct Lanes<float> {
    typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef int32_t Mask __attribute__((vector_size(VECTOR_BYTES)));
    typedef uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int mantissa_bits = 23, series_terms = 6;
    static constexpr uint32_t bias = 127;
    static constexpr float rounder = 0x1.8p23F; // adding it leaves an integer in the low bits
    static constexpr float ln2_high = 0x1.62e4p-1F, ln2_low = 0x1.7f7d1cp-20F;
};

template <> struct Lanes<double> {
    typedef double Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef int64_t Mask __attribute__((vector_size(VECTOR_BYTES)));
    typedef uint64_t Bits __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int mantissa_bits = 52, series_terms = 13;
    static constexpr uint64_t bias = 1023;
    static constexpr double rounder = 0x1.8p52;
    static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
};

template <typename Real> using Vector = typename Lanes<Real>::Vector;
template <typename Real> using Mask = typename Lanes<Real>::Mask;

template <typename Real> INLINE Vector<Real> load(const Real* source) {
    Vector<Real> v;
    std::memcpy(&v, source, sizeof v);
    return v;
}

template <typename Real> INLINE void store(Real* target, const Vector<Real>& v) {
    std::memcpy(target, &v, sizeof v);
}

template <typename Real> INLINE Vector<Real> all(Real x) { return x - Vector<Real>{}; }

template <typename Real> struct Exponentials {
    Vector<Real> exp, expm1, k3; // k3 = exp(x) - 1 - x, with all its digits near 0
};

// x where a clamp changes it; false for NaN.
template <typename Real> INLINE Mask<Real> is_clamped(const Vector<Real>& x) {
    return (x > Real(MAX_LOG_RATIO)) | (x < Real(-MAX_LOG_RATIO));
}

// 1/2!, 1/3!, ...
constexpr double INVERSE_FACTORIALS[] = {
    1.0 / 2,         1.0 / 6,          1.0 / 24,         1.0 / 120,     1.0 / 720,
    1.0 / 5040,      1.0 / 40320,      1.0 / 362880,     1.0 / 3628800, 1.0 / 39916800,
    1.0 / 479001600, 1.0 / 6227020800, 1.0 / 87178291200};

// Of x clamped to MAX_LOG_RATIO:
// exp(x) = 2^k (1 + p), p = expm1(r) = r + r^2 q, |r| <= ln 2 / 2, q = 1/2! + r/3! + r^2/4! ...
// `scale` is 2^k. NaN stays NaN: comparisons with it are false.
//
// Several vectors at once, step by step: each step of one waits for the step before it, and the
// others fill that time.
template <typename Real>
INLINE void exponentials(const Vector<Real>* x, Exponentials<Real>* result) {
    using L = Lanes<Real>;
    using V = Vector<Real>;
    V bounded[TOGETHER], k[TOGETHER], r[TOGETHER], scale[TOGETHER], q[TOGETHER];
#pragma GCC unroll 4
    for (int i = 0; i < TOGETHER; ++i) {
        bounded[i] = x[i] < Real(-MAX_LOG_RATIO) ? all<Real>(Real(-MAX_LOG_RATIO)) : x[i];
        bounded[i] = x[i] > Real(MAX_LOG_RATIO) ? all<Real>(Real(MAX_LOG_RATIO)) : bounded[i];
        const V rounded = bounded[i] * Real(1.44269504088896340736) + L::rounder;
        k[i] = rounded - L::rounder;
        r[i] = bounded[i] - k[i] * L::ln2_high - k[i] * L::ln2_low;
        typename L::Bits bits;
        std::memcpy(&bits, &rounded, sizeof bits);
        bits = (bits + L::bias) << L::mantissa_bits;
        std::memcpy(&scale[i], &bits, sizeof bits);
        q[i] = all<Real>(Real(INVERSE_FACTORIALS[L::series_terms - 1]));
    }
#pragma GCC unroll 12
    for (int n = L::series_terms - 2; n >= 0; --n) {
#pragma GCC unroll 4
        for (int i = 0; i < TOGETHER; ++i)
            q[i] = q[i] * r[i] + Real(INVERSE_FACTORIALS[n]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < TOGETHER; ++i) {
        const V tail = r[i] * r[i] * q[i];
        const V scaled = scale[i] * (r[i] + tail);
        const V expm1 = (scale[i] - 1) + scaled;
        result[i] = {scale[i] + scaled, expm1, k[i] == 0 ? tail : expm1 - bounded[i]};
    }
}

// The larger one; NaN wins, as in torch.
template <typename Real> INLINE void raise_to(Vector<Real>& largest, const Vector<Real>& x) {
    largest = (x > largest) | (x != x) ? x : largest;
}

// `terms` in the type of the inputs; masks are choices that hold for all tokens.
template <typename Real> struct Settings {
    Real low, high, dual, kl_coefficient, entropy_coefficient, importance_low, importance_high;
    Mask<Real> is_k1, is_k2, has_kl_gradient, is_reweighted, is_masked;

    explicit INLINE Settings(const PolicyTerms& terms)
        : low(Real(1.0 - terms.clip_low)), high(Real(1.0 + terms.clip_high)),
          dual(Real(terms.clip_dual)), kl_coefficient(Real(terms.kl_coefficient)),
          entropy_coefficient(Real(terms.entropy_coefficient)),
          importance_low(Real(terms.importance_low)), importance_high(Real(terms.importance_high)),
          is_k1(choice(terms.kl_estimator == KlEstimator::k1)),
          is_k2(choice(terms.kl_estimator == KlEstimator::k2)),
          has_kl_gradient(choice(terms.kl_coefficient != 0)),
          is_reweighted(choice(terms.importance != Importance::none)),
          is_masked(choice(terms.importance == Importance::mask)) {}

    static INLINE Mask<Real> choice(bool is_chosen) { return Mask<Real>{} - is_chosen; }
};

// Returns u, and adds the metrics of trainer against engine. difference: old - rollout.
template <typename Real>
INLINE Vector<Real> importance_of(const Vector<Real>& weight, const Vector<Real>& difference,
                                  const Exponentials<Real>& engine, const Settings<Real>& is,
                                  Vector<Real>* sums) {
    using V = Vector<Real>;
    const Mask<Real> below = engine.exp < is.importance_low;
    const Mask<Real> outside = (below | (engine.exp > is.importance_high)) & is.is_reweighted;
    const V edge = below ? all<Real>(is.importance_low) : all<Real>(is.importance_high);
    const V beyond = is.is_masked ? V{} : edge;
    const V magnitude = difference < 0 ? -difference : difference;
    sums[ROLLOUT_ABS_DIFF] += weight * magnitude;
    raise_to<Real>(sums[ROLLOUT_ABS_DIFF_MAX], magnitude);
    sums[ROLLOUT_KL] += weight * engine.k3;
    sums[ROLLOUT_CLIP] += outside ? weight : V{};
    return is.is_reweighted ? (outside ? beyond : engine.exp) : all<Real>(1);
}

// Adds the surrogate and its metrics; returns the gradient in logprob, before the weight.
// log_ratio: logprob - old.
template <typename Real>
INLINE Vector<Real> surrogate_gradient(const Vector<Real>& weight, const Vector<Real>& advantage,
                                       const Vector<Real>& log_ratio,
                                       const Exponentials<Real>& policy,
                                       const Vector<Real>& importance, const Settings<Real>& is,
                                       Vector<Real>* sums) {
    using V = Vector<Real>;
    const V ratio = policy.exp;
    V clipped = ratio < is.low ? all<Real>(is.low) : ratio;
    clipped = clipped > is.high ? all<Real>(is.high) : clipped;
    const Mask<Real> is_low = (advantage < 0) & (ratio < is.low);
    const Mask<Real> is_high = (advantage > 0) & (ratio > is.high);
    const Mask<Real> is_dual = (advantage < 0) & (ratio > is.dual);
    // A comparison with NaN is false, and leaves the NaN.
    const V plain = ratio * advantage, limited = clipped * advantage;
    V surrogate = limited < plain ? limited : plain;
    surrogate = is_dual ? is.dual * advantage : surrogate;
    // An importance of 0 adds 0, and has no gradient, even where the ratio is NaN.
    sums[POLICY_LOSS] -= weight * (importance == 0 ? V{} : importance * surrogate);
    sums[CLIP_LOW] += is_low ? weight : V{};
    sums[CLIP_HIGH] += is_high ? weight : V{};
    sums[CLIP_DUAL] += is_dual ? weight : V{};
    sums[APPROX_KL] += weight * policy.k3;
    raise_to<Real>(sums[RATIO_MAX], weight != 0 ? ratio : V{});
    const Mask<Real> is_flat =
        is_low | is_high | is_dual | is_clamped<Real>(log_ratio) | (importance == 0);
    return is_flat ? V{} : -importance * ratio * advantage;
}

// Adds the KL to the reference model; returns `gradient` with its part. d: ref - logprob.
template <typename Real>
INLINE Vector<Real> with_kl_gradient(const Vector<Real>& gradient, const Vector<Real>& weight,
                                     const Vector<Real>& d, const Exponentials<Real>& reference,
                                     const Settings<Real>& is, Vector<Real>* sums) {
    const Vector<Real> k2_or_k3 = is.is_k2 ? d * d / 2 : reference.k3;
    const Vector<Real> k3_slope = is_clamped<Real>(d) ? Vector<Real>{} : -reference.expm1;
    const Vector<Real> slope = is.is_k2 ? -d : k3_slope;
    sums[KL] += weight * (is.is_k1 ? -d : k2_or_k3);
    const Vector<Real> both = gradient + is.kl_coefficient * (is.is_k1 ? all<Real>(1) : slope);
    return is.has_kl_gradient ? both : gradient;
}

// One whole tile, from token t on. A token of weight 0 is read as zeros, whatever it holds.
template <typename Real, bool has_rollout, bool has_ref>
INLINE void run_tile(const PolicyArrays<Real>& tokens, const Settings<Real>& is, int64_t t,
                     double* totals) {
    using V = Vector<Real>;
    constexpr int count = 1 + has_rollout + has_ref, last = count - 1;
    V x[count][VECTORS<Real>]; // logprob - old, old - rollout, ref - logprob
    Exponentials<Real> e[count][VECTORS<Real>];
    for (int64_t v = 0; v < VECTORS<Real>; ++v) {
        const int64_t at = t + v * WIDTH<Real>;
        const Mask<Real> live = load(tokens.loss_weights + at) != 0;
        const V logprob = load(tokens.logprobs + at), old = load(tokens.old_logprobs + at);
        x[0][v] = live ? logprob - old : V{};
        if constexpr (has_rollout)
            x[1][v] = live ? old - load(tokens.rollout_logprobs + at) : V{};
        if constexpr (has_ref)
            x[last][v] = live ? load(tokens.ref_logprobs + at) - logprob : V{};
    }
    for (int i = 0; i < count; ++i)
        for (int64_t v = 0; v < VECTORS<Real>; v += TOGETHER)
            exponentials<Real>(x[i] + v, e[i] + v);

    V sums[NUM_POLICY_STATS] = {};
    for (int64_t v = 0; v < VECTORS<Real>; ++v) {
        const int64_t at = t + v * WIDTH<Real>;
        const V weight = load(tokens.loss_weights + at);
        const Mask<Real> live = weight != 0;
        const V advantage = live ? load(tokens.advantages + at) : V{};
        sums[ENTROPY] += weight * (live ? load(tokens.entropies + at) : V{});
        sums[NUM_TOKENS] += live ? all<Real>(1) : V{};
        V importance = all<Real>(1);
        Mask<Real> clamped = is_clamped<Real>(x[0][v]);
        if constexpr (has_rollout) {
            importance = importance_of<Real>(weight, x[1][v], e[1][v], is, sums);
            clamped |= is_clamped<Real>(x[1][v]);
        }
        V gradient =
            surrogate_gradient<Real>(weight, advantage, x[0][v], e[0][v], importance, is, sums);
        if constexpr (has_ref) {
            gradient = with_kl_gradient<Real>(gradient, weight, x[last][v], e[last][v], is, sums);
            clamped |= is_clamped<Real>(x[last][v]) & ~(is.is_k1 | is.is_k2);
        }
        sums[NUM_CLAMPED] += clamped ? all<Real>(1) : V{};
        store<Real>(tokens.grad_logprobs + at, live ? weight * gradient : V{});
        store<Real>(tokens.grad_entropies + at, -is.entropy_coefficient * weight);
    }
    for (int stat = 0; stat < NUM_POLICY_STATS; ++stat)
        for (int64_t lane = 0; lane < WIDTH<Real>; ++lane)
            add_policy_stat(stat, sums[stat][lane], totals);
}

// The last tokens, fewer than a tile: filled up with tokens of weight 0, which add nothing.
template <typename Real, bool has_rollout, bool has_ref>
INLINE void run_rest(const PolicyArrays<Real>& tokens, const Settings<Real>& is, int64_t begin,
                     int64_t end, double* totals) {
    const Real* sources[] = {tokens.logprobs,   tokens.entropies,    tokens.old_logprobs,
                             tokens.advantages, tokens.loss_weights, tokens.rollout_logprobs,
                             tokens.ref_logprobs};
    const size_t num_bytes = static_cast<size_t>(end - begin) * sizeof(Real);
    Real rows[9][TILE] = {};
    for (int row = 0; row < 7; ++row)
        if (sources[row])
            std::memcpy(rows[row], sources[row] + begin, num_bytes);
    const PolicyArrays<Real> padded{rows[0], rows[1], rows[2], rows[3], rows[4],
                                    rows[5], rows[6], rows[7], rows[8], TILE};
    run_tile<Real, has_rollout, has_ref>(padded, is, 0, totals);
    std::memcpy(tokens.grad_logprobs + begin, rows[7], num_bytes);
    std::memcpy(tokens.grad_entropies + begin, rows[8], num_bytes);
}

template <typename Real, bool has_rollout, bool has_ref>
INLINE void run_tiles(const PolicyArrays<Real>& tokens, const PolicyTerms& terms, int64_t begin,
                      int64_t end, double* totals) {
    const Settings<Real> is(terms);
    int64_t t = begin;
    for (; end - t >= TILE; t += TILE)
        run_tile<Real, has_rollout, has_ref>(tokens, is, t, totals);
    if (t < end)
        run_rest<Real, has_rollout, has_ref>(tokens, is, t, end, totals);
}

template <typename Real>
INLINE void run_policy_loop(const PolicyArrays<Real>& tokens, const PolicyTerms& terms,
                            int64_t begin, int64_t end, double* totals) {
    if (tokens.rollout_logprobs && tokens.ref_logprobs)
        run_tiles<Real, true, true>(tokens, terms, begin, end, totals);
    else if (tokens.rollout_logprobs)
        run_tiles<Real, true, false>(tokens, terms, begin, end, totals);
    else if (tokens.ref_logprobs)
        run_tiles<Real, false, true>(tokens, terms, begin, end, totals);
    else
        run_tiles<Real, false, false>(tokens, terms, begin, end, totals);
}

} // namespace
} // namespace satori_fast
