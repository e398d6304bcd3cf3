// SPDX-License-Identifier: Apache-2.0
// Short vectors of float, written with the vector types of GCC and Clang: the compiler turns them
// into whatever the flags of the including file allow. Everything lives in a namespace named after
// the instruction set, so that the linker cannot hand one set's code to another.
//
// The including file defines SATORI_ISA (the namespace) and SATORI_LANES (floats in a vector).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#define SATORI_INLINE inline __attribute__((always_inline))
#define SATORI_NOINLINE inline __attribute__((noinline))
#define SATORI_UNROLL _Pragma("GCC unroll 16")

namespace satori_fast::SATORI_ISA {

constexpr int64_t kLanes = SATORI_LANES;

typedef float Floats __attribute__((vector_size(SATORI_LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(SATORI_LANES * 4)));
// What memory holds: any alignment, and it may alias plain floats.
typedef float StoredFloats __attribute__((vector_size(SATORI_LANES * 4), aligned(4), may_alias));

SATORI_INLINE Floats load(const float* p) { return *reinterpret_cast<const StoredFloats*>(p); }
SATORI_INLINE void store(float* p, Floats x) { *reinterpret_cast<StoredFloats*>(p) = x; }
// x - 0 is x, also for x = -0, and costs nothing.
SATORI_INLINE Floats splat(float x) { return x - Floats{}; }
SATORI_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

// exp(x) for x <= 88, within 1e-7 of it relatively, and exp(0) = 1. Below -64 it is 0: a probability
// that small is lost in any sum, and its products would be denormal, which is slow.
SATORI_INLINE Floats exp(Floats x) {
    // Adding 1.5 * 2^23 rounds to an integer n, which then lies in the lowest bits.
    const Floats round = splat(12582912.0f);
    const Floats shifted = x * splat(1.44269504f) + round;
    const Floats n = shifted - round;
    // f = x - n log 2; the first part of log 2 has few digits, so that its product is exact.
    const Floats f = (x - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);
    Floats y = splat(1.3836835e-3f); // least largest relative error for |f| <= log(2) / 2: 2e-9
    y = y * f + splat(8.3748242e-3f);
    y = y * f + splat(4.1668225e-2f);
    y = y * f + splat(1.6666420e-1f);
    y = y * f + splat(4.9999991e-1f);
    y = y * f + splat(1.0f);
    y = y * f + splat(1.0f);
    const Floats scaled = (Floats)((Ints)y + ((Ints)shifted << 23)); // y 2^n
    return x < splat(-64.0f) ? Floats{} : scaled;
}

#if defined(__AVX512BF16__)
constexpr bool kMultipliesBfloat16 = true;

// sum + a0 b0 + a1 b1 in every lane, of pairs of bfloat16; `a` is the same pair in all of them.
SATORI_INLINE Floats multiply_add_pairs(Floats sum, const float* a, Floats b) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
}
#else
constexpr bool kMultipliesBfloat16 = false;
#endif

SATORI_INLINE float widen(float x) { return x; }
SATORI_INLINE float widen(uint16_t bfloat16) {
    const uint32_t bits = static_cast<uint32_t>(bfloat16) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

} // namespace satori_fast::SATORI_ISA
