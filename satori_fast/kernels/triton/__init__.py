# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels. Plain functions on CUDA tensors, with the signatures of `reference`; they know
nothing of `torch.library`, and `schemas` calls them.

This is the only place that imports triton, and it does so at the first use of a function: importing
this package costs nothing and works without triton, where `OPERATIONS` is empty.

**Adding a kernel.** A file holds `@triton.jit` functions, a table `CONFIGURATIONS` and the plain
function of the operation:

    SCALE = Configuration(
        name="activation.scale",
        kernel=_scale,
        types={"x": "*bf16:16", "y": "*bf16:16", "factor": "fp32", "num": "i32"},
        constants={"BLOCK": 1024},
        num_warps=4,
    )
    CONFIGURATIONS = (SCALE,)

    def scale(x, factor):
        y = torch.empty_like(x)
        grid = (triton.cdiv(x.numel(), SCALE.constants["BLOCK"]),)
        SCALE.launch(grid, x, y, factor, x.numel())
        return y

A kernel is launched through a `Configuration` only, so whatever can be launched is in the table.
The file is listed in `FILES` and its operations in `FUNCTIONS`, below.
`python -m tests.kernels.triton.ahead` compiles every configuration for the GPUs it names, without a
GPU, and holds what the compiler made of it to limits.toml beside it; `--update` rewrites that file
for a new or changed kernel. Tests run kernels on CPU tensors with the fixture `interpreter` of
tests/kernels/triton/conftest.py.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

# Files with a table CONFIGURATIONS.
FILES = (
    "activation",
    "norm",
    "rope",
    "head",
    "stash",
    "linear_policy_loss",
    "policy_loss",
    "segment_scan",
)
# Where each function is.
FUNCTIONS = {
    "add_rms_norm": "norm",
    "rms_norm": "norm",
    "rms_norm_backward": "norm",
    "rope": "rope",
    "swiglu": "activation",
    "swiglu_backward": "activation",
    "linear_logprob": "linear_logprob",
    "linear_logprob_backward": "linear_logprob",
    "linear_policy_loss": "linear_policy_loss",
    "policy_loss": "policy_loss",
    "segment_scan": "segment_scan",
}

OPERATIONS = frozenset(FUNCTIONS if importlib.util.find_spec("triton") else ())


def load(name: str) -> Callable[..., Any]:
    """The function `name` of `FUNCTIONS`. Imports triton."""
    return getattr(importlib.import_module(f"{__name__}.{FUNCTIONS[name]}"), name)
