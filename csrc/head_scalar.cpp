// SPDX-License-Identifier: Apache-2.0
// The output head for scalar; CMakeLists.txt gives this file the flags.
#define SATORI_ISA scalar
#define SATORI_LANES 4
#define SATORI_TILE_COLUMNS 6
#include "head_kernels.h"

namespace satori_fast {

const HeadKernels* head_kernels_scalar() { return scalar::kernels("scalar"); }

} // namespace satori_fast
