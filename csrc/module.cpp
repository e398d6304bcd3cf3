// SPDX-License-Identifier: Apache-2.0
// Python bindings of satori_fast._C; nothing else. satori_fast/kernels/cpu.py is the only caller
// and has checked every argument.
#include "head_scratch.h"
#include "operations.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdint>
#include <optional>
#include <type_traits>

namespace nb = nanobind;

namespace {

template <typename T> using Array = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Integers = Array<const int64_t>;

template <typename T> using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// The bits of a bfloat16 arrive as int16, because nanobind has no such type.
template <typename Element>
satori_fast::HeadTask head_task(const Matrix<const Element>& hidden,
                                const Matrix<const Element>& weight, const Integers& rows,
                                const Integers& targets, const Array<const float>& temperature,
                                int64_t first_column, int num_threads) {
    return {hidden.data(),
            weight.data(),
            std::is_same_v<Element, int16_t>,
            rows.data(),
            static_cast<int64_t>(rows.size()),
            static_cast<int64_t>(weight.shape(0)),
            static_cast<int64_t>(weight.shape(1)),
            targets.data(),
            temperature.data(),
            first_column,
            num_threads};
}

template <typename T> T* data_or_null(const std::optional<Array<T>>& array) {
    return array ? array->data() : nullptr;
}

// The logits of a chunk of tokens, which only these kernels read.
struct HeadLogits {
    satori_fast::Scratch memory;
};

float* memory_or_null(const HeadLogits* logits) { return logits ? logits->memory.get() : nullptr; }

template <typename Element>
HeadLogits head_logits(Matrix<const Element> weight, int64_t num_rows) {
    satori_fast::HeadTask task{};
    task.is_bfloat16 = std::is_same_v<Element, int16_t>;
    task.num_rows = num_rows;
    task.num_columns = static_cast<int64_t>(weight.shape(0));
    task.hidden_size = static_cast<int64_t>(weight.shape(1));
    return {satori_fast::take_scratch(satori_fast::head_logits_size(task))};
}

template <typename Element>
void head_statistics(Matrix<const Element> hidden, Matrix<const Element> weight, Integers rows,
                     Integers targets, Array<const float> temperature, int64_t first_column,
                     int num_threads, Array<float> statistics, const HeadLogits* logits) {
    nb::gil_scoped_release unlocked;
    satori_fast::head_statistics(head_task<Element>(hidden, weight, rows, targets, temperature,
                                                    first_column, num_threads),
                                 statistics.data(), memory_or_null(logits));
}

template <typename Element>
void head_rows(Matrix<const Element> hidden, Matrix<const Element> weight, Integers rows,
               Integers targets, Array<const float> temperature, int64_t first_column,
               int num_threads, const HeadLogits& logits, Array<float> out) {
    nb::gil_scoped_release unlocked;
    satori_fast::head_rows(
        head_task<Element>(hidden, weight, rows, targets, temperature, first_column, num_threads),
        logits.memory.get(), out.data());
}

template <typename Element>
void head_gradients(Matrix<const Element> hidden, Matrix<const Element> weight, Integers rows,
                    Integers targets, Array<const float> temperature, int64_t first_column,
                    int num_threads, const HeadLogits* logits,
                    Array<const float> partition, Array<const float> entropy,
                    Array<const float> grad_logprob, Array<const float> grad_entropy,
                    std::optional<Array<float>> grad_hidden,
                    std::optional<Array<float>> grad_weight, bool accumulates) {
    nb::gil_scoped_release unlocked;
    satori_fast::head_gradients(
        head_task<Element>(hidden, weight, rows, targets, temperature, first_column, num_threads),
        {memory_or_null(logits), partition.data(), entropy.data(), grad_logprob.data(),
         grad_entropy.data(), data_or_null(grad_hidden), data_or_null(grad_weight), accumulates});
}

template <typename Element> void bind_head(nb::module_& m) {
    m.def("head_logits", &head_logits<Element>);
    m.def("head_statistics", &head_statistics<Element>, nb::arg(), nb::arg(), nb::arg(), nb::arg(),
          nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none());
    m.def("head_rows", &head_rows<Element>);
    m.def("head_gradients", &head_gradients<Element>, nb::arg(), nb::arg(), nb::arg(), nb::arg(),
          nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(),
          nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg());
}

// A tensor comes as its address: a DLPack capsule costs microseconds, and these operations take
// tens of them. cpu.py makes the tensors contiguous and keeps them alive.
using Address = uintptr_t;

template <typename Real> Real* at(Address address) { return reinterpret_cast<Real*>(address); }

// tensors: the fields of PolicyArrays, 0 for one that is absent; then the loss and the stats.
// coefficients: the first fields of PolicyTerms; kl_estimator, importance: values of the enums.
template <typename Real>
void policy_loss(const std::array<Address, 11>& tensors, int64_t count,
                 const std::array<double, 7>& coefficients, int kl_estimator, int importance,
                 int num_threads) {
    const auto& x = tensors;
    const satori_fast::PolicyArrays<Real> tokens{
        at<Real>(x[0]), at<Real>(x[1]), at<Real>(x[2]), at<Real>(x[3]), at<Real>(x[4]),
        at<Real>(x[5]), at<Real>(x[6]), at<Real>(x[7]), at<Real>(x[8]), count};
    const auto& c = coefficients;
    const satori_fast::PolicyTerms terms{
        c[0], c[1], c[2], c[3], c[4], c[5], c[6],
        static_cast<satori_fast::KlEstimator>(kl_estimator),
        static_cast<satori_fast::Importance>(importance)};
    nb::gil_scoped_release unlocked;
    satori_fast::policy_loss<Real>(tokens, terms, num_threads, at<Real>(x[9]), at<float>(x[10]));
}

template <typename Real>
void segment_scan(Address x, int64_t num_tokens, double decay, Address cu_seqlens,
                  int64_t num_sequences, bool reverse, int num_threads, Address y) {
    nb::gil_scoped_release unlocked;
    satori_fast::segment_scan<Real>(at<Real>(x), num_tokens, static_cast<Real>(decay),
                                    at<const int64_t>(cu_seqlens), num_sequences, reverse,
                                    num_threads, at<Real>(y));
}

using Strides2 = std::array<int64_t, 2>;
using Strides3 = std::array<int64_t, 3>;

// tensors: the addresses of DecodeTask in its order, 0 for no slots. sizes: its counts in order.
void decode_attention(const std::array<Address, 10>& tensors, const Strides3& query_strides,
                      const Strides2& key_strides, const Strides2& value_strides,
                      const Strides3& key_cache_strides, const Strides3& value_cache_strides,
                      const std::array<int64_t, 6>& sizes, double scale, bool is_bfloat16,
                      int num_threads) {
    const auto& x = tensors;
    const auto& q = query_strides;
    const auto& k = key_cache_strides;
    const auto& v = value_cache_strides;
    const satori_fast::DecodeTask task{at<void>(x[0]),
                                       at<void>(x[1]),
                                       at<void>(x[2]),
                                       at<void>(x[3]),
                                       at<void>(x[4]),
                                       at<void>(x[5]),
                                       at<void>(x[6]),
                                       at<void>(x[7]),
                                       at<const int64_t>(x[8]),
                                       at<const int64_t>(x[9]),
                                       {q[0], q[1], q[2]},
                                       {key_strides[0], key_strides[1]},
                                       {value_strides[0], value_strides[1]},
                                       {k[0], k[1], k[2]},
                                       {v[0], v[1], v[2]},
                                       sizes[0],
                                       sizes[1],
                                       sizes[2],
                                       sizes[3],
                                       sizes[4],
                                       sizes[5],
                                       static_cast<float>(scale),
                                       is_bfloat16};
    nb::gil_scoped_release unlocked;
    satori_fast::decode_attention(task, num_threads);
}

// residual and sum: 0 for neither.
void rms_norm(Address x, Address residual, Address weight, Address y, Address sum, Address rstd,
              int64_t num_rows, int64_t size, double eps, bool is_bfloat16, int num_threads) {
    const satori_fast::NormTask task{at<void>(x), at<void>(residual), at<void>(weight),
                                     at<void>(y), at<void>(sum),      at<float>(rstd),
                                     num_rows,    size,               static_cast<float>(eps),
                                     is_bfloat16};
    nb::gil_scoped_release unlocked;
    satori_fast::rms_norm(task, num_threads);
}

// tensors: the pointers of NormBackwardTask in order, 0 for one that is absent.
void rms_norm_backward(const std::array<Address, 7>& tensors, int64_t num_rows, int64_t size,
                       bool is_bfloat16, int num_threads) {
    const auto& x = tensors;
    const satori_fast::NormBackwardTask task{
        at<void>(x[0]), at<void>(x[1]), at<void>(x[2]), at<void>(x[3]), at<float>(x[4]),
        at<void>(x[5]), at<float>(x[6]), num_rows,       size,           is_bfloat16};
    nb::gil_scoped_release unlocked;
    satori_fast::rms_norm_backward(task, num_threads);
}

// sizes: the counts of RopeTask in order.
void rope(Address x, Address cos, Address sin, Address out, const Strides3& strides,
          const std::array<int64_t, 4>& sizes, bool inverse, bool is_bfloat16, int num_threads) {
    const satori_fast::RopeTask task{at<void>(x),
                                     at<void>(cos),
                                     at<void>(sin),
                                     at<void>(out),
                                     {strides[0], strides[1], strides[2]},
                                     sizes[0],
                                     sizes[1],
                                     sizes[2],
                                     sizes[3],
                                     inverse,
                                     is_bfloat16};
    nb::gil_scoped_release unlocked;
    satori_fast::rope(task, num_threads);
}

void sample_tokens(Address logits, Address uniform, Address tokens, Address logprobs,
                   int64_t num_rows, int64_t num_columns, double inverse_temperature,
                   int num_threads) {
    nb::gil_scoped_release unlocked;
    satori_fast::sample_tokens({at<float>(logits), at<double>(uniform), at<int64_t>(tokens),
                                at<float>(logprobs), num_rows, num_columns,
                                static_cast<float>(inverse_temperature)},
                               num_threads);
}

void swiglu(Address gate_up, Address out, int64_t num_rows, int64_t size, bool is_bfloat16,
            int num_threads) {
    nb::gil_scoped_release unlocked;
    satori_fast::swiglu({at<void>(gate_up), at<void>(out), num_rows, size, is_bfloat16},
                        num_threads);
}

void swiglu_backward(Address grad, Address gate_up, Address out, int64_t num_rows, int64_t size,
                     bool is_bfloat16, int num_threads) {
    const satori_fast::SwigluBackwardTask task{at<void>(grad), at<void>(gate_up), at<void>(out),
                                               num_rows,       size,              is_bfloat16};
    nb::gil_scoped_release unlocked;
    satori_fast::swiglu_backward(task, num_threads);
}

// Copies a list of Python integers; numpy takes five times as long. TypeError or OverflowError,
// from Python, for anything that is not an integer of 64 bits.
void read_integers(nb::list values, Array<int64_t> out) {
    const auto count = static_cast<Py_ssize_t>(out.size());
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* value = PyList_GetItem(values.ptr(), i); // borrowed; null beyond the end
        out.data()[i] = value ? PyLong_AsLongLong(value) : -1;
        if (out.data()[i] == -1 && PyErr_Occurred())
            throw nb::python_error();
    }
}

