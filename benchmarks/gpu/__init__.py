# SPDX-License-Identifier: Apache-2.0
"""The pieces of `python -m benchmarks.gpu_suite`.

cases.py lists what is measured (ceilings.py, correctness.py, head_speed.py, small_speed.py),
timing.py measures, worker.py runs cases in a process of its own, supervisor.py keeps the worker and
the time budget.
"""

import warnings

with warnings.catch_warnings():
    # The suite needs the GPU kernels only: without the C++ ones the host runs the reference.
    warnings.filterwarnings("ignore", message="satori_fast runs without its C")
    import satori_fast.kernels  # noqa: F401
