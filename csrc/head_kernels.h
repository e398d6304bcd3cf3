// SPDX-License-Identifier: Apache-2.0
// The inner loops of the output head, for the instruction set that the including file was compiled
// for; head_table.h says what they compute and how the data lie.
//
// The including file defines, beside what simd.h asks for, SATORI_TILE_COLUMNS: the tile of
// accumulators has that many rows of two vectors.
#pragma once

#include "head_table.h"
#include "simd.h"

namespace satori_fast::SATORI_ISA {

constexpr int64_t kTileColumns = SATORI_TILE_COLUMNS;
constexpr int64_t kTileVectors = 2;
constexpr int64_t kTileTokens = kTileVectors * kLanes;
// Tokens whose logit gradients wait for the product that gives the weight's gradient.
constexpr int64_t kWaitingPanels = 256 / kTileTokens;

struct Tile {
    Floats at[kTileColumns][kTileVectors];
};

SATORI_INLINE void clear(Tile& tile) {
    SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
        SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j)
            tile.at[i][j] = Floats{};
}

// tile[i, :] += sum_k a[i * StrideI + k * StrideK] b[k, :]
template <int64_t StrideI, int64_t StrideK>
SATORI_INLINE void multiply_add(Tile& tile, const float* a, const float* b, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k, a += StrideK, b += kTileTokens) {
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

#if defined(__AVX512BF16__)
// The same with pairs of bfloat16, of packed columns.
SATORI_INLINE void multiply_add_pairs(Tile& tile, const float* a, const float* b, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k, a += kTileColumns, b += kTileTokens) {
        SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
            SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j)
                tile.at[i][j] = multiply_add_pairs(tile.at[i][j], a + i, load(b + j * kLanes));
    }
}
#endif

// One tile of x W^T, from packed columns and packed tokens.
template <bool IsPaired>
SATORI_INLINE void product(Tile& tile, const float* columns, const float* tokens, int64_t depth) {
    clear(tile);
#if defined(__AVX512BF16__)
    if (IsPaired)
        return multiply_add_pairs(tile, columns, tokens, depth);
#endif
    multiply_add<1, kTileColumns>(tile, columns, tokens, depth);
}

// Packing: a tile's operands end up next to each other, in the order in which they are used.

template <typename Element>
void pack_hidden_as(const Head& head, const HeadBlocking& blocking, int64_t panel,
                    float* transposed) {
    float* out = transposed + panel * blocking.depth * kTileTokens;
    for (int64_t lane = 0; lane < kTileTokens; ++lane) {
        const int64_t token = panel * kTileTokens + lane;
        if (token >= head.num_rows) {
            for (int64_t k = 0; k < blocking.depth; ++k)
                out[k * kTileTokens + lane] = 0.0f;
            continue;
        }
        const Element* row = static_cast<const Element*>(head.hidden) +
                             head.rows[token] * head.hidden_size;
        if (blocking.is_paired) {
            for (int64_t k = 0; k < blocking.depth; ++k) {
                Element pair[2] = {row[2 * k], 0};
                if (2 * k + 1 < head.hidden_size)
                    pair[1] = row[2 * k + 1];
                std::memcpy(&out[k * kTileTokens + lane], pair, sizeof(float));
            }
        } else {
            for (int64_t k = 0; k < blocking.depth; ++k)
                out[k * kTileTokens + lane] = widen(row[k]);
        }
    }
}

template <typename Element>
void pack_hidden_rows_as(const Head& head, const HeadBlocking& blocking, int64_t panel,
                         float* packed) {
    for (int64_t lane = 0; lane < kTileTokens; ++lane) {
        const int64_t token = panel * kTileTokens + lane;
        const bool exists = token < head.num_rows;
        const Element* row = static_cast<const Element*>(head.hidden) +
                             (exists ? head.rows[token] * head.hidden_size : 0);
        for (int64_t start = 0; start < head.hidden_size; start += kTileTokens) {
            float* out = packed + start * blocking.padded_rows + token * kTileTokens;
            for (int64_t j = 0; j < kTileTokens; ++j)
                out[j] = exists && start + j < head.hidden_size ? widen(row[start + j]) : 0.0f;
        }
    }
}

