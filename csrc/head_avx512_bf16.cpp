// SPDX-License-Identifier: Apache-2.0
// The output head for AVX-512 with products of bfloat16 pairs; CMakeLists.txt gives this file its flags.
#define SATORI_ISA avx512_bf16
#define SATORI_LANES 16
#define SATORI_TILE_COLUMNS 12
#include "head_kernels.h"

namespace satori_fast {

const HeadKernels* head_kernels_avx512_bf16() { return avx512_bf16::kernels("avx512-bf16"); }

} // namespace satori_fast
