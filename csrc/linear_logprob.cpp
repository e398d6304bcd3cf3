// SPDX-License-Identifier: Apache-2.0
// The output head of a chunk of tokens: statistics of its softmax, and the way back. This file cuts
// the work and hands it to threads; the inner loops are in head_kernels.h.
//
// The vocabulary is cut into groups of blocks, and where it is small the tokens into parts. A thread
// takes one group of one part at a time. What several items add to (statistics and grad_hidden over
// groups, grad_weight over parts) is kept apart and summed afterwards in order, so the cut, which
// follows from the shapes alone, settles the bits.
#include "head_scratch.h"
#include "head_table.h"
#include "operations.h"
#include "parallel.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace satori_fast {

namespace {

// One block of the weight is used by every token at hand: it should stay in the second cache.
constexpr int64_t kBlockFloats = 24 * 1024;
constexpr int64_t kMinBlockColumns = 96, kMaxBlockColumns = 192;
// Enough for the cores of a large host; more would cost memory for the sums kept apart.
constexpr int64_t kNumItems = 16;
// A part must have tokens enough to pay for packing the weight once more.
constexpr int64_t kMinPartTokens = 256;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

HeadBlocking blocking_of(const HeadKernels& kernels, const Head& head) {
    HeadBlocking b{};
    b.tile_columns = kernels.tile_columns;
    b.tile_tokens = kernels.tile_tokens;
    const int64_t fitting = kBlockFloats / std::max<int64_t>(head.hidden_size, 1);
    const int64_t wanted = std::min(std::max(fitting, kMinBlockColumns), kMaxBlockColumns);
    b.block_columns = std::min(wanted / b.tile_columns * b.tile_columns,
                               round_up(head.num_columns, b.tile_columns));
    b.num_blocks = divide_up(head.num_columns, b.block_columns);
    b.num_panels = divide_up(head.num_rows, b.tile_tokens);
    b.padded_rows = b.num_panels * b.tile_tokens;
    b.padded_hidden = round_up(head.hidden_size, b.tile_columns);
    b.hidden_panels = divide_up(head.hidden_size, b.tile_tokens);
    b.is_paired = head.is_bfloat16 && kernels.multiplies_bfloat16;
    b.depth = b.is_paired ? divide_up(head.hidden_size, 2) : head.hidden_size;
    return b;
}

struct Cut {
    int64_t num_groups;
    int64_t num_parts;

    explicit Cut(const HeadBlocking& b) {
        num_groups = std::min(b.num_blocks, kNumItems);
        const int64_t most = divide_up(b.padded_rows, kMinPartTokens);
        num_parts = std::max<int64_t>(1, std::min(kNumItems / num_groups, most));
    }

    int64_t size() const { return num_groups * num_parts; }
    int64_t group(int64_t item) const { return item / num_parts; }
    int64_t part(int64_t item) const { return item % num_parts; }

    HeadItem item(int64_t index, const HeadBlocking& b, float* scratch) const {
        const int64_t g = group(index), p = part(index);
        return {g * b.num_blocks / num_groups, (g + 1) * b.num_blocks / num_groups,
                p * b.num_panels / num_parts, (p + 1) * b.num_panels / num_parts, scratch};
    }
};

// Calls body(item, scratch) for every item; each thread has its own scratch.
template <typename Body>
void for_each_item(const Cut& cut, int num_threads, int64_t scratch_floats, const Body& body) {
    const int64_t num_slots = std::max<int64_t>(1, std::min<int64_t>(num_threads, cut.size()));
    const int64_t stride = round_up(scratch_floats, 16);
    const Scratch scratch = take_scratch(num_slots * stride);
    parallel_for_slots(cut.size(), static_cast<int>(num_slots), [&](int64_t item, int64_t slot) {
        body(item, scratch.get() + slot * stride);
    });
}

// What the kernels read of each token, padded to whole panels.
class TokenArrays {
  public:
    TokenArrays(const HeadTask& task, const HeadBlocking& b)
        : floats_(take_scratch(5 * b.padded_rows)), targets_(b.padded_rows, -1),
          stride_(b.padded_rows) {
        std::fill_n(floats_.get(), 5 * b.padded_rows, 0.0f);
        for (int64_t t = 0; t < task.num_rows; ++t) {
            const int64_t column = task.targets[t] - task.first_column;
            if (column >= 0 && column < task.num_columns)
                targets_[t] = static_cast<int32_t>(column);
            array(0)[t] = 1.0f / task.temperature[t];
        }
    }

