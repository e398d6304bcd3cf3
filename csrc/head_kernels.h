// SPDX-License-Identifier: Apache-2.0
// The inner loops of the output head, for the instruction set that the including file was compiled
// for; head_table.h says what they compute and how the data lie.
#pragma once

#include "head_packing.h"
#include "head_table.h"
#include "simd.h"

namespace satori_fast::SATORI_ISA {

// Tokens whose logit gradients wait for the product that gives the weight's gradient.
constexpr int64_t kWaitingPanels = 256 / kTileTokens;
constexpr int64_t kTileSize = kTileColumns * kTileTokens;
constexpr int64_t kLineFloats = 16; // in a line of the caches

// Matrix products of one tile. They are functions of their own, because accumulators that share a
// function with other code end up on the stack.

struct Tile {
    Floats at[kTileColumns][kTileVectors];
};

SATORI_INLINE Tile zero_tile() {
    Tile tile;
    SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
        SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j)
            tile.at[i][j] = Floats{};
    return tile;
}

// out[i * stride + j] (+)= tile[i, j]
SATORI_INLINE void store(const Tile& tile, bool accumulates, int64_t stride, float* out) {
    SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
        SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j) {
            float* at = out + i * stride + j * kLanes;
            store(at, accumulates ? load(at) + tile.at[i][j] : tile.at[i][j]);
        }
}

// out[i, j] = tile[i, j] scale[j]. Rounded here: were the product fused with a later subtraction of
// the maximum, the largest logit minus the maximum would not be 0.
SATORI_INLINE void store_scaled(const Tile& tile, const float* scale, float* out) {
    SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
        SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j)
            store(out + i * kTileTokens + j * kLanes, tile.at[i][j] * load(scale + j * kLanes));
}

// tile[i, :] += sum_k a[i * StrideI + k * StrideK] b[k, :]
template <int64_t StrideI, int64_t StrideK>
SATORI_INLINE void multiply_add(Tile& tile, const float* a, const float* b, int64_t depth) {
    // Unrolled where `depth` is a constant, the loop would need more registers than there are.
    _Pragma("GCC unroll 1") for (int64_t k = 0; k < depth; ++k, a += StrideK, b += kTileTokens) {
        Floats row[kTileVectors];
        SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j)
            row[j] = load(b + j * kLanes);
        SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i) {
            const Floats factor = splat(a[i * StrideI]);
            SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j)
                tile.at[i][j] += factor * row[j];
        }
    }
}

// Logits [tile_columns, tile_tokens] of packed columns and packed tokens.
SATORI_NOINLINE void tile_logits(const float* columns, const float* tokens, int64_t depth,
                                 const float* scale, float* out) {
    Tile tile = zero_tile();
    multiply_add<1, kTileColumns>(tile, columns, tokens, depth);
    store_scaled(tile, scale, out);
}

#if defined(__AVX512BF16__)
// The same of pairs of bfloat16.
SATORI_NOINLINE void tile_logits_of_pairs(const float* columns, const float* tokens, int64_t depth,
                                          const float* scale, float* out) {
    Tile tile = zero_tile();
    for (int64_t k = 0; k < depth; ++k, columns += kTileColumns, tokens += kTileTokens) {
        Floats row[kTileVectors];
        SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j)
            row[j] = load(tokens + j * kLanes);
        SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
            SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j)
                tile.at[i][j] = multiply_add_pairs(tile.at[i][j], columns + i, row[j]);
    }
    store_scaled(tile, scale, out);
}
#endif

// out [tile_columns, tile_tokens] (+)= W^T d, over the columns of a block.
SATORI_NOINLINE void product_over_columns(const float* components, const float* d, int64_t count,
                                          bool accumulates, float* out) {
    Tile tile = zero_tile();
    multiply_add<1, kTileColumns>(tile, components, d, count);
    store(tile, accumulates, kTileTokens, out);
}

