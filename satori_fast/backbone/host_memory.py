# SPDX-License-Identifier: Apache-2.0
"""Memory of the host that libraries keep though nobody needs it, and how it comes back.

Not here: tensors that wait on the host on purpose (`parking`), alarms (`profiling.memory_growth`).
"""

from __future__ import annotations

import ctypes
import os

# Products that oneDNN compiles, for one shape each, and keeps; it and torch above it keep 1,024 by
# default. Hardly two batches have the same number of tokens: those would be 2 GiB that nobody uses.
# A microbatch has some twenty shapes; one that is compiled again costs 1.6 ms, 1 % of a step of a
# model of 135 M parameters.
NUM_COMPILED = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": 64, "LRU_CACHE_CAPACITY": 64}


def keep_few_compiled() -> None:
    """Bound the compiled products that are kept, unless the environment says how many. It has to
    come before the first product."""
    for name, number in NUM_COMPILED.items():
        os.environ.setdefault(name, str(number))


def give_back() -> None:
    """Give freed pages back to the system, where the C library is glibc: it keeps those that lie
    between others, gigabytes of them after a checkpoint's copies or a stage's model."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
