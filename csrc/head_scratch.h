// SPDX-License-Identifier: Apache-2.0
// Memory for the output head's intermediate results. Given back, it is kept for the next call, up to
// a limit: the first touch of fresh pages costs more time than a small head does.
#pragma once

#include <cstdint>
#include <memory>

namespace satori_fast {

struct GiveBack {
    int64_t num_floats;
    void operator()(float* memory) const;
};
using Scratch = std::unique_ptr<float[], GiveBack>;

// At least num_floats, uninitialised, aligned for any vector. Throws std::bad_alloc.
Scratch take_scratch(int64_t num_floats);

} // namespace satori_fast
