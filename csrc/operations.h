// SPDX-License-Identifier: Apache-2.0
// What module.cpp binds. Plain pointers and counts: no Python, no tensor library. Arguments are
// checked by satori_fast/kernels/ops.py, which also holds the definitions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace satori_fast {

// bins[i]: bin of lengths[i], best-fit decreasing; every length is in [0, capacity].
void pack_bins(const int64_t* lengths, int64_t count, int64_t capacity, int64_t* bins);

enum class KlEstimator { k1, k2, k3 };
enum class Importance { none, truncate, mask };

struct PolicyTerms {
    double clip_low, clip_high, clip_dual, kl_coefficient, entropy_coefficient, importance_low,
        importance_high;
    KlEstimator kl_estimator;
    Importance importance;
};

// Each [count]; rollout_logprobs and ref_logprobs may be null.
template <typename Real> struct PolicyArrays {
    const Real *logprobs, *entropies, *old_logprobs, *advantages, *loss_weights, *rollout_logprobs,
        *ref_logprobs;
    Real *grad_logprobs, *grad_entropies;
    int64_t count;
};

// Writes the two gradients, the loss and its metrics in the order of POLICY_STATS.
template <typename Real>
void policy_loss(const PolicyArrays<Real>& tokens, const PolicyTerms& terms, int num_threads,
                 Real* loss, float* stats);

// y[t] = x[t] + decay * y[t + 1] inside each sequence (reverse), or y[t - 1] (not reverse).
// Sequence n holds cu_seqlens[n] <= t < cu_seqlens[n + 1]. Throws std::invalid_argument unless
// cu_seqlens [num_sequences + 1] rises from 0 to num_tokens.
template <typename Real>
void segment_scan(const Real* x, int64_t num_tokens, Real decay, const int64_t* cu_seqlens,
                  int64_t num_sequences, bool reverse, int num_threads, Real* y);

// Each [count]; segment_ids may be null.
template <typename Real> struct GaeArrays {
    const Real *values, *rewards;
    const uint8_t* mask;
    const int32_t* segment_ids;
    Real *advantages, *returns;
    int64_t count;
};

// Advantages and returns of packed sequences by the reverse scan of
// rewards[t] + gamma * values[t + 1] - values[t], where mask[t]; values are 0 where it is not, and
// with segment_ids rewards are 0 but where the next entry has another one. The last entry of a
// sequence must be masked.
template <typename Real>
void gae(const GaeArrays<Real>& tokens, Real gamma, Real decay, const int64_t* cu_seqlens,
         int64_t num_sequences, int num_threads);

// ratios[n] = SequenceMatcher(None, a_n, b_n, autojunk).ratio(), where a_n is
// a[a_offsets[n]:a_offsets[n + 1]]. Throws std::bad_alloc when out of memory.
void sequence_similarity(const int64_t* a, const int64_t* a_offsets, const int64_t* b,
                         const int64_t* b_offsets, int64_t num_pairs, bool autojunk,
                         int num_threads, double* ratios);

// The output head, for some tokens and the columns of one shard of the vocabulary.
struct HeadTask {
    const void* hidden; // [any, hidden_size]: bfloat16 or float32
    const void* weight; // [num_columns, hidden_size], of the same type
    bool is_bfloat16;
    const int64_t* rows; // [num_rows]: which rows of `hidden`
    int64_t num_rows;
    int64_t num_columns;
    int64_t hidden_size;
    const int64_t* targets;   // [num_rows], vocabulary indices
    const float* temperature; // [num_rows]
    int64_t first_column;     // vocabulary index of weight[0]
    int num_threads;
};

// Floats that the logits of a task take, in the layout of these kernels.
int64_t head_logits_size(const HeadTask& task);

// (m, S, E, l_y or 0) of each token, float32 [num_rows, 4], as in satori_fast/kernels/head.py; the
// logits too, unless null. Throws std::bad_alloc when out of memory.
void head_statistics(const HeadTask& task, float* statistics, float* logits);

// Logits of head_statistics as rows, [num_rows, num_columns].
void head_rows(const HeadTask& task, const float* logits, float* rows);

// Gradients of the tokens' hidden states [num_rows, hidden_size] (overwritten) and of the weight
// [num_columns, hidden_size] (overwritten, or added to); either may be null.
struct HeadGradients {
    const float* logits; // of head_statistics; null makes them again
    const float* partition; // [num_rows, 2]: m and S of all shards
    const float* entropy;   // [num_rows], as the two below
    const float* grad_logprob;
    const float* grad_entropy;
    float* grad_hidden;
    float* grad_weight;
    bool accumulates;
};
void head_gradients(const HeadTask& task, const HeadGradients& gradients);

