// SPDX-License-Identifier: Apache-2.0
// The clipped policy loss, its metrics and both gradients, in one pass over the tokens.
//
// Threads share out fixed blocks of tokens, and the sums of the blocks are added in their order,
// in float64. So the bits may depend on the instruction set, and never on the number of threads.
#include "policy_loss.h"
#include "parallel.h"
#include "policy_loss_loop.h"

#include <algorithm>
#include <vector>

namespace satori_fast {
namespace {

constexpr int64_t BLOCK = 4096; // tokens of one thread's turn; whole tiles

template <typename Real> PolicyLoop<Real> best_policy_loop() {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return policy_loop_avx2<Real>;
#endif
    return run_policy_loop<Real>;
}

struct Totals {
    double of[NUM_POLICY_STATS] = {};
};

} // namespace

template <typename Real>
void policy_loss(const PolicyArrays<Real>& tokens, const PolicyTerms& terms, int num_threads,
                 Real* loss, float* stats) {
    const int64_t num_blocks = (tokens.count + BLOCK - 1) / BLOCK;
    std::vector<Totals> blocks(static_cast<size_t>(num_blocks));
    const PolicyLoop<Real> run = best_policy_loop<Real>();
    parallel_for(num_blocks, num_threads, [&](int64_t n) {
        const int64_t begin = n * BLOCK, end = std::min(begin + BLOCK, tokens.count);
        run(tokens, terms, begin, end, blocks[n].of);
    });
    Totals total;
    for (const Totals& block : blocks)
        for (int stat = 0; stat < NUM_POLICY_STATS; ++stat)
            add_policy_stat(stat, block.of[stat], total.of);
    std::copy(total.of, total.of + NUM_POLICY_STATS, stats);
    // A term that is off is left out, not multiplied by 0: its value may be infinite.
    double sum = total.of[POLICY_LOSS];
    if (terms.kl_coefficient != 0)
        sum += terms.kl_coefficient * total.of[KL];
    if (terms.entropy_coefficient != 0)
        sum -= terms.entropy_coefficient * total.of[ENTROPY];
    *loss = static_cast<Real>(sum);
}

template void policy_loss<float>(const PolicyArrays<float>&, const PolicyTerms&, int, float*,
                                 float*);
template void policy_loss<double>(const PolicyArrays<double>&, const PolicyTerms&, int, double*,
                                  float*);

} // namespace satori_fast
