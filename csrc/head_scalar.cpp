// SPDX-License-Identifier: Apache-2.0
// The output head for any processor: vectors of four floats, mapped onto whatever there is.
#define SATORI_ISA scalar
#define SATORI_LANES 4
#define SATORI_TILE_COLUMNS 6
#include "head_kernels.h"

namespace satori_fast {

const HeadKernels* head_kernels_scalar() { return scalar::kernels("scalar"); }

} // namespace satori_fast
