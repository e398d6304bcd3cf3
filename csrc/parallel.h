// SPDX-License-Identifier: Apache-2.0
// Loops over independent items. The result never depends on the number of threads: an item is
// computed by one thread, in one order, and items share nothing.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace satori_fast {

// Calls body(i, slot) for 0 <= i < count on at most num_threads threads; `slot` < num_threads tells
// them apart, for memory that each needs. Items are handed out one at a time, because sequences
// differ in length by orders of magnitude. body must not throw.
template <typename Body>
void parallel_for_slots(int64_t count, int num_threads, const Body& body) {
#ifdef _OPENMP
    // One thread opens no parallel region: libgomp's pool does not survive a fork.
    if (num_threads > 1 && count > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
        for (int64_t i = 0; i < count; ++i)
            body(i, omp_get_thread_num());
        return;
    }
#else
    (void)num_threads;
#endif
    for (int64_t i = 0; i < count; ++i)
        body(i, 0);
}

// The same for items that need no memory of their own.
template <typename Body> void parallel_for(int64_t count, int num_threads, const Body& body) {
    parallel_for_slots(count, num_threads, [&body](int64_t i, int64_t) { body(i); });
}

} // namespace satori_fast