// out [tile_columns, tile_tokens] (+)= d x, over panels of tokens: d is [panel][..][token in panel].
SATORI_NOINLINE void product_over_tokens(const float* d, int64_t panel_size, const float* x,
                                         int64_t num_panels, bool accumulates, int64_t stride,
                                         float* out) {
    Tile tile = zero_tile();
    // The gradient comes from far away, and the next tile's rows are scattered over the panels: no
    // prefetcher guesses either.
    for (int64_t i = 0; i < kTileColumns; ++i)
        __builtin_prefetch(out + i * stride, 1);
    for (int64_t panel = 0; panel < num_panels; ++panel, d += panel_size) {
        for (int64_t i = 0; i < kTileSize; i += kLineFloats)
            __builtin_prefetch(d + kTileSize + i);
        multiply_add<kTileTokens, 1>(tile, d, x + panel * kTileTokens * kTileTokens, kTileTokens);
    }
    store(tile, accumulates, stride, out);
}

// A panel of logits, [column in block][token in panel].
inline void panel_logits(const HeadBlocking& blocking, const float* columns, const float* tokens,
                         const float* scale, int64_t count, float* out) {
#if defined(__AVX512BF16__)
    const auto multiply = blocking.is_paired ? tile_logits_of_pairs : tile_logits;
#else
    const auto multiply = tile_logits;
#endif
    for (int64_t column = 0; column < count; column += kTileColumns)
        multiply(columns + column * blocking.depth, tokens, blocking.depth, scale,
                 out + column * kTileTokens);
}

// Columns of `block` that the shard has.
inline int64_t count_columns(const Head& head, const HeadBlocking& blocking, int64_t block) {
    const int64_t left = head.num_columns - block * blocking.block_columns;
    return left < blocking.block_columns ? left : blocking.block_columns;
}

// Whether exp(l - m) is 0: then p log p is 0, also where the logit is -inf; that of a NaN is NaN. The
// compiler shares the comparison with exp.
SATORI_INLINE Ints is_impossible(Floats shifted) { return shifted < splat(kExpIsZeroBelow); }

// Forward.

// Adds `count` logits of each token of a panel to the running statistics (online softmax).
inline void add_statistics(const float* logits, int64_t count, int64_t token,
                           const HeadStatistics& out) {
    for (int64_t j = 0; j < kTileVectors; ++j, token += kLanes, logits += kLanes) {
        Floats highest = load(logits);
        for (int64_t column = 1; column < count; ++column)
            highest = maximum(highest, load(logits + column * kTileTokens));
        const Floats top = load(out.maximum + token);
        const Floats new_top = maximum(top, highest);
        Floats total{}, weighted{};
        for (int64_t column = 0; column < count; ++column) {
            const Floats shifted = load(logits + column * kTileTokens) - new_top;
            const Floats p = exp(shifted);
            total += p;
            weighted = is_impossible(shifted) ? weighted : weighted + p * shifted;
        }
        // Moving the centre of the weighted sum by `below` adds below * total.
        const Floats below = top - new_top;
        const Floats factor = exp(below);
        const Floats old_total = load(out.total + token);
        store(out.maximum + token, new_top);
        store(out.total + token, factor * old_total + total);
        store(out.weighted + token,
              factor * (load(out.weighted + token) + below * old_total) + weighted);
    }
}

template <typename Element>
void statistics_as(const Head& head, const HeadBlocking& blocking, const HeadTokens& tokens,
                   const float* transposed, const HeadItem& item, const HeadStatistics& out,
                   float* logits) {
    for (int64_t t = item.first_panel * kTileTokens; t < item.end_panel * kTileTokens; ++t) {
        out.maximum[t] = kNoLogit;
        out.total[t] = out.weighted[t] = out.target_logit[t] = 0.0f;
    }
    const int64_t panel_size = blocking.block_columns * kTileTokens;
    float* columns = item.scratch;
    float* passing = columns + blocking.block_columns * blocking.depth;
    for (int64_t block = item.first_block; block < item.end_block; ++block) {
        pack_columns<Element>(head, blocking, block, columns);
        const int64_t first = block * blocking.block_columns;
        const int64_t count = count_columns(head, blocking, block);
        for (int64_t panel = item.first_panel; panel < item.end_panel; ++panel) {
            const int64_t token = panel * kTileTokens;
            float* place =
                logits ? logits + (block * blocking.num_panels + panel) * panel_size : passing;
            panel_logits(blocking, columns, transposed + token * blocking.depth,
                         tokens.inverse_temperature + token, count, place);
            add_statistics(place, count, token, out);
            for (int64_t lane = 0; lane < kTileTokens; ++lane) {
                const int64_t column = tokens.targets[token + lane] - first;
                if (column >= 0 && column < count)
                    out.target_logit[token + lane] = place[column * kTileTokens + lane];
            }
        }
    }
}

