// SPDX-License-Identifier: Apache-2.0
// The output head for AVX2 and FMA; CMakeLists.txt gives this file its flags.
#define SATORI_ISA avx2
#define SATORI_LANES 8
#define SATORI_TILE_COLUMNS 6
#include "head_kernels.h"

namespace satori_fast {

const HeadKernels* head_kernels_avx2() { return avx2::kernels("avx2"); }

} // namespace satori_fast
