// SPDX-License-Identifier: Apache-2.0
// The inner loops of the operations inside a transformer layer, and of sampling, for the instruction
// set that the including file was compiled for. Sums are float32; a result is rounded to its type
// once.
#pragma once

#include "decode_kernels.h"
#include "layer_table.h"
#include "row_vectors.h"

namespace satori_fast::SATORI_ISA {

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
SATORI_INLINE void rms_norm_backward_as(const NormBackwardTask& task, int64_t first_row,
                                        int64_t end_row, float* weight_sums) {
    const int64_t size = task.size;
    const Element* weight = static_cast<const Element*>(task.weight);
    for (int64_t row = first_row; row < end_row; ++row) {
        const Element* grad = static_cast<const Element*>(task.grad) + row * size;
        const Element* z = static_cast<const Element*>(task.z) + row * size;
        const float rstd = task.rstd[row];
        Floats products{};
        for_vectors(size, [&](int64_t i, const auto& vector) {
            const Floats product = vector.read(grad + i) * (vector.read(z + i) * splat(rstd));
            products += product * vector.read(weight + i);
            if (weight_sums)
                vector.write(weight_sums + i, vector.read(weight_sums + i) + product);
        });
        if (!task.grad_z)
            continue;
        const float mean = sum_of_lanes(products) / static_cast<float>(size);
        Element* out = static_cast<Element*>(task.grad_z) + row * size;
        const Element* grad_sum =
            task.grad_sum ? static_cast<const Element*>(task.grad_sum) + row * size : nullptr;
        for_vectors(size, [&](int64_t i, const auto& vector) {
            const Floats n = vector.read(z + i) * splat(rstd);
            const Floats own = vector.read(grad + i) * vector.read(weight + i) - n * splat(mean);
            const Floats sum = grad_sum ? vector.read(grad_sum + i) : Floats{};
            vector.write(out + i, own * splat(rstd) + sum);
        });
    }
}

inline void rms_norm_backward(const NormBackwardTask& task, int64_t first_row, int64_t end_row,
                              float* weight_sums) {
    (task.is_bfloat16 ? rms_norm_backward_as<uint16_t> : rms_norm_backward_as<float>)(
        task, first_row, end_row, weight_sums);
}

// 1 / (1 + exp(-x)). exp overflows beyond 88, where the result is less than 1e-37.
SATORI_INLINE Floats sigmoid(Floats x) {
    const Floats y = splat(1.0f) / (splat(1.0f) + exp(-x));
    return x < splat(-87.0f) ? Floats{} : y;
}

template <typename Element>
SATORI_INLINE void swiglu_as(const SwigluTask& task, int64_t first_row, int64_t end_row) {
    for (int64_t row = first_row; row < end_row; ++row) {
        const Element* gates = static_cast<const Element*>(task.gate_up) + row * 2 * task.size;
        const Element* ups = gates + task.size;
        Element* out = static_cast<Element*>(task.out) + row * task.size;
        for_vectors(task.size, [&](int64_t i, const auto& vector) {
            const Floats gate = vector.read(gates + i);
            vector.write(out + i, gate * sigmoid(gate) * vector.read(ups + i));
        });
    }
}

inline void swiglu(const SwigluTask& task, int64_t first_row, int64_t end_row) {
    (task.is_bfloat16 ? swiglu_as<uint16_t> : swiglu_as<float>)(task, first_row, end_row);
}

template <typename Element>
SATORI_INLINE void swiglu_backward_as(const SwigluBackwardTask& task, int64_t first_row,
                                      int64_t end_row) {
    for (int64_t row = first_row; row < end_row; ++row) {
        const Element* grad = static_cast<const Element*>(task.grad) + row * task.size;
        const Element* gates = static_cast<const Element*>(task.gate_up) + row * 2 * task.size;
        const Element* ups = gates + task.size;
        Element* out_gates = static_cast<Element*>(task.out) + row * 2 * task.size;
        Element* out_ups = out_gates + task.size;
        for_vectors(task.size, [&](int64_t i, const auto& vector) {
            const Floats g = vector.read(grad + i), gate = vector.read(gates + i);
            const Floats s = sigmoid(gate), slope = s + gate * s * (splat(1.0f) - s);
            vector.write(out_gates + i, g * vector.read(ups + i) * slope);
            vector.write(out_ups + i, g * gate * s);
        });
    }
}

inline void swiglu_backward(const SwigluBackwardTask& task, int64_t first_row, int64_t end_row) {
    (task.is_bfloat16 ? swiglu_backward_as<uint16_t> : swiglu_backward_as<float>)(
        task, first_row, end_row);
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

constexpr LayerKernels kLayerKernels{decode_scratch,    decode_attention, rms_norm,
                                     rms_norm_backward, rope,             swiglu,
                                     swiglu_backward,   sample_row};

} // namespace satori_fast::SATORI_ISA