// Attention of one new token per row to the keys of its slot, bfloat16 or float32. Keys and queries
// are rotated, and the new key and value written into the caches at `position`, before positions
// 0 .. position are read. Strides are in elements, the last dimension has stride 1; cos, sin and out
// are contiguous.
struct DecodeTask {
    const void* queries; // [num_rows, num_groups, heads_per_group, head_dim]
    const void* keys;    // [num_rows, num_groups, head_dim], as values
    const void* values;
    void* key_cache; // [num_slots, num_groups, max_length, head_dim], as value_cache
    void* value_cache;
    const void* cos; // [num_rows, head_dim / 2], as sin
    const void* sin;
    void* out; // [num_rows, num_groups, heads_per_group, head_dim]
    const int64_t* positions; // [num_rows]
    const int64_t* slots;     // [num_rows], all different; null: row n has slot n
    int64_t query_strides[3], key_strides[2], value_strides[2], key_cache_strides[3],
        value_cache_strides[3];
    int64_t num_rows, num_groups, heads_per_group, head_dim, num_slots, max_length;
    float scale;
    bool is_bfloat16;
};

// Throws std::invalid_argument for a position or a slot outside of the caches.
void decode_attention(const DecodeTask& task, int num_threads);

// y = z rstd weight of z = x, or of x + residual, which is then written to `sum`. Rows are
// contiguous.
struct NormTask {
    const void *x, *residual, *weight; // [num_rows, size], the same or null, [size]
    void *y, *sum;                     // [num_rows, size]; sum is null without a residual
    float* rstd;                       // [num_rows]
    int64_t num_rows, size;
    float eps;
    bool is_bfloat16;
};
void rms_norm(const NormTask& task, int num_threads);

// With n = z rstd and g the gradient of y: grad_z = rstd (g weight - n mean(g weight n)) + grad_sum,
// and grad_weight, the sum over rows of g n. Either result may be null.
struct NormBackwardTask {
    const void *grad, *grad_sum, *z, *weight; // [num_rows, size] and [size]; grad_sum may be null
    const float* rstd;                        // [num_rows]
    void* grad_z;                             // [num_rows, size]
    float* grad_weight;                       // [size]
    int64_t num_rows, size;
    bool is_bfloat16;
};
void rms_norm_backward(const NormBackwardTask& task, int num_threads);

// (a cos - b sin, b cos + a sin) of the halves (a, b) of the heads; the other way round if `inverse`.
struct RopeTask {
    const void* x;         // [num_rows, num_groups, num_heads, head_dim], last stride 1
    const void *cos, *sin; // [num_rows, head_dim / 2]
    void* out;             // as x, contiguous
    int64_t strides[3];    // of x, in elements
    int64_t num_rows, num_groups, num_heads, head_dim;
    bool inverse, is_bfloat16;
};
void rope(const RopeTask& task, int num_threads);

// silu(gate) up of (gate, up).
struct SwigluTask {
    const void* gate_up; // [num_rows, 2 size]
    void* out;           // [num_rows, size]
    int64_t num_rows, size;
    bool is_bfloat16;
};
void swiglu(const SwigluTask& task, int num_threads);

// The gradient of (gate, up) from that of silu(gate) up.
struct SwigluBackwardTask {
    const void *grad, *gate_up; // [num_rows, size], [num_rows, 2 size]
    void* out;                  // as gate_up
    int64_t num_rows, size;
    bool is_bfloat16;
};
void swiglu_backward(const SwigluBackwardTask& task, int num_threads);

// One column per row by inverse transform, and its log-probability, of softmax(logits / temperature).
struct SampleTask {
    const float* logits;   // [num_rows, num_columns]
    const double* uniform; // [num_rows], in [0, 1)
    int64_t* tokens;       // [num_rows]
    float* logprobs;       // [num_rows]
    int64_t num_rows, num_columns;
    float inverse_temperature;
};
void sample_tokens(const SampleTask& task, int num_threads);

// The instruction set that the output head and the layers run on; those they could run on here,
// widest first; and the way to choose one of them (std::invalid_argument for another name).
std::string instruction_set();
std::vector<std::string> instruction_sets();
void use_instruction_set(const std::string& name);

} // namespace satori_fast
