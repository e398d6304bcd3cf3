// SPDX-License-Identifier: Apache-2.0
// The inner loops of the output head, once per instruction set: what they take and the table in
// which each set offers them. head_kernels.h holds the loops, linear_logprob.cpp hands out the work.
//
// Tokens are the lanes of the vectors. A panel holds `tile_tokens` tokens; a block `block_columns`
// vocabulary columns, cut into tiles of `tile_columns`. Every matrix product is made of tiles
// [tile_columns, tile_tokens] whose accumulators stay in registers. The weight is the operand that is
// broadcast, so one layout of the logits (and of their gradients) serves all three products:
//
//     logits, transposed   [block][panel][column in block][token in panel]
#pragma once

#include <cstdint>

namespace satori_fast {

// Stands for the logit of a column that is not there: finite, so that differences are not NaN.
constexpr float kNoLogit = -1e30f;

// The tokens at hand and the columns of the shard. T = num_rows, V = num_columns, H = hidden_size.
struct Head {
    const void* hidden;      // [any, H]: bfloat16 or float32
    const void* weight;      // [V, H], of the same type
    bool is_bfloat16;
    const int64_t* rows;     // [T]: which rows of `hidden`
    int64_t num_rows;
    int64_t num_columns;
    int64_t hidden_size;
};

// How the work is cut. It follows from the shapes alone, never from the number of threads.
struct HeadBlocking {
    int64_t tile_columns;
    int64_t tile_tokens;
    int64_t block_columns;  // a multiple of tile_columns
    int64_t num_blocks;
    int64_t num_panels;
    int64_t padded_rows;    // T rounded up to whole panels
    int64_t padded_hidden;  // H rounded up to whole tiles of tile_columns
    int64_t hidden_panels;  // H in panels of tile_tokens, rounded up
    int64_t depth;          // terms in a logit: H, or pairs of them
    bool is_paired;         // bfloat16 is multiplied as it is, in pairs
};

// Blocks and panels that one thread works on, and its memory.
struct HeadItem {
    int64_t first_block, end_block;
    int64_t first_panel, end_panel;
    float* scratch;
};

// [padded_rows] each, 64-byte aligned; a padding token has target -1 and 0 elsewhere.
struct HeadTokens {
    const float* inverse_temperature;
    const int32_t* targets; // a column of the shard, or -1
    // Of the way back, dLoss/dl_j = exp(l_j - m) (offset + slope (l_j - m)) + [j = y] at_target.
    // The three carry 1 / temperature, the first two -1 / S as well: m + log S in one number would
    // lose the digits that m has in front.
    const float* maximum;
    const float* offset;
    const float* slope;
    const float* at_target;
};

struct HeadStatistics { // [padded_rows] each: see satori_fast/kernels/head.py
    float* maximum;
    float* total;
    float* weighted;
    float* target_logit;
};

struct HeadKernels {
    const char* name;
    int64_t tile_columns;
    int64_t tile_tokens;
    bool multiplies_bfloat16;

    // hidden, [panel][depth][token in panel]; also [panel of H][token][column in panel].
    void (*pack_hidden)(const Head&, const HeadBlocking&, int64_t panel, float* transposed);
    void (*pack_hidden_rows)(const Head&, const HeadBlocking&, int64_t panel, float* packed);

    int64_t (*statistics_scratch)(const HeadBlocking&); // floats
    // Statistics over the item's columns; the logits too, unless null.
    void (*statistics)(const Head&, const HeadBlocking&, const HeadTokens&, const float* transposed,
                       const HeadItem&, const HeadStatistics&, float* logits);

    int64_t (*gradients_scratch)(const HeadBlocking&); // floats
    // Overwrites grad_hidden [panel][padded_hidden][token in panel] with what the item's columns
    // give, and overwrites or adds to the item's rows of grad_weight [V, H]. Either may be null.
    // Logits are made again if null.
    void (*gradients)(const Head&, const HeadBlocking&, const HeadTokens&, const float* transposed,
                      const float* packed, const float* logits, const HeadItem&, float* grad_hidden,
                      float* grad_weight, bool accumulates);

    // Rows of one panel, summed over `count` partial sums that lie `stride` floats apart.
    void (*sum_grad_hidden)(const Head&, const HeadBlocking&, int64_t panel, const float* partial,
                            int64_t count, int64_t stride, float* grad_hidden);
};

// Null where this build or this machine has no such set.
const HeadKernels* head_kernels_avx512_bf16();
const HeadKernels* head_kernels_avx512();
const HeadKernels* head_kernels_avx2();
const HeadKernels* head_kernels_scalar();

// The set in use: the widest that the machine has, or what use_instruction_set chose.
const HeadKernels& head_kernels();

} // namespace satori_fast
