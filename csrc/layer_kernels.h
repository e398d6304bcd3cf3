// SPDX-License-Identifier: Apache-2.0
// The inner loops of the operations inside a transformer layer, for the instruction set that the
// including file was compiled for. Sums are float32; a result is rounded to its type once.
#pragma once

#include "layer_table.h"
#include "simd.h"

namespace satori_fast::SATORI_ISA {

constexpr int64_t kTileKeys = 128; // keys whose scores are kept at a time
constexpr float kInfinity = __builtin_inff();

SATORI_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SATORI_INLINE int64_t whole_vectors(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// A last vector of fewer lanes; the others are 0.
template <typename Element> SATORI_INLINE Floats load_part(const Element* p, int64_t count) {
    float lanes[kLanes] = {};
    for (int64_t i = 0; i < count; ++i)
        lanes[i] = widen(p[i]);
    return load(lanes);
}

SATORI_INLINE void store_as(float* p, Floats x) { store(p, x); }
SATORI_INLINE void store_as(uint16_t* p, Floats x) {
    SATORI_UNROLL
    for (int64_t i = 0; i < kLanes; ++i)
        round_to(p + i, x[i]);
}

template <typename Element> SATORI_INLINE void store_part(Element* p, Floats x, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        round_to(p + i, x[i]);
}

// Calls body(start, load, store) over the vectors of a row; the last one may have fewer lanes.
template <typename Body> SATORI_INLINE void for_vectors(int64_t size, const Body& body) {
    const int64_t whole = size / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes)
        body(
            i, [](const auto* p) __attribute__((always_inline)) { return load(p); },
            [](auto* p, Floats x) __attribute__((always_inline)) { store_as(p, x); });
    if (const int64_t left = size - whole; left > 0)
        body(
            whole,
            [left](const auto* p) __attribute__((always_inline)) { return load_part(p, left); },
            [left](auto* p, Floats x) __attribute__((always_inline)) { store_part(p, x, left); });
}

// -- attention of one new token to the keys before it ------------------------------------------

// (a cos - b sin, b cos + a sin) of the halves (a, b) of x.
template <typename Element>
SATORI_INLINE void rotate(const Element* x, const Element* cos, const Element* sin, int64_t size,
                          Element* out) {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; ++i) {
        const float a = widen(x[i]), b = widen(x[half + i]);
        const float c = widen(cos[i]), s = widen(sin[i]);
        round_to(out + i, a * c - b * s);
        round_to(out + half + i, b * c + a * s);
    }
}

// scores[j] = query . key j for j < count, and -inf up to a whole vector; returns the largest.
template <typename Element>
SATORI_NOINLINE float score_keys(const float* query, const Element* keys, int64_t stride,
                                 int64_t count, int64_t head_dim, float* scores) {
    Floats largest = splat(-kInfinity);
    Floats lane;
    for (int64_t i = 0; i < kLanes; ++i)
        lane[i] = static_cast<float>(i);
    const int64_t whole = head_dim / kLanes * kLanes;
    for (int64_t first = 0; first < count; first += kLanes) {
        // Lanes without a key take the last one, and their scores are thrown away.
        const Element* key[kLanes];
        SATORI_UNROLL
        for (int64_t i = 0; i < kLanes; ++i)
            key[i] = keys + smaller(first + i, count - 1) * stride;
        Floats sums[kLanes] = {};
        for (int64_t d = 0; d < whole; d += kLanes) {
            const Floats q = load(query + d);
            SATORI_UNROLL
            for (int64_t i = 0; i < kLanes; ++i)
                sums[i] += load(key[i] + d) * q;
        }
        if (whole < head_dim) {
            const Floats q = load(query + whole); // padded with 0
            SATORI_UNROLL // without it, the sums would live in memory
            for (int64_t i = 0; i < kLanes; ++i)
                sums[i] += load_part(key[i] + whole, head_dim - whole) * q;
        }
        Floats score = sums_of_lanes(sums);
        score = lane < splat(static_cast<float>(count - first)) ? score : splat(-kInfinity);
        store(scores + first, score);
        largest = maximum(largest, score);
    }
    float result = largest[0];
    for (int64_t i = 1; i < kLanes; ++i)
        result = largest[i] > result ? largest[i] : result;
    return result;
}

