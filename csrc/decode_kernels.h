// SPDX-License-Identifier: Apache-2.0
// Attention of one new token to the keys before it, for the instruction set that the including file
// was compiled for: the keys of a row in tiles, with a running maximum of their scores.
//
// Heads of a group go in pairs, because each of their keys and values is then loaded once for both.
// Arrays of `heads` rows: queries and sums [heads][padded size], scores [heads][kTileKeys].
#pragma once

#include "layer_table.h"
#include "row_vectors.h"

namespace satori_fast::SATORI_ISA {

constexpr int64_t kTileKeys = 128; // room for the scores of the keys taken at a time
constexpr int64_t kTileFloats = 4096; // what their values may hold to stay in the first cache
template <typename Element> constexpr int64_t kLineElements = 64 / sizeof(Element);

// One vector of scores: of kLanes / heads keys, each by all heads.
template <int heads, typename Element>
SATORI_INLINE Floats score_block(const float* queries, const Element* const* key,
                                 int64_t head_dim) {
    constexpr int keys = kLanes / heads;
    const int64_t whole = head_dim / kLanes * kLanes, padded = whole_vectors(head_dim);
    Floats sums[kLanes] = {};
    for (int64_t d = 0; d < whole; d += kLanes)
        SATORI_UNROLL
        for (int i = 0; i < keys; ++i) {
            const Floats k = load(key[i] + d);
            SATORI_UNROLL
            for (int head = 0; head < heads; ++head)
                sums[head * keys + i] += k * load(queries + head * padded + d);
        }
    if (whole < head_dim)
        SATORI_UNROLL // without it, the sums would live in memory
        for (int i = 0; i < keys; ++i) {
            const Floats k = load_part(key[i] + whole, head_dim - whole);
            SATORI_UNROLL
            for (int head = 0; head < heads; ++head)
                sums[head * keys + i] += k * load(queries + head * padded + whole);
        }
    return sums_of_lanes(sums);
}

// scores[head][j] = query . key j for j < count, and -inf up to a whole vector.
template <int heads, typename Element>
SATORI_NOINLINE void score_keys(const float* queries, const Element* keys, int64_t stride,
                                const Element* values, int64_t value_stride, int64_t count,
                                int64_t head_dim, float* scores) {
    constexpr int block = kLanes / heads;
    const Element* key[block];
    int64_t j = 0;
    const auto store_heads = [&](Floats score) {
        SATORI_UNROLL
        for (int head = 0; head < heads; ++head)
            std::memcpy(scores + head * kTileKeys + j,
                        reinterpret_cast<const char*>(&score) + head * block * sizeof(float),
                        block * sizeof(float));
    };
    for (; j + block <= count; j += block) {
        SATORI_UNROLL
        for (int i = 0; i < block; ++i)
            key[i] = keys + (j + i) * stride;
        // The values are read next, from memory that is seldom in a cache.
        for (int i = 0; i < block; ++i)
            for (int64_t d = 0; d < head_dim; d += kLineElements<Element>)
                __builtin_prefetch(values + (j + i) * value_stride + d);
        store_heads(score_block<heads>(queries, key, head_dim));
    }
    if (j < count) {
        // Places without a key take the last one, and their scores are overwritten.
        for (int i = 0; i < block; ++i)
            key[i] = keys + smaller(j + i, count - 1) * stride;
        store_heads(score_block<heads>(queries, key, head_dim));
    }
    for (int head = 0; head < heads; ++head)
        for (j = count; j < whole_vectors(count); ++j)
            scores[head * kTileKeys + j] = -kInfinity;
}

// sums[head][0 .. vectors * kLanes) = factors[head] sums + sum_j weights[head][j] value j
template <int heads, int vectors, typename Element>
SATORI_NOINLINE void add_values(const float* weights, const Element* values, int64_t stride,
                                int64_t count, const float* factors, int64_t padded, float* sums) {
    // Each addition waits several cycles for the one before it: a single head sums even and odd
    // keys apart.
    constexpr int chains = 2 / heads;
    Floats total[chains][heads][vectors] = {};
    SATORI_UNROLL
    for (int head = 0; head < heads; ++head)
        SATORI_UNROLL
        for (int v = 0; v < vectors; ++v)
            total[0][head][v] = load(sums + head * padded + v * kLanes) * splat(factors[head]);
    const auto add = [&](int chain, int64_t j) __attribute__((always_inline)) {
        Floats weight[heads];
        SATORI_UNROLL
        for (int head = 0; head < heads; ++head)
            weight[head] = splat(weights[head * kTileKeys + j]);
        SATORI_UNROLL
        for (int v = 0; v < vectors; ++v) {
            const Floats value = load(values + j * stride + v * kLanes);
            SATORI_UNROLL
            for (int head = 0; head < heads; ++head)
                total[chain][head][v] += weight[head] * value;
        }
    };
    int64_t j = 0;
    for (; j + chains <= count; j += chains)
        SATORI_UNROLL
        for (int chain = 0; chain < chains; ++chain)
            add(chain, j + chain);
    if (j < count)
        add(0, j);
    SATORI_UNROLL
    for (int head = 0; head < heads; ++head)
        SATORI_UNROLL
        for (int v = 0; v < vectors; ++v)
            store(sums + head * padded + v * kLanes,
                  total[0][head][v] + (chains > 1 ? total[chains - 1][head][v] : Floats{}));
}

template <int heads, typename Element>
SATORI_INLINE void add_all_values(const float* weights, const Element* values, int64_t stride,
                                  int64_t count, int64_t head_dim, const float* factors,
                                  float* sums) {
    const int64_t padded = whole_vectors(head_dim);
    int64_t d = 0;
    for (; d + 4 * kLanes <= head_dim; d += 4 * kLanes)
        add_values<heads, 4>(weights, values + d, stride, count, factors, padded, sums + d);
    for (; d + kLanes <= head_dim; d += kLanes)
        add_values<heads, 1>(weights, values + d, stride, count, factors, padded, sums + d);
    for (int head = 0; d < head_dim && head < heads; ++head) {
        Floats sum = load(sums + head * padded + d) * splat(factors[head]);
        for (int64_t j = 0; j < count; ++j)
            sum += splat(weights[head * kTileKeys + j]) *
                   load_part(values + j * stride + d, head_dim - d);
        store(sums + head * padded + d, sum);
    }
}

// Softmax weights of one tile in place of its scores. `largest` and `total` go on from the tiles
// before; returns what their sums, made with the maximum of that time, must be multiplied by.
SATORI_INLINE float weigh(float* scores, int64_t count, float& largest, float& total) {
    Floats most = splat(largest);
    for (int64_t j = 0; j < count; j += kLanes)
        most = maximum(most, load(scores + j));
    const float before = largest;
    for (int64_t i = 0; i < kLanes; ++i)
        largest = most[i] > largest ? most[i] : largest;
    const float factor = exp(splat(before - largest))[0];
    Floats sum{};
    for (int64_t j = 0; j < count; j += kLanes) {
        const Floats weight = exp(load(scores + j) - splat(largest));
        store(scores + j, weight);
        sum += weight;
    }
    total = total * factor + sum_of_lanes(sum);
    return factor;
}

struct Rows { // of one slot and group in a cache
    const void* first;
    int64_t stride;
};

// Keys and values of one tile, by some heads. `state`: maximum and sum of each head so far.
template <int heads, typename Element>
SATORI_INLINE void attend_tile(const float* queries, const Rows& keys, const Rows& values,
                               int64_t first, int64_t count, int64_t head_dim, float* scores,
                               float* state, float* sums) {
    const auto* key = static_cast<const Element*>(keys.first) + first * keys.stride;
    const auto* value = static_cast<const Element*>(values.first) + first * values.stride;
    float factors[heads];
    score_keys<heads>(queries, key, keys.stride, value, values.stride, count, head_dim, scores);
    for (int head = 0; head < heads; ++head)
        factors[head] =
            weigh(scores + head * kTileKeys, count, state[2 * head], state[2 * head + 1]);
    add_all_values<heads>(scores, value, values.stride, count, head_dim, factors, sums);
}

// Room for the scores of a pair, and for each head its query, its sums, its maximum and its sum.
inline int64_t decode_scratch(const DecodeTask& task) {
    return 2 * kTileKeys + task.heads_per_group * (2 * whole_vectors(task.head_dim) + 2);
}

template <typename Element>
SATORI_INLINE void decode_attention_as(const DecodeTask& task, int64_t row, int64_t group,
                                       float* scratch) {
    const int64_t size = task.head_dim, padded = whole_vectors(size);
    const int64_t num_heads = task.heads_per_group, length = task.positions[row] + 1;
    const int64_t slot = task.slots ? task.slots[row] : row;
    const auto place = [](const void* base, const int64_t* strides, int64_t i, int64_t j) {
        return static_cast<const Element*>(base) + i * strides[0] + j * strides[1];
    };
    const Rows keys{place(task.key_cache, task.key_cache_strides, slot, group),
                    task.key_cache_strides[2]};
    const Rows values{place(task.value_cache, task.value_cache_strides, slot, group),
                      task.value_cache_strides[2]};
    const auto* cos = static_cast<const Element*>(task.cos) + row * (size / 2);
    const auto* sin = static_cast<const Element*>(task.sin) + row * (size / 2);

    const auto entry = [&](const Rows& rows) {
        return static_cast<Element*>(const_cast<void*>(rows.first)) + (length - 1) * rows.stride;
    };
    rotate(place(task.keys, task.key_strides, row, group), cos, sin, size, 1.0f, entry(keys));
    const Element* value = place(task.values, task.value_strides, row, group);
    std::memcpy(entry(values), value, static_cast<size_t>(size) * sizeof(Element));

    float *scores = scratch, *rotated = scores + 2 * kTileKeys;
    float *sums = rotated + num_heads * padded, *state = sums + num_heads * padded;
    const Element* queries = place(task.queries, task.query_strides, row, group);
    for (int64_t head = 0; head < num_heads; ++head) {
        float* query = rotated + head * padded;
        store(query + padded - kLanes, Floats{}); // the padding
        rotate(queries + head * task.query_strides[2], cos, sin, size, task.scale, query);
        for (int64_t d = 0; d < padded; d += kLanes)
            store(sums + head * padded + d, Floats{});
        state[2 * head] = -kInfinity;
        state[2 * head + 1] = 0.0f;
    }

    const int64_t fitting = kTileFloats / padded / kLanes * kLanes;
    const int64_t tile = smaller(larger(fitting, kLanes), kTileKeys);
    for (int64_t first = 0; first < length; first += tile)
        for (int64_t head = 0; head < num_heads; head += 2)
            (head + 1 < num_heads ? attend_tile<2, Element> : attend_tile<1, Element>)(
                rotated + head * padded, keys, values, first, smaller(tile, length - first), size,
                scores, state + 2 * head, sums + head * padded);

    Element* out =
        static_cast<Element*>(task.out) + (row * task.num_groups + group) * num_heads * size;
    for (int64_t head = 0; head < num_heads; ++head)
        for_vectors(size, [&](int64_t d, const auto& vector) {
            const Floats sum = load(sums + head * padded + d);
            vector.write(out + head * size + d, sum * splat(1.0f / state[2 * head + 1]));
        });
}

inline void decode_attention(const DecodeTask& task, int64_t row, int64_t group, float* scratch) {
    (task.is_bfloat16 ? decode_attention_as<uint16_t> : decode_attention_as<float>)(
        task, row, group, scratch);
}

} // namespace satori_fast::SATORI_ISA
