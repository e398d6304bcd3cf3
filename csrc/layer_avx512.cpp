// SPDX-License-Identifier: Apache-2.0
// The operations inside a layer for AVX-512; CMakeLists.txt gives this file its flags.
#define SATORI_ISA avx512
#define SATORI_LANES 16
#include "layer_kernels.h"

namespace satori_fast {

const LayerKernels* layer_kernels_avx512() { return &avx512::kLayerKernels; }

} // namespace satori_fast
