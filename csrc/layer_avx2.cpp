// SPDX-License-Identifier: Apache-2.0
// The operations inside a layer for AVX2 and FMA; CMakeLists.txt gives this file its flags.
#define SATORI_ISA avx2
#define SATORI_LANES 8
#include "layer_kernels.h"

namespace satori_fast {

const LayerKernels* layer_kernels_avx2() { return &avx2::kLayerKernels; }

} // namespace satori_fast
