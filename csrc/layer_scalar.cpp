// SPDX-License-Identifier: Apache-2.0
// The operations inside a layer for any processor: vectors of four floats, mapped onto whatever there
// is.
#define SATORI_ISA scalar
#define SATORI_LANES 4
#include "layer_kernels.h"

namespace satori_fast {

const LayerKernels* layer_kernels_scalar() { return &scalar::kLayerKernels; }

} // namespace satori_fast