// Backward.

// d [column in block][token in panel] = dLoss/dl times the inverse temperature, see HeadTokens.
// `logits` may be `d` itself.
inline void panel_gradients(const Head& head, const HeadTokens& tokens, const float* logits,
                            int64_t first, int64_t count, int64_t token, float* d) {
    for (int64_t j = 0; j < kTileVectors; ++j) {
        const int64_t t = token + j * kLanes;
        const Floats top = load(tokens.maximum + t);
        const Floats offset = load(tokens.offset + t), slope = load(tokens.slope + t);
        for (int64_t column = 0; column < count; ++column) {
            const int64_t at = column * kTileTokens + j * kLanes;
            const Floats shifted = load(logits + at) - top;
            const Floats log_p = is_impossible(shifted) ? Floats{} : shifted;
            store(d + at, exp(shifted) * (offset + slope * log_p));
        }
    }
    for (int64_t lane = 0; lane < kTileTokens; ++lane) {
        const int64_t column = tokens.targets[token + lane] - first;
        if (column >= 0 && column < count)
            d[column * kTileTokens + lane] += tokens.at_target[token + lane];
    }
    // Padding is 0, also for a word whose weight is not finite.
    for (int64_t lane = head.num_rows - token; lane < kTileTokens; ++lane)
        for (int64_t column = 0; column < count; ++column)
            d[column * kTileTokens + lane] = 0.0f;
}

// Rows `count` of grad_weight (+)= d x over `num_panels` panels of tokens.
inline void add_grad_weight(const Head& head, const HeadBlocking& blocking, const float* packed,
                            const float* d, int64_t num_panels, int64_t count, bool accumulates,
                            float* out) {
    const int64_t panel_size = blocking.block_columns * kTileTokens;
    for (int64_t start = 0; start < head.hidden_size; start += kTileTokens) {
        const float* x = packed + start * blocking.padded_rows;
        const int64_t left = head.hidden_size - start;
        const int64_t width = left < kTileTokens ? left : kTileTokens;
        for (int64_t column = 0; column < count; column += kTileColumns) {
            const float* a = d + column * kTileTokens;
            float* place = out + column * head.hidden_size + start;
            const int64_t height = count - column < kTileColumns ? count - column : kTileColumns;
            if (height == kTileColumns && width == kTileTokens) {
                product_over_tokens(a, panel_size, x, num_panels, accumulates, head.hidden_size,
                                    place);
                continue;
            }
            float values[kTileColumns * kTileTokens];
            product_over_tokens(a, panel_size, x, num_panels, false, kTileTokens, values);
            for (int64_t i = 0; i < height; ++i)
                for (int64_t j = 0; j < width; ++j) {
                    float& at = place[i * head.hidden_size + j];
                    at = (accumulates ? at : 0.0f) + values[i * kTileTokens + j];
                }
        }
    }
}

template <typename Element>
void gradients_as(const Head& head, const HeadBlocking& blocking, const HeadTokens& tokens,
                  const float* transposed, const float* packed, const float* logits,
                  const HeadItem& item, float* grad_hidden, float* grad_weight, bool accumulates) {
    float* columns = item.scratch;
    float* components = columns + blocking.block_columns * blocking.depth;
    float* waiting = components + blocking.block_columns * blocking.padded_hidden;
    const int64_t panel_size = blocking.block_columns * kTileTokens;
    for (int64_t block = item.first_block; block < item.end_block; ++block) {
        const int64_t first = block * blocking.block_columns;
        const int64_t count = count_columns(head, blocking, block);
        if (!logits)
            pack_columns<Element>(head, blocking, block, columns);
        if (grad_hidden)
            pack_components<Element>(head, blocking, block, components);
        for (int64_t start = item.first_panel; start < item.end_panel; start += kWaitingPanels) {
            int64_t num_panels = item.end_panel - start;
            num_panels = num_panels < kWaitingPanels ? num_panels : kWaitingPanels;
            for (int64_t panel = start; panel < start + num_panels; ++panel) {
                const int64_t token = panel * kTileTokens;
                float* d = waiting + (panel - start) * panel_size;
                const float* source =
                    logits ? logits + (block * blocking.num_panels + panel) * panel_size : d;
                if (!logits)
                    panel_logits(blocking, columns, transposed + token * blocking.depth,
                                 tokens.inverse_temperature + token, count, d);
                panel_gradients(head, tokens, source, first, count, token, d);
                if (!grad_hidden)
                    continue;
                float* sums = grad_hidden + token * blocking.padded_hidden;
                for (int64_t h = 0; h < blocking.padded_hidden; h += kTileColumns)
                    product_over_columns(components + h * blocking.block_columns, d, count,
                                         block > item.first_block, sums + h * kTileTokens);
            }
            if (grad_weight)
                add_grad_weight(head, blocking, packed + start * kTileTokens * kTileTokens, waiting,
                                num_panels, count, accumulates || start > item.first_panel,
                                grad_weight + first * head.hidden_size);
        }
    }
}

