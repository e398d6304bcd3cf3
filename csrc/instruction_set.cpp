// SPDX-License-Identifier: Apache-2.0
// Which instruction set the output head and the layers run on: the widest of this build that the
// machine has, chosen at first use, or what use_instruction_set asks for.
#include "head_table.h"
#include "layer_table.h"
#include "operations.h"

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

namespace satori_fast {

namespace {

struct InstructionSet {
    const HeadKernels* head;
    const LayerKernels* layer;
};

// Widest first. SATORI_HAS_... come from CMakeLists.txt, which knows what the compiler can do.
std::vector<InstructionSet> supported() {
    std::vector<InstructionSet> sets;
#if defined(SATORI_HAS_AVX512)
    const bool has_avx512 = __builtin_cpu_supports("avx512f") &&
                            __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#if defined(SATORI_HAS_AVX512_BF16)
    if (has_avx512 && __builtin_cpu_supports("avx512bf16"))
        sets.push_back({head_kernels_avx512_bf16(), layer_kernels_avx512()});
#endif
    if (has_avx512)
        sets.push_back({head_kernels_avx512(), layer_kernels_avx512()});
#endif
#if defined(SATORI_HAS_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        sets.push_back({head_kernels_avx2(), layer_kernels_avx2()});
#endif
    sets.push_back({head_kernels_scalar(), layer_kernels_scalar()});
    return sets;
}

std::atomic<size_t>& choice() {
    static std::atomic<size_t> chosen{0};
    return chosen;
}

const InstructionSet& current() {
    static const std::vector<InstructionSet> sets = supported();
    return sets[choice().load()];
}

} // namespace

const HeadKernels& head_kernels() { return *current().head; }
const LayerKernels& layer_kernels() { return *current().layer; }

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const InstructionSet& set : supported())
        names.push_back(set.head->name);
    return names;
}

std::string instruction_set() { return head_kernels().name; }

void use_instruction_set(const std::string& name) {
    const std::vector<std::string> names = instruction_sets();
    for (size_t i = 0; i < names.size(); ++i)
        if (name == names[i]) {
            choice().store(i);
            return;
        }
    throw std::invalid_argument("this machine or this build has no instruction set " + name);
}

} // namespace satori_fast
