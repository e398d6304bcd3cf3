// SPDX-License-Identifier: Apache-2.0
// The output head for AVX-512; CMakeLists.txt gives this file its flags.
#define SATORI_ISA avx512
#define SATORI_LANES 16
#define SATORI_TILE_COLUMNS 12
#include "head_kernels.h"

namespace satori_fast {

const HeadKernels* head_kernels_avx512() { return avx512::kernels("avx512"); }

} // namespace satori_fast