inline void sum_grad_hidden(const Head& head, const HeadBlocking& blocking, int64_t panel,
                            const float* partial, int64_t count, int64_t stride,
                            float* grad_hidden) {
    const int64_t first = panel * kTileTokens;
    const int64_t left = head.num_rows - first;
    const int64_t num_tokens = left < kTileTokens ? left : kTileTokens;
    const float* in = partial + first * blocking.padded_hidden;
    for (int64_t h = 0; h < head.hidden_size; ++h) {
        float values[kTileTokens];
        SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j) {
            const float* at = in + h * kTileTokens + j * kLanes;
            Floats sum = load(at);
            for (int64_t i = 1; i < count; ++i)
                sum += load(at + i * stride);
            store(values + j * kLanes, sum);
        }
        for (int64_t t = 0; t < num_tokens; ++t)
            grad_hidden[(first + t) * head.hidden_size + h] = values[t];
    }
}

// Choice of the type of the inputs.

inline void pack_hidden(const Head& head, const HeadBlocking& blocking, int64_t panel,
                        float* transposed) {
    (head.is_bfloat16 ? pack_hidden_as<uint16_t> : pack_hidden_as<float>)(head, blocking, panel,
                                                                          transposed);
}

inline void pack_hidden_rows(const Head& head, const HeadBlocking& blocking, int64_t panel,
                             float* packed) {
    (head.is_bfloat16 ? pack_hidden_rows_as<uint16_t>
                      : pack_hidden_rows_as<float>)(head, blocking, panel, packed);
}

inline int64_t statistics_scratch(const HeadBlocking& blocking) {
    return blocking.block_columns * (blocking.depth + kTileTokens);
}

inline void statistics(const Head& head, const HeadBlocking& blocking, const HeadTokens& tokens,
                       const float* transposed, const HeadItem& item, const HeadStatistics& out,
                       float* logits) {
    (head.is_bfloat16 ? statistics_as<uint16_t> : statistics_as<float>)(
        head, blocking, tokens, transposed, item, out, logits);
}

inline int64_t gradients_scratch(const HeadBlocking& blocking) {
    return blocking.block_columns *
           (blocking.depth + blocking.padded_hidden + kWaitingPanels * kTileTokens);
}

inline void gradients(const Head& head, const HeadBlocking& blocking, const HeadTokens& tokens,
                      const float* transposed, const float* packed, const float* logits,
                      const HeadItem& item, float* grad_hidden, float* grad_weight,
                      bool accumulates) {
    (head.is_bfloat16 ? gradients_as<uint16_t> : gradients_as<float>)(
        head, blocking, tokens, transposed, packed, logits, item, grad_hidden, grad_weight,
        accumulates);
}

inline const HeadKernels* kernels(const char* name) {
    static const HeadKernels table = {name,
                                      kTileColumns,
                                      kTileTokens,
                                      kMultipliesBfloat16,
                                      pack_hidden,
                                      pack_hidden_rows,
                                      statistics_scratch,
                                      statistics,
                                      gradients_scratch,
                                      gradients,
                                      sum_grad_hidden};
    return &table;
}

} // namespace satori_fast::SATORI_ISA