// Columns of one block, for the logits: [tile][depth][column in tile]; absent columns are 0.
template <typename Element>
void pack_columns(const Head& head, const HeadBlocking& blocking, int64_t block, float* out) {
    const int64_t first = block * blocking.block_columns;
    for (int64_t column = 0; column < blocking.block_columns; ++column) {
        float* place = out + column / kTileColumns * kTileColumns * blocking.depth +
                       column % kTileColumns;
        if (first + column >= head.num_columns) {
            for (int64_t k = 0; k < blocking.depth; ++k)
                place[k * kTileColumns] = 0.0f;
            continue;
        }
        const Element* row =
            static_cast<const Element*>(head.weight) + (first + column) * head.hidden_size;
        if (blocking.is_paired) {
            for (int64_t k = 0; k < blocking.depth; ++k) {
                Element pair[2] = {row[2 * k], 0};
                if (2 * k + 1 < head.hidden_size)
                    pair[1] = row[2 * k + 1];
                std::memcpy(&place[k * kTileColumns], pair, sizeof(float));
            }
        } else {
            for (int64_t k = 0; k < blocking.depth; ++k)
                place[k * kTileColumns] = widen(row[k]);
        }
    }
}

// The same columns for the gradient of `hidden`: [tile of H][column in block][component in tile].
template <typename Element>
void pack_components(const Head& head, const HeadBlocking& blocking, int64_t block, float* out) {
    const int64_t first = block * blocking.block_columns;
    for (int64_t column = 0; column < blocking.block_columns; ++column) {
        if (first + column >= head.num_columns)
            return;
        const Element* row =
            static_cast<const Element*>(head.weight) + (first + column) * head.hidden_size;
        for (int64_t start = 0; start < head.hidden_size; start += kTileColumns) {
            float* place = out + start * blocking.block_columns + column * kTileColumns;
            const int64_t left = head.hidden_size - start;
            for (int64_t i = 0; i < kTileColumns; ++i)
                place[i] = i < left ? widen(row[start + i]) : 0.0f;
        }
    }
}

// Forward.

// Adds a tile of logits to the running statistics of its tokens (online softmax).
SATORI_INLINE void add_statistics(const Tile& logits, int64_t j, const HeadStatistics& statistics,
                                  int64_t token) {
    Floats highest = logits.at[0][j];
    SATORI_UNROLL for (int64_t i = 1; i < kTileColumns; ++i)
        highest = maximum(highest, logits.at[i][j]);
    Floats top = load(statistics.maximum + token);
    Floats total = load(statistics.total + token);
    Floats weighted = load(statistics.weighted + token);
    if (any(highest > top)) {
        // Moving the centre of the weighted sum by `below` adds below * total.
        const Floats new_top = maximum(top, highest);
        const Floats below = top - new_top;
        const Floats scale = exp(below);
        weighted = scale * (weighted + below * total);
        total = scale * total;
        top = new_top;
        store(statistics.maximum + token, top);
    }
    SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i) {
        const Floats shifted = logits.at[i][j] - top;
        const Floats p = exp(shifted);
        total += p;
        weighted += p * shifted;
    }
    store(statistics.total + token, total);
    store(statistics.weighted + token, weighted);
}

SATORI_INLINE void pick_targets(const Tile& logits, const int32_t* targets, int64_t first_column,
                                float* target_logit) {
    const int32_t first = static_cast<int32_t>(first_column);
    SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j) {
        const Ints place = load(targets + j * kLanes) - first;
        if (!any((place >= 0) & (place < static_cast<int32_t>(kTileColumns))))
            continue;
        float values[kTileColumns][kLanes];
        SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
            store(values[i], logits.at[i][j]);
        for (int64_t lane = 0; lane < kLanes; ++lane)
            if (place[lane] >= 0 && place[lane] < kTileColumns)
                target_logit[j * kLanes + lane] = values[place[lane]][lane];
    }
}