// sums[0 .. vectors * kLanes) = factor sums + sum_j weights[j] value j
template <int vectors, typename Element>
SATORI_NOINLINE void add_values(const float* weights, const Element* values, int64_t stride,
                                int64_t count, float factor, float* sums) {
    // Even and odd keys apart: each addition waits several cycles for the one before it.
    Floats even[vectors], odd[vectors];
    SATORI_UNROLL
    for (int v = 0; v < vectors; ++v) {
        even[v] = load(sums + v * kLanes) * splat(factor);
        odd[v] = Floats{};
    }
    int64_t j = 0;
    for (; j + 1 < count; j += 2) {
        const Element* value = values + j * stride;
        const Floats first = splat(weights[j]), second = splat(weights[j + 1]);
        SATORI_UNROLL
        for (int v = 0; v < vectors; ++v) {
            even[v] += first * load(value + v * kLanes);
            odd[v] += second * load(value + stride + v * kLanes);
        }
    }
    SATORI_UNROLL
    for (int v = 0; v < vectors; ++v) {
        if (j < count)
            even[v] += splat(weights[j]) * load(values + j * stride + v * kLanes);
        store(sums + v * kLanes, even[v] + odd[v]);
    }
}

template <typename Element>
SATORI_INLINE void add_all_values(const float* weights, const Element* values, int64_t stride,
                                  int64_t count, int64_t head_dim, float factor, float* sums) {
    int64_t d = 0;
    for (; d + 4 * kLanes <= head_dim; d += 4 * kLanes)
        add_values<4>(weights, values + d, stride, count, factor, sums + d);
    for (; d + kLanes <= head_dim; d += kLanes)
        add_values<1>(weights, values + d, stride, count, factor, sums + d);
    if (d < head_dim) {
        Floats sum = load(sums + d) * splat(factor);
        for (int64_t j = 0; j < count; ++j)
            sum += splat(weights[j]) * load_part(values + j * stride + d, head_dim - d);
        store(sums + d, sum);
    }
}

inline int64_t decode_scratch(const DecodeTask& task) {
    return kTileKeys + 3 * whole_vectors(task.head_dim);
}

// One query of head_dim numbers, already rotated and scaled in `query`; its result in `sums`.
template <typename Element>
SATORI_INLINE void attend(const float* query, const Element* keys, int64_t key_stride,
                          const Element* values, int64_t value_stride, int64_t length,
                          int64_t head_dim, float* scores, float* sums) {
    float largest = -kInfinity, total = 0.0f;
    for (int64_t d = 0; d < head_dim; d += kLanes)
        store(sums + d, Floats{});
    for (int64_t first = 0; first < length; first += kTileKeys) {
        const int64_t count = smaller(kTileKeys, length - first);
        const float seen = score_keys(query, keys + first * key_stride, key_stride, count, head_dim,
                                      scores);
        const float before = largest;
        largest = seen > largest ? seen : largest;
        // What was summed so far refers to the maximum of its time.
        const float factor = first == 0 ? 0.0f : exp(splat(before - largest))[0];
        Floats weights_sum{};
        for (int64_t j = 0; j < count; j += kLanes) {
            const Floats weight = exp(load(scores + j) - splat(largest));
            store(scores + j, weight);
            weights_sum += weight;
        }
        total = total * factor + sum_of_lanes(weights_sum);
        add_all_values(scores, values + first * value_stride, value_stride, count, head_dim, factor,
                       sums);
    }
    for (int64_t d = 0; d < head_dim; d += kLanes)
        store(sums + d, load(sums + d) / splat(total));
}

