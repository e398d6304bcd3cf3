// SPDX-License-Identifier: Apache-2.0
// Python bindings of satori_fast._C; nothing else. satori_fast/kernels/cpu.py is the only caller
// and has checked every argument.
#include "head_scratch.h"
#include "operations.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

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
void head_gradients(Matrix<const Element> hidden, Matrix<const Element> weight, Integers rows,
                    Integers targets, Array<const float> temperature, int64_t first_column,
                    int num_threads, const HeadLogits* logits,
                    Array<const float> entropy, Array<const float> log_partition,
                    Array<const float> grad_logprob, Array<const float> grad_entropy,
                    std::optional<Array<float>> grad_hidden,
                    std::optional<Array<float>> grad_weight, bool accumulates) {
    nb::gil_scoped_release unlocked;
    satori_fast::head_gradients(
        head_task<Element>(hidden, weight, rows, targets, temperature, first_column, num_threads),
        {memory_or_null(logits), entropy.data(), log_partition.data(), grad_logprob.data(),
         grad_entropy.data(), data_or_null(grad_hidden), data_or_null(grad_weight), accumulates});
}

template <typename Element> void bind_head(nb::module_& m) {
    m.def("head_logits", &head_logits<Element>);
    m.def("head_statistics", &head_statistics<Element>, nb::arg(), nb::arg(), nb::arg(), nb::arg(),
          nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none());
    m.def("head_gradients", &head_gradients<Element>, nb::arg(), nb::arg(), nb::arg(), nb::arg(),
          nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(),
          nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg());
}

template <typename Real>
void segment_scan(Array<const Real> x, double decay, Integers cu_seqlens, bool reverse,
                  int num_threads, Array<Real> y) {
    nb::gil_scoped_release unlocked;
    satori_fast::segment_scan<Real>(x.data(), static_cast<Real>(decay), cu_seqlens.data(),
                                    static_cast<int64_t>(cu_seqlens.size()) - 1, reverse,
                                    num_threads, y.data());
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
    m.def("segment_scan", &segment_scan<float>);
    m.def("segment_scan", &segment_scan<double>);
    m.def("sequence_similarity", &sequence_similarity);
    m.def("pack_bins", &pack_bins);
    nb::class_<HeadLogits>(m, "HeadLogits");
    bind_head<float>(m);
    bind_head<int16_t>(m);
    m.def("instruction_set", &satori_fast::instruction_set);
    m.def("instruction_sets", &satori_fast::instruction_sets);
    m.def("use_instruction_set", &satori_fast::use_instruction_set);
}
