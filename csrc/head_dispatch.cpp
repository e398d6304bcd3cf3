// SPDX-License-Identifier: Apache-2.0
// Which instruction set the output head runs on: the widest of this build that the machine has,
// chosen at first use, or what use_instruction_set asks for.
#include "head_table.h"
#include "operations.h"

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

namespace satori_fast {

namespace {

// Widest first. SATORI_HAS_... come from CMakeLists.txt, which knows what the compiler can do.
std::vector<const HeadKernels*> supported() {
    std::vector<const HeadKernels*> sets;
#if defined(SATORI_HAS_AVX512)
    const bool has_avx512 = __builtin_cpu_supports("avx512f") &&
                            __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#if defined(SATORI_HAS_AVX512_BF16)
    if (has_avx512 && __builtin_cpu_supports("avx512bf16"))
        sets.push_back(head_kernels_avx512_bf16());
#endif
    if (has_avx512)
        sets.push_back(head_kernels_avx512());
#endif
#if defined(SATORI_HAS_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        sets.push_back(head_kernels_avx2());
#endif
    sets.push_back(head_kernels_scalar());
    return sets;
}

std::atomic<const HeadKernels*>& choice() {
    static std::atomic<const HeadKernels*> chosen{supported().front()};
    return chosen;
}

} // namespace

const HeadKernels& head_kernels() { return *choice().load(); }

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const HeadKernels* kernels : supported())
        names.push_back(kernels->name);
    return names;
}

std::string instruction_set() { return head_kernels().name; }

void use_instruction_set(const std::string& name) {
    for (const HeadKernels* kernels : supported())
        if (name == kernels->name) {
            choice().store(kernels);
            return;
        }
    throw std::invalid_argument("this machine or this build has no instruction set " + name);
}

} // namespace satori_fast