template <typename Element>
SATORI_INLINE void decode_attention_as(const DecodeTask& task, int64_t row, int64_t group,
                                       float* scratch) {
    const int64_t size = task.head_dim, padded = whole_vectors(size);
    const int64_t slot = task.slots ? task.slots[row] : row, position = task.positions[row];
    const auto at = [](auto* base, const int64_t* strides, int64_t i, int64_t j) {
        return static_cast<Element*>(base) + i * strides[0] + j * strides[1];
    };
    const auto read = [](const void* base, const int64_t* strides, int64_t i, int64_t j) {
        return static_cast<const Element*>(base) + i * strides[0] + j * strides[1];
    };
    Element* keys = at(task.key_cache, task.key_cache_strides, slot, group);
    Element* values = at(task.value_cache, task.value_cache_strides, slot, group);
    const int64_t key_stride = task.key_cache_strides[2];
    const int64_t value_stride = task.value_cache_strides[2];
    const Element* cos = static_cast<const Element*>(task.cos) + row * (size / 2);
    const Element* sin = static_cast<const Element*>(task.sin) + row * (size / 2);

    rotate(read(task.keys, task.key_strides, row, group), cos, sin, size,
           keys + position * key_stride);
    const Element* value = read(task.values, task.value_strides, row, group);
    for (int64_t d = 0; d < size; ++d)
        values[position * value_stride + d] = value[d];

    float* scores = scratch;
    float* query = scratch + kTileKeys;
    float* sums = query + padded;
    auto* rotated = reinterpret_cast<Element*>(sums + padded);
    const Element* queries = read(task.queries, task.query_strides, row, group);
    for (int64_t head = 0; head < task.heads_per_group; ++head) {
        rotate(queries + head * task.query_strides[2], cos, sin, size, rotated);
        for (int64_t d = 0; d < padded; ++d)
            query[d] = d < size ? widen(rotated[d]) * task.scale : 0.0f;
        attend<Element>(query, keys, key_stride, values, value_stride, position + 1, size, scores,
                        sums);
        const int64_t index = (row * task.num_groups + group) * task.heads_per_group + head;
        Element* out = static_cast<Element*>(task.out) + index * size;
        for (int64_t d = 0; d < size; ++d)
            round_to(out + d, sums[d]);
    }
}

inline void decode_attention(const DecodeTask& task, int64_t row, int64_t group, float* scratch) {
    (task.is_bfloat16 ? decode_attention_as<uint16_t> : decode_attention_as<float>)(task, row, group,
                                                                                   scratch);
}

// -- norm and activation ----------------------------------------------------------------------

template <typename Element>
SATORI_INLINE void rms_norm_as(const NormTask& task, int64_t first_row, int64_t end_row) {
    const int64_t size = task.size;
    const Element* weight = static_cast<const Element*>(task.weight);
    for (int64_t row = first_row; row < end_row; ++row) {
        const Element* x = static_cast<const Element*>(task.x) + row * size;
        Element* y = static_cast<Element*>(task.y) + row * size;
        if (task.residual) {
            const Element* residual = static_cast<const Element*>(task.residual) + row * size;
            Element* sum = static_cast<Element*>(task.sum) + row * size;
            for_vectors(size, [&](int64_t i, const auto& load, const auto& store) {
                store(sum + i, load(x + i) + load(residual + i));
            });
            x = sum;
        }
        Floats squares{};
        for_vectors(size, [&](int64_t i, const auto& load, const auto&) {
            const Floats z = load(x + i);
            squares += z * z;
        });
        const float mean = sum_of_lanes(squares) / static_cast<float>(size);
        const float rstd = 1.0f / __builtin_sqrtf(mean + task.eps);
        task.rstd[row] = rstd;
        for_vectors(size, [&](int64_t i, const auto& load, const auto& store) {
            store(y + i, load(x + i) * splat(rstd) * load(weight + i));
        });
    }
}

inline void rms_norm(const NormTask& task, int64_t first_row, int64_t end_row) {
    (task.is_bfloat16 ? rms_norm_as<uint16_t> : rms_norm_as<float>)(task, first_row, end_row);
}

template <typename Element>
SATORI_INLINE void swiglu_as(const SwigluTask& task, int64_t first_row, int64_t end_row) {
    for (int64_t row = first_row; row < end_row; ++row) {
        const Element* gates = static_cast<const Element*>(task.gate_up) + row * 2 * task.size;
        const Element* ups = gates + task.size;
        Element* out = static_cast<Element*>(task.out) + row * task.size;
        for_vectors(task.size, [&](int64_t i, const auto& load, const auto& store) {
            const Floats gate = load(gates + i);
            // exp overflows beyond 88, where silu is less than 1e-36.
            const Floats silu = gate / (splat(1.0f) + exp(-gate));
            store(out + i, (gate < splat(-87.0f) ? Floats{} : silu) * load(ups + i));
        });
    }
}

inline void swiglu(const SwigluTask& task, int64_t first_row, int64_t end_row) {
    (task.is_bfloat16 ? swiglu_as<uint16_t> : swiglu_as<float>)(task, first_row, end_row);
}

constexpr LayerKernels kLayerKernels{decode_scratch, decode_attention, rms_norm, swiglu};

} // namespace satori_fast::SATORI_ISA