    void set_gradients(const HeadTask& task, const HeadGradients& g) {
        for (int64_t t = 0; t < task.num_rows; ++t) {
            const float scale = array(0)[t];
            const double total = g.partition[2 * t + 1];
            const double factor = -scale / total;
            // log p + H is l - m + (H - log S).
            const double rest = g.entropy[t] - std::log(total);
            array(1)[t] = g.partition[2 * t];
            array(2)[t] =
                static_cast<float>((g.grad_logprob[t] + g.grad_entropy[t] * rest) * factor);
            array(3)[t] = static_cast<float>(g.grad_entropy[t] * factor);
            array(4)[t] = g.grad_logprob[t] * scale;
        }
    }

    HeadTokens view() const {
        const float* p = floats_.get();
        return {p, targets_.data(), p + stride_, p + 2 * stride_, p + 3 * stride_, p + 4 * stride_};
    }

  private:
    float* array(int64_t i) { return floats_.get() + i * stride_; }

    Scratch floats_;
    std::vector<int32_t> targets_;
    int64_t stride_;
};

Head head_of(const HeadTask& task) {
    return {task.hidden,   task.weight,      task.is_bfloat16, task.rows,
            task.num_rows, task.num_columns, task.hidden_size};
}

// (m, S, E, l_y) of a token from those of the groups of columns; see merge_statistics in head.py.
void merge(const float* partial, int64_t num_groups, int64_t stride, float* out) {
    const auto value = [=](int64_t group, int64_t which) {
        return partial[(group * 4 + which) * stride];
    };
    float top = kNoLogit;
    for (int64_t g = 0; g < num_groups; ++g)
        top = std::max(top, value(g, 0));
    double total = 0, weighted = 0, target_logit = 0;
    for (int64_t g = 0; g < num_groups; ++g) {
        const double below = static_cast<double>(value(g, 0)) - top;
        const double scale = below == 0 ? 1.0 : std::exp(below);
        total += scale * value(g, 1);
        weighted += scale * (value(g, 2) + below * value(g, 1));
        target_logit += value(g, 3);
    }
    out[0] = top;
    out[1] = static_cast<float>(total);
    out[2] = static_cast<float>(weighted);
    out[3] = static_cast<float>(target_logit);
}

// grad_weight [V, H] (+)= the sum over parts, row by row.
void sum_parts(const HeadTask& task, const float* partial, int64_t num_parts, bool accumulates,
               float* grad_weight) {
    const int64_t size = task.num_columns * task.hidden_size;
    parallel_for(task.num_columns, task.num_threads, [=](int64_t row) {
        for (int64_t i = row * task.hidden_size; i < (row + 1) * task.hidden_size; ++i) {
            float sum = accumulates ? grad_weight[i] : 0.0f;
            for (int64_t p = 0; p < num_parts; ++p)
                sum += partial[p * size + i];
            grad_weight[i] = sum;
        }
    });
}

} // namespace

int64_t head_logits_size(const HeadTask& task) {
    if (task.num_columns == 0)
        return 0;
    const HeadBlocking b = blocking_of(head_kernels(), head_of(task));
    return b.num_blocks * b.block_columns * b.padded_rows;
}

void head_statistics(const HeadTask& task, float* statistics, float* logits) {
    if (task.num_columns == 0 || task.num_rows == 0) {
        for (int64_t t = 0; t < task.num_rows; ++t) {
            statistics[4 * t] = kNoLogit;
            std::fill_n(statistics + 4 * t + 1, 3, 0.0f);
        }
        return;
    }
    const HeadKernels& kernels = head_kernels();
    const Head head = head_of(task);
    const HeadBlocking b = blocking_of(kernels, head);
    const Cut cut(b);
    const TokenArrays arrays(task, b);
    const HeadTokens tokens = arrays.view();
    const Scratch transposed = take_scratch(b.padded_rows * b.depth);
    const Scratch partial = take_scratch(cut.num_groups * 4 * b.padded_rows);

    parallel_for(b.num_panels, task.num_threads, [&](int64_t panel) {
        kernels.pack_hidden(head, b, panel, transposed.get());
    });
    for_each_item(cut, task.num_threads, kernels.statistics_scratch(b),
                  [&](int64_t item, float* scratch) {
        float* own = partial.get() + cut.group(item) * 4 * b.padded_rows;
        kernels.statistics(head, b, tokens, transposed.get(), cut.item(item, b, scratch),
                           {own, own + b.padded_rows, own + 2 * b.padded_rows,
                            own + 3 * b.padded_rows},
                           logits);
    });
    for (int64_t t = 0; t < task.num_rows; ++t)
        merge(partial.get() + t, cut.num_groups, b.padded_rows, statistics + 4 * t);
}

