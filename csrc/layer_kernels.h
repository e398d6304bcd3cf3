// SPDX-License-Identifier: Apache-2.0
// The inner loops of the operations inside a transformer layer, and of sampling, for the instruction
// set that the including file was compiled for. Sums are float32; a result is rounded to its type
// once.
#pragma once

#include "layer_table.h"
#include "simd.h"

namespace satori_fast::SATORI_ISA {

constexpr int64_t kTileKeys = 128; // room for the scores of the keys taken at a time
constexpr int64_t kTileFloats = 4096; // what their values may hold to stay in the first cache
template <typename Element> constexpr int64_t kLineElements = 64 / sizeof(Element);
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

// -- attention of one new token to the keys before it ------------------------------------------
//
// Heads of a group go in pairs, because each of their keys and values is then loaded once for both.
// Arrays of `heads` rows: queries and sums [heads][padded size], scores [heads][kTileKeys].

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

// -- rotary embedding, norm, activation -------------------------------------------------------

template <typename Element>
SATORI_INLINE void rope_as(const RopeTask& task, int64_t first_row, int64_t end_row) {
    const int64_t size = task.head_dim;
    for (int64_t row = first_row; row < end_row; ++row) {
        const auto* cos = static_cast<const Element*>(task.cos) + row * (size / 2);
        const auto* sin = static_cast<const Element*>(task.sin) + row * (size / 2);
        auto* out = static_cast<Element*>(task.out) + row * task.num_groups * task.num_heads * size;
        for (int64_t group = 0; group < task.num_groups; ++group)
            for (int64_t head = 0; head < task.num_heads; ++head, out += size)
                rotate(static_cast<const Element*>(task.x) + row * task.strides[0] +
                           group * task.strides[1] + head * task.strides[2],
                       cos, sin, size, 1.0f, out, task.inverse ? -1.0f : 1.0f);
    }
}

inline void rope(const RopeTask& task, int64_t first_row, int64_t end_row) {
    (task.is_bfloat16 ? rope_as<uint16_t> : rope_as<float>)(task, first_row, end_row);
}

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
            for_vectors(size, [&](int64_t i, const auto& vector) {
                vector.write(sum + i, vector.read(x + i) + vector.read(residual + i));
            });
            x = sum;
        }
        Floats squares{};
        for_vectors(size, [&](int64_t i, const auto& vector) {
            const Floats z = vector.read(x + i);
            squares += z * z;
        });
        const float mean = sum_of_lanes(squares) / static_cast<float>(size);
        const float rstd = 1.0f / __builtin_sqrtf(mean + task.eps);
        task.rstd[row] = rstd;
        for_vectors(size, [&](int64_t i, const auto& vector) {
            vector.write(y + i, vector.read(x + i) * splat(rstd) * vector.read(weight + i));
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
        for_vectors(task.size, [&](int64_t i, const auto& vector) {
            const Floats gate = vector.read(gates + i);
            // exp overflows beyond 88, where silu is less than 1e-36.
            const Floats silu = gate / (splat(1.0f) + exp(-gate));
            vector.write(out + i, (gate < splat(-87.0f) ? Floats{} : silu) * vector.read(ups + i));
        });
    }
}

inline void swiglu(const SwigluTask& task, int64_t first_row, int64_t end_row) {
    (task.is_bfloat16 ? swiglu_as<uint16_t> : swiglu_as<float>)(task, first_row, end_row);
}

// -- sampling ---------------------------------------------------------------------------------

// exp((x - largest) inverse_temperature) of the columns of a block; 0 beyond them.
SATORI_INLINE void weigh_block(const float* logits, int64_t count, float largest,
                               float inverse_temperature, float* weights) {
    for_vectors(count, [&](int64_t i, const auto& vector) {
        const Floats x = vector.read(logits + i) - splat(largest);
        store(weights + i, Floats{});
        vector.write(weights + i, exp(x * splat(inverse_temperature)));
    });
}

inline void sample_row(const SampleTask& task, int64_t row, double* sums) {
    const int64_t size = task.num_columns, num_blocks = sample_blocks(size);
    const float* logits = task.logits + row * size;
    float lanes[kLanes], largest = logits[0];
    Floats most = splat(largest);
    for (int64_t j = 0; j + kLanes <= size; j += kLanes)
        most = maximum(most, load(logits + j));
    store(lanes, most);
    for (int64_t i = 0; i < kLanes; ++i)
        largest = lanes[i] > largest ? lanes[i] : largest;
    for (int64_t j = size / kLanes * kLanes; j < size; ++j)
        largest = logits[j] > largest ? logits[j] : largest;

    float weights[kSampleBlock];
    double total = 0.0;
    for (int64_t block = 0; block < num_blocks; ++block) {
        const int64_t first = block * kSampleBlock, count = smaller(kSampleBlock, size - first);
        weigh_block(logits + first, count, largest, task.inverse_temperature, weights);
        Floats sum{};
        for (int64_t j = 0; j < count; j += kLanes)
            sum += load(weights + j);
        sums[block] = total += static_cast<double>(sum_of_lanes(sum));
    }
    // The block, then the column in it, where the running sum passes the drawn part of the total.
    const double drawn = task.uniform[row] * total;
    int64_t block = 0;
    while (block + 1 < num_blocks && !(sums[block] > drawn))
        ++block;
    const int64_t first = block * kSampleBlock, count = smaller(kSampleBlock, size - first);
    weigh_block(logits + first, count, largest, task.inverse_temperature, weights);
    double running = block > 0 ? sums[block - 1] : 0.0;
    // Rounding may leave the columns' running sum below the block's: the last possible one then.
    int64_t token = count - 1;
    while (token > 0 && weights[token] == 0.0f)
        --token;
    for (int64_t j = 0; j < token; ++j) {
        running += static_cast<double>(weights[j]);
        if (running > drawn) {
            token = j;
            break;
        }
    }
    token += first;
    task.tokens[row] = token;
    task.logprobs[row] = static_cast<float>(
        static_cast<double>(logits[token] - largest) * task.inverse_temperature -
        __builtin_log(total));
}

constexpr LayerKernels kLayerKernels{decode_scratch, decode_attention, rms_norm,
                                     rope,           swiglu,           sample_row};

} // namespace satori_fast::SATORI_ISA
