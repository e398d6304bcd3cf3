// SPDX-License-Identifier: Apache-2.0
// The inner loops of the operations inside a transformer layer, and of sampling, once per instruction
// set: the table in which each set offers them. layer_kernels.h holds the loops, layers.cpp hands out
// the work.
#pragma once

#include "operations.h"

#include <cstdint>

namespace satori_fast {

struct LayerKernels {
    int64_t (*decode_scratch)(const DecodeTask&); // floats
    // One row of the batch and one group of heads.
    void (*decode_attention)(const DecodeTask&, int64_t row, int64_t group, float* scratch);
    void (*rms_norm)(const NormTask&, int64_t first_row, int64_t end_row);
    // `weight_sums`: floats [size], to which g n of these rows is added; null where nobody asks.
    void (*rms_norm_backward)(const NormBackwardTask&, int64_t first_row, int64_t end_row,
                              float* weight_sums);
    void (*rope)(const RopeTask&, int64_t first_row, int64_t end_row);
    void (*swiglu)(const SwigluTask&, int64_t first_row, int64_t end_row);
    void (*swiglu_backward)(const SwigluBackwardTask&, int64_t first_row, int64_t end_row);
    // `sums`: scratch of sample_blocks(num_columns) numbers.
    void (*sample_row)(const SampleTask&, int64_t row, double* sums);
};

// Columns whose probabilities are summed in float32; the sums of such blocks are added in float64.
constexpr int64_t kSampleBlock = 256;
constexpr int64_t sample_blocks(int64_t num_columns) {
    return (num_columns + kSampleBlock - 1) / kSampleBlock;
}

const LayerKernels* layer_kernels_avx512();
const LayerKernels* layer_kernels_avx2();
const LayerKernels* layer_kernels_scalar();

// Of the instruction set in use: see head_table.h.
const LayerKernels& layer_kernels();

} // namespace satori_fast
