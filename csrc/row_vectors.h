// SPDX-License-Identifier: Apache-2.0
// Rows of numbers as vectors of the instruction set, the last one perhaps in part.
#pragma once

#include "simd.h"

namespace satori_fast::SATORI_ISA {

constexpr float kInfinity = __builtin_inff();

SATORI_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SATORI_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
SATORI_INLINE int64_t whole_vectors(int64_t count) {
    return (count + kLanes - 1) / kLanes * kLanes;
}

// A last vector of fewer lanes; the others are 0.
template <typename Element> SATORI_INLINE Floats load_part(const Element* p, int64_t count) {
    Element lanes[kLanes] = {};
    for (int64_t i = 0; i < count; ++i)
        lanes[i] = p[i];
    return load(lanes);
}

template <typename Element> SATORI_INLINE void store_part(Element* p, Floats x, int64_t count) {
    Element lanes[kLanes];
    store(lanes, x);
    for (int64_t i = 0; i < count; ++i)
        p[i] = lanes[i];
}

// Loads and stores of a whole vector and of a last one, for for_vectors.
struct Whole {
    template <typename Element> SATORI_INLINE Floats read(const Element* p) const {
        return load(p);
    }
    template <typename Element> SATORI_INLINE void write(Element* p, Floats x) const {
        store(p, x);
    }
};
struct Part {
    int64_t count;
    template <typename Element> SATORI_INLINE Floats read(const Element* p) const {
        return load_part(p, count);
    }
    template <typename Element> SATORI_INLINE void write(Element* p, Floats x) const {
        store_part(p, x, count);
    }
};

// Calls body(start, vector) over the vectors of a row; the last one may have fewer lanes.
template <typename Body> SATORI_INLINE void for_vectors(int64_t size, const Body& body) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes)
        body(i, Whole{});
    if (i < size)
        body(i, Part{size - i});
}

// Writes (a cos - b sin, b cos + a sin) of the halves (a, b) of x, rounded to the type of x and then
// multiplied by `scale`. sign: -1 turns the other way.
template <typename Element, typename Result>
SATORI_INLINE void rotate(const Element* x, const Element* cos, const Element* sin, int64_t size,
                          float scale, Result* out, float sign = 1.0f) {
    const int64_t half = size / 2;
    for_vectors(half, [&](int64_t i, const auto& vector) {
        const Floats a = vector.read(x + i), b = vector.read(x + half + i);
        const Floats c = vector.read(cos + i), s = vector.read(sin + i) * splat(sign);
        vector.write(out + i, rounded_as(x, a * c - b * s) * splat(scale));
        vector.write(out + half + i, rounded_as(x, b * c + a * s) * splat(scale));
    });
}

} // namespace satori_fast::SATORI_ISA