// tensors: the fields of GaeArrays, 0 for one that is absent.
template <typename Real>
void gae(const std::array<Address, 6>& tensors, int64_t count, double gamma, double decay,
         Address cu_seqlens, int64_t num_sequences, int num_threads) {
    const auto& x = tensors;
    const satori_fast::GaeArrays<Real> tokens{
        at<const Real>(x[0]), at<const Real>(x[1]), at<const uint8_t>(x[2]),
        at<const int32_t>(x[3]), at<Real>(x[4]), at<Real>(x[5]), count};
    nb::gil_scoped_release unlocked;
    satori_fast::gae<Real>(tokens, static_cast<Real>(gamma), static_cast<Real>(decay),
                           at<const int64_t>(cu_seqlens), num_sequences, num_threads);
}

void sequence_similarity(Integers a, Integers a_offsets, Integers b, Integers b_offsets,
                         bool autojunk, int num_threads, Array<double> ratios) {
    nb::gil_scoped_release unlocked;
    satori_fast::sequence_similarity(a.data(), a_offsets.data(), b.data(), b_offsets.data(),
                                     static_cast<int64_t>(ratios.size()), autojunk, num_threads,
                                     ratios.data());
}

void pack_bins(Integers lengths, int64_t capacity, Array<int64_t> bins) {
    nb::gil_scoped_release unlocked;
    satori_fast::pack_bins(lengths.data(), static_cast<int64_t>(lengths.size()), capacity,
                           bins.data());
}

} // namespace

NB_MODULE(_C, m) {
    m.def("policy_loss_float32", &policy_loss<float>);
    m.def("policy_loss_float64", &policy_loss<double>);
    m.def("gae_float32", &gae<float>);
    m.def("gae_float64", &gae<double>);
    m.def("segment_scan_float32", &segment_scan<float>);
    m.def("segment_scan_float64", &segment_scan<double>);
    m.def("decode_attention", &decode_attention);
    m.def("rms_norm", &rms_norm);
    m.def("rms_norm_backward", &rms_norm_backward);
    m.def("rope", &rope);
    m.def("swiglu", &swiglu);
    m.def("swiglu_backward", &swiglu_backward);
    m.def("sample_tokens", &sample_tokens);
    m.def("read_integers", &read_integers);
    m.def("sequence_similarity", &sequence_similarity);
    m.def("pack_bins", &pack_bins);
    nb::class_<HeadLogits>(m, "HeadLogits");
    bind_head<float>(m);
    bind_head<int16_t>(m);
    m.def("instruction_set", &satori_fast::instruction_set);
    m.def("instruction_sets", &satori_fast::instruction_sets);
    m.def("use_instruction_set", &satori_fast::use_instruction_set);
}
