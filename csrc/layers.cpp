// SPDX-License-Identifier: Apache-2.0
// The operations inside a transformer layer, and sampling: checks of what would write outside of a
// cache, and the work handed to threads. The inner loops are in layer_kernels.h.
#include "layer_table.h"
#include "parallel.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace satori_fast {
namespace {

// Numbers of one thread's turn: less would not pay for waking it.
constexpr int64_t kTurn = 16 * 1024;

int64_t rows_of_turn(int64_t size) {
    return std::max<int64_t>(1, kTurn / std::max<int64_t>(size, 1));
}

// Calls rows(first, end) for the rows of a matrix, many at a time.
template <typename Rows>
void for_rows(int64_t num_rows, int64_t size, int num_threads, const Rows& rows) {
    const int64_t turn = rows_of_turn(size);
    parallel_for((num_rows + turn - 1) / turn, num_threads, [&](int64_t i) {
        rows(i * turn, std::min((i + 1) * turn, num_rows));
    });
}

void check_range(const char* name, const int64_t* values, int64_t count, int64_t end) {
    for (int64_t i = 0; i < count; ++i)
        if (values[i] < 0 || values[i] >= end)
            throw std::invalid_argument(std::string(name) + "[" + std::to_string(i) + "] is " +
                                        std::to_string(values[i]) + ": the cache holds " +
                                        std::to_string(end));
}

} // namespace

void decode_attention(const DecodeTask& task, int num_threads) {
    check_range("positions", task.positions, task.num_rows, task.max_length);
    if (task.slots)
        check_range("slots", task.slots, task.num_rows, task.num_slots);
    const LayerKernels& kernels = layer_kernels();
    const int64_t num_items = task.num_rows * task.num_groups;
    const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(num_threads, num_items));
    const int64_t size = kernels.decode_scratch(task);
    std::vector<float> scratch(static_cast<size_t>(size * threads));
    parallel_for_slots(num_items, static_cast<int>(threads), [&](int64_t i, int64_t thread) {
        kernels.decode_attention(task, i / task.num_groups, i % task.num_groups,
                                 scratch.data() + thread * size);
    });
}

void rms_norm(const NormTask& task, int num_threads) {
    const auto rows = layer_kernels().rms_norm;
    for_rows(task.num_rows, task.size, num_threads,
             [&](int64_t first, int64_t end) { rows(task, first, end); });
}

void rms_norm_backward(const NormBackwardTask& task, int num_threads) {
    const auto rows = layer_kernels().rms_norm_backward;
    // Sums of each turn apart, then added in order: no number of threads changes a bit.
    const int64_t turn = rows_of_turn(task.size);
    const int64_t turns = task.grad_weight ? (task.num_rows + turn - 1) / turn : 0;
    std::vector<float> partial(static_cast<size_t>(turns * task.size));
    for_rows(task.num_rows, task.size, num_threads, [&](int64_t first, int64_t end) {
        rows(task, first, end, turns ? partial.data() + first / turn * task.size : nullptr);
    });
    if (!task.grad_weight)
        return;
    std::vector<double> sums(static_cast<size_t>(task.size));
    for (int64_t i = 0; i < turns; ++i)
        for (int64_t j = 0; j < task.size; ++j)
            sums[static_cast<size_t>(j)] += partial[static_cast<size_t>(i * task.size + j)];
    std::copy(sums.begin(), sums.end(), task.grad_weight);
}

void rope(const RopeTask& task, int num_threads) {
    const auto rows = layer_kernels().rope;
    for_rows(task.num_rows, task.num_groups * task.num_heads * task.head_dim, num_threads,
             [&](int64_t first, int64_t end) { rows(task, first, end); });
}

void swiglu(const SwigluTask& task, int num_threads) {
    const auto rows = layer_kernels().swiglu;
    for_rows(task.num_rows, task.size, num_threads,
             [&](int64_t first, int64_t end) { rows(task, first, end); });
}

void swiglu_backward(const SwigluBackwardTask& task, int num_threads) {
    const auto rows = layer_kernels().swiglu_backward;
    for_rows(task.num_rows, task.size, num_threads,
             [&](int64_t first, int64_t end) { rows(task, first, end); });
}

void sample_tokens(const SampleTask& task, int num_threads) {
    const auto row = layer_kernels().sample_row;
    const int64_t size = sample_blocks(task.num_columns);
    const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(num_threads, task.num_rows));
    std::vector<double> sums(static_cast<size_t>(size * threads));
    parallel_for_slots(task.num_rows, static_cast<int>(threads), [&](int64_t i, int64_t thread) {
        row(task, i, sums.data() + thread * size);
    });
}

} // namespace satori_fast
