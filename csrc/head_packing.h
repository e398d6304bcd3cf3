// SPDX-License-Identifier: Apache-2.0
// Packing for the output head: the operands of a tile end up next to each other, in the order in
// which they are used, widened to float32 unless they are multiplied in pairs of bfloat16.
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

} // namespace satori_fast::SATORI_ISA