template <typename Element, bool IsPaired>
void statistics_as(const Head& head, const HeadBlocking& blocking, const HeadTokens& tokens,
                   const float* transposed, const HeadItem& item, const HeadStatistics& out,
                   float* logits) {
    for (int64_t t = item.first_panel * kTileTokens; t < item.end_panel * kTileTokens; ++t) {
        out.maximum[t] = kNoLogit;
        out.total[t] = out.weighted[t] = out.target_logit[t] = 0.0f;
    }
    const int64_t panel_size = blocking.block_columns * kTileTokens;
    for (int64_t block = item.first_block; block < item.end_block; ++block) {
        pack_columns<Element>(head, blocking, block, item.scratch);
        const int64_t first = block * blocking.block_columns;
        const int64_t left = head.num_columns - first;
        const int64_t count = left < blocking.block_columns ? left : blocking.block_columns;
        for (int64_t panel = item.first_panel; panel < item.end_panel; ++panel) {
            const int64_t token = panel * kTileTokens;
            float* place =
                logits ? logits + (block * blocking.num_panels + panel) * panel_size : nullptr;
            for (int64_t column = 0; column < count; column += kTileColumns) {
                Tile tile;
                product<IsPaired>(tile, item.scratch + column * blocking.depth,
                                  transposed + token * blocking.depth, blocking.depth);
                SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j) {
                    const Floats scale = load(tokens.inverse_temperature + token + j * kLanes);
                    SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
                        tile.at[i][j] *= scale;
                }
                pick_targets(tile, tokens.targets + token, first + column,
                             out.target_logit + token);
                if (place)
                    SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
                        SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j)
                            store(place + (column + i) * kTileTokens + j * kLanes, tile.at[i][j]);
                if (column + kTileColumns > count)
                    SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
                        if (column + i >= count)
                            SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j)
                                tile.at[i][j] = splat(kNoLogit);
                SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j)
                    add_statistics(tile, j, out, token + j * kLanes);
            }
        }
    }
}

// Backward.

// dLoss/dl of one row of a tile, times the inverse temperature; see HeadTokens.
SATORI_INLINE Floats logit_gradient(Floats log_probability, const HeadTokens& tokens,
                                    int64_t token) {
    return -exp(log_probability) *
           (load(tokens.offset + token) + load(tokens.slope + token) * log_probability);
}

// Gradients of a panel of logits, [column in block][token in panel].
template <bool IsPaired>
void panel_gradients(const HeadBlocking& blocking, const HeadTokens& tokens,
                     const float* transposed, const float* columns, const float* logits,
                     int64_t panel, int64_t first, int64_t count, float* d) {
    const int64_t token = panel * kTileTokens;
    if (logits) {
        SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j) {
            const Floats log_partition = load(tokens.log_partition + token + j * kLanes);
            for (int64_t column = 0; column < count; ++column) {
                const int64_t at = column * kTileTokens + j * kLanes;
                store(d + at, logit_gradient(load(logits + at) - log_partition, tokens,
                                             token + j * kLanes));
            }
        }
    } else {
        for (int64_t column = 0; column < count; column += kTileColumns) {
            Tile tile;
            product<IsPaired>(tile, columns + column * blocking.depth,
                              transposed + token * blocking.depth, blocking.depth);
            SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j) {
                const int64_t t = token + j * kLanes;
                const Floats scale = load(tokens.inverse_temperature + t);
                const Floats log_partition = load(tokens.log_partition + t);
                SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
                    store(d + (column + i) * kTileTokens + j * kLanes,
                          logit_gradient(tile.at[i][j] * scale - log_partition, tokens, t));
            }
        }
    }
    for (int64_t lane = 0; lane < kTileTokens; ++lane) {
        const int64_t column = tokens.targets[token + lane] - first;
        if (column >= 0 && column < count)
            d[column * kTileTokens + lane] += tokens.at_target[token + lane];
    }
}

// grad_hidden [component][token in panel] (+)= W^T d over the columns of one block.
SATORI_INLINE void add_grad_hidden(const HeadBlocking& blocking, const float* components,
                                   const float* d, int64_t count, bool accumulates, float* out) {
    for (int64_t start = 0; start < blocking.padded_hidden; start += kTileColumns) {
        Tile tile;
        clear(tile);
        multiply_add<1, kTileColumns>(tile, components + start * blocking.block_columns, d, count);
        float* place = out + start * kTileTokens;
        SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
            SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j) {
                float* at = place + i * kTileTokens + j * kLanes;
                store(at, accumulates ? load(at) + tile.at[i][j] : tile.at[i][j]);
            }
    }
}

