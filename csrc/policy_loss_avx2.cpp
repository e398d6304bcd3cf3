// SPDX-License-Identifier: Apache-2.0
// The loop of policy_loss for x86 with AVX2 and fused multiply-add; empty elsewhere.
#ifdef __AVX2__
#include "policy_loss_loop.h"

namespace satori_fast {

template <typename Real>
void policy_loop_avx2(const PolicyArrays<Real>& tokens, const PolicyTerms& terms, int64_t begin,
                      int64_t end, double* totals) {
    run_policy_loop<Real>(tokens, terms, begin, end, totals);
}

template void policy_loop_avx2<float>(const PolicyArrays<float>&, const PolicyTerms&, int64_t,
                                      int64_t, double*);
template void policy_loop_avx2<double>(const PolicyArrays<double>&, const PolicyTerms&, int64_t,
                                       int64_t, double*);

} // namespace satori_fast
#endif
