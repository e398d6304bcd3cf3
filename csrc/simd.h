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
// Lanes of a and b by their numbers; those of b count on from those of a.
#if defined(__clang__) || __GNUC__ >= 12
#define SATORI_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SATORI_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

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

// Below this exp is 0: a probability that small is lost in any sum, and its products would be
// denormal, which is slow.
constexpr float kExpIsZeroBelow = -64.0f;

// exp(x) for x <= 88, within 1e-7 of it relatively, and exp(0) = 1.
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
    return x < splat(kExpIsZeroBelow) ? Floats{} : scaled;
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

// Neighbours added: pairs of a, then pairs of b, within each four lanes.
SATORI_INLINE Floats add_neighbours(Floats a, Floats b) {
#if SATORI_LANES == 16
    return SATORI_SHUFFLE(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
           SATORI_SHUFFLE(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
#elif SATORI_LANES == 8
    return SATORI_SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
           SATORI_SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
#else
    return SATORI_SHUFFLE(a, b, 0, 2, 4, 6) + SATORI_SHUFFLE(a, b, 1, 3, 5, 7);
#endif
}

#if SATORI_LANES > 4
// The same for neighbouring fours.
SATORI_INLINE Floats add_fours(Floats a, Floats b) {
#if SATORI_LANES == 16
    return SATORI_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           SATORI_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
#else
    return SATORI_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
           SATORI_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
#endif
}
#endif

// Lane i of the result is the sum of the lanes of x[i]. Overwrites x.
SATORI_INLINE Floats sums_of_lanes(Floats (&x)[SATORI_LANES]) {
    SATORI_UNROLL
    for (int i = 0; i < SATORI_LANES / 2; ++i)
        x[i] = add_neighbours(x[2 * i], x[2 * i + 1]);
    SATORI_UNROLL
    for (int i = 0; i < SATORI_LANES / 4; ++i)
        x[i] = add_neighbours(x[2 * i], x[2 * i + 1]);
#if SATORI_LANES > 4
    SATORI_UNROLL
    for (int i = 0; i < SATORI_LANES / 8; ++i)
        x[i] = add_fours(x[2 * i], x[2 * i + 1]);
#endif
#if SATORI_LANES > 8
    x[0] = add_fours(x[0], x[1]);
#endif
    return x[0];
}

SATORI_INLINE float sum_of_lanes(Floats x) {
    float sum = 0.0f;
    SATORI_UNROLL
    for (int i = 0; i < SATORI_LANES; ++i)
        sum += x[i];
    return sum;
}

SATORI_INLINE float widen(float x) { return x; }
SATORI_INLINE float widen(uint16_t bfloat16) {
    const uint32_t bits = static_cast<uint32_t>(bfloat16) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

typedef uint16_t Halves __attribute__((vector_size(SATORI_LANES * 2)));
typedef uint32_t Words __attribute__((vector_size(SATORI_LANES * 4)));

SATORI_INLINE Floats load(const uint16_t* bfloat16) {
    Halves halves;
    std::memcpy(&halves, bfloat16, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

// The bits of the nearest bfloat16 in the upper half of each lane; ties go to even.
SATORI_INLINE Words nearest_bfloat16(Floats x) {
    const Words bits = (Words)x;
    const Words nearest = bits + 0x7fff + ((bits >> 16) & 1);
    return (x == x ? nearest : Words{} + 0x7fc00000) & 0xffff0000;
}

// x in the precision of the type that the pointer points to; it is not followed.
SATORI_INLINE Floats rounded_as(const float*, Floats x) { return x; }
SATORI_INLINE Floats rounded_as(const uint16_t*, Floats x) { return (Floats)nearest_bfloat16(x); }

SATORI_INLINE void store(uint16_t* bfloat16, Floats x) {
    const Halves halves = __builtin_convertvector(nearest_bfloat16(x) >> 16, Halves);
    std::memcpy(bfloat16, &halves, sizeof halves);
}

} // namespace satori_fast::SATORI_ISA