void head_rows(const HeadTask& task, const float* logits, float* rows) {
    if (task.num_columns == 0 || task.num_rows == 0)
        return;
    const HeadBlocking b = blocking_of(head_kernels(), head_of(task));
    parallel_for(b.num_blocks, task.num_threads, [&](int64_t block) {
        const int64_t first = block * b.block_columns;
        const int64_t count = std::min(b.block_columns, task.num_columns - first);
        for (int64_t t = 0; t < task.num_rows; ++t) {
            const int64_t panel = block * b.num_panels + t / b.tile_tokens;
            const float* place =
                logits + panel * b.block_columns * b.tile_tokens + t % b.tile_tokens;
            float* row = rows + t * task.num_columns + first;
            for (int64_t column = 0; column < count; ++column)
                row[column] = place[column * b.tile_tokens];
        }
    });
}

void head_gradients(const HeadTask& task, const HeadGradients& gradients) {
    if (task.num_columns == 0 || task.num_rows == 0) {
        if (gradients.grad_hidden)
            std::fill_n(gradients.grad_hidden, task.num_rows * task.hidden_size, 0.0f);
        if (gradients.grad_weight && !gradients.accumulates)
            std::fill_n(gradients.grad_weight, task.num_columns * task.hidden_size, 0.0f);
        return;
    }
    const HeadKernels& kernels = head_kernels();
    const Head head = head_of(task);
    const HeadBlocking b = blocking_of(kernels, head);
    const Cut cut(b);
    TokenArrays arrays(task, b);
    arrays.set_gradients(task, gradients);
    const HeadTokens tokens = arrays.view();
    const bool needs_hidden = gradients.grad_hidden, needs_weight = gradients.grad_weight;
    const int64_t hidden_size = b.padded_rows * b.padded_hidden;
    const int64_t weight_size = task.num_columns * task.hidden_size;
    const bool keeps_parts = needs_weight && cut.num_parts > 1;
    const Scratch transposed = take_scratch(gradients.logits ? 0 : b.padded_rows * b.depth);
    const Scratch packed =
        take_scratch(needs_weight ? b.hidden_panels * b.tile_tokens * b.padded_rows : 0);
    const Scratch hidden_sums = take_scratch(needs_hidden ? cut.num_groups * hidden_size : 0);
    const Scratch weight_sums = take_scratch(keeps_parts ? cut.num_parts * weight_size : 0);

    parallel_for(b.num_panels, task.num_threads, [&](int64_t panel) {
        if (!gradients.logits)
            kernels.pack_hidden(head, b, panel, transposed.get());
        if (needs_weight)
            kernels.pack_hidden_rows(head, b, panel, packed.get());
    });
    for_each_item(cut, task.num_threads, kernels.gradients_scratch(b),
                  [&](int64_t item, float* scratch) {
        float* grad_hidden =
            needs_hidden ? hidden_sums.get() + cut.group(item) * hidden_size : nullptr;
        float* grad_weight =
            keeps_parts ? weight_sums.get() + cut.part(item) * weight_size : gradients.grad_weight;
        kernels.gradients(head, b, tokens, transposed.get(), packed.get(), gradients.logits,
                          cut.item(item, b, scratch), grad_hidden, grad_weight,
                          gradients.accumulates && !keeps_parts);
    });
    if (needs_hidden)
        parallel_for(b.num_panels, task.num_threads, [&](int64_t panel) {
            kernels.sum_grad_hidden(head, b, panel, hidden_sums.get(), cut.num_groups, hidden_size,
                                    gradients.grad_hidden);
        });
    if (keeps_parts)
        sum_parts(task, weight_sums.get(), cut.num_parts, gradients.accumulates,
                  gradients.grad_weight);
}

} // namespace satori_fast