// Rows `count` of grad_weight (+)= d x over `num_panels` panels of tokens.
SATORI_INLINE void add_grad_weight(const Head& head, const HeadBlocking& blocking,
                                   const float* packed, const float* d, int64_t num_panels,
                                   int64_t count, bool accumulates, float* out) {
    const int64_t panel_size = blocking.block_columns * kTileTokens;
    for (int64_t start = 0; start < head.hidden_size; start += kTileTokens) {
        const float* x = packed + start * blocking.padded_rows;
        const int64_t left = head.hidden_size - start;
        const int64_t width = left < kTileTokens ? left : kTileTokens;
        for (int64_t column = 0; column < count; column += kTileColumns) {
            Tile tile;
            clear(tile);
            for (int64_t panel = 0; panel < num_panels; ++panel)
                multiply_add<kTileTokens, 1>(tile, d + panel * panel_size + column * kTileTokens,
                                             x + panel * kTileTokens * kTileTokens, kTileTokens);
            float* place = out + column * head.hidden_size + start;
            const int64_t height = count - column < kTileColumns ? count - column : kTileColumns;
            if (height == kTileColumns && width == kTileTokens) {
                SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
                    SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j) {
                        float* at = place + i * head.hidden_size + j * kLanes;
                        store(at, accumulates ? load(at) + tile.at[i][j] : tile.at[i][j]);
                    }
                continue;
            }
            float values[kTileColumns][kTileTokens];
            SATORI_UNROLL for (int64_t i = 0; i < kTileColumns; ++i)
                SATORI_UNROLL for (int64_t j = 0; j < kTileVectors; ++j)
                    store(values[i] + j * kLanes, tile.at[i][j]);
            for (int64_t i = 0; i < height; ++i)
                for (int64_t j = 0; j < width; ++j) {
                    float& at = place[i * head.hidden_size + j];
                    at = accumulates ? at + values[i][j] : values[i][j];
                }
        }
    }
}

template <typename Element, bool IsPaired>
void gradients_as(const Head& head, const HeadBlocking& blocking, const HeadTokens& tokens,
                  const float* transposed, const float* packed, const float* logits,
                  const HeadItem& item, float* grad_hidden, float* grad_weight, bool accumulates) {
    float* columns = item.scratch;
    float* components = columns + blocking.block_columns * blocking.depth;
    float* d = components + blocking.block_columns * blocking.padded_hidden;
    const int64_t panel_size = blocking.block_columns * kTileTokens;
    for (int64_t block = item.first_block; block < item.end_block; ++block) {
        const int64_t first = block * blocking.block_columns;
        const int64_t left = head.num_columns - first;
        const int64_t count = left < blocking.block_columns ? left : blocking.block_columns;
        if (!logits)
            pack_columns<Element>(head, blocking, block, columns);
        if (grad_hidden)
            pack_components<Element>(head, blocking, block, components);
        for (int64_t start = item.first_panel; start < item.end_panel; start += kWaitingPanels) {
            int64_t num_panels = item.end_panel - start;
            num_panels = num_panels < kWaitingPanels ? num_panels : kWaitingPanels;
            for (int64_t i = 0; i < num_panels; ++i) {
                const int64_t panel = start + i;
                const float* stored =
                    logits ? logits + (block * blocking.num_panels + panel) * panel_size : nullptr;
                panel_gradients<IsPaired>(blocking, tokens, transposed, columns, stored, panel,
                                          first, count, d + i * panel_size);
                if (grad_hidden)
                    add_grad_hidden(blocking, components, d + i * panel_size, count,
                                    block > item.first_block,
                                    grad_hidden + panel * blocking.padded_hidden * kTileTokens);
            }
            if (grad_weight)
                add_grad_weight(head, blocking, packed + start * kTileTokens * kTileTokens, d,
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
    return blocking.block_columns * blocking.depth;
}

inline void statistics(const Head& head, const HeadBlocking& blocking, const HeadTokens& tokens,
                       const float* transposed, const HeadItem& item, const HeadStatistics& out,
                       float* logits) {
    auto run = !head.is_bfloat16     ? statistics_as<float, false>
               : blocking.is_paired ? statistics_as<uint16_t, kMultipliesBfloat16>
                                    : statistics_as<uint16_t, false>;
    run(head, blocking, tokens, transposed, item, out, logits);
}

inline int64_t gradients_scratch(const HeadBlocking& blocking) {
    return blocking.block_columns *
           (blocking.depth + blocking.padded_hidden + kWaitingPanels * kTileTokens);
}

inline void gradients(const Head& head, const HeadBlocking& blocking, const HeadTokens& tokens,
                      const float* transposed, const float* packed, const float* logits,
                      const HeadItem& item, float* grad_hidden, float* grad_weight,
                      bool accumulates) {
    auto run = !head.is_bfloat16     ? gradients_as<float, false>
               : blocking.is_paired ? gradients_as<uint16_t, kMultipliesBfloat16>
                                    : gradients_as<uint16_t, false>;
    run(head, blocking, tokens, transposed, packed, logits, item, grad_hidden, grad_weight,
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
