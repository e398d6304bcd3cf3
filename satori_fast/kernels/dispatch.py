# SPDX-License-Identifier: Apache-2.0
"""The choice of what computes an operation: by device, and where kernels know some types only, by
type. Nothing is imported for a device before it is used."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from satori_fast.kernels import cpu, cpu_head, cpu_layers, reference, reference_layers, triton

OPERATIONS = (
    "linear_logits",
    "linear_logprob",
    "linear_policy_loss",
    "policy_loss",
    "segment_scan",
    "gae",
    "sequence_similarity",
    "pack_bins",
    "sample_tokens",
    "rms_norm",
    "swiglu",
    "rope",
    "decode_attention",
)

# Where each compiled function of the host is, and the types that it computes in (None: all).
HOST: dict[str, tuple[Any, tuple[torch.dtype, ...] | None]] = {
    **{name: (cpu, cpu.DTYPES.get(name)) for name in cpu.OPERATIONS},
    **dict.fromkeys(cpu_head.OPERATIONS, (cpu_head, cpu_head.DTYPES)),
    **({"linear_logits": (cpu_head, cpu_head.LOGITS_DTYPES)} if cpu_head.OPERATIONS else {}),
    **dict.fromkeys(cpu_layers.OPERATIONS, (cpu_layers, cpu_layers.DTYPES)),
}


def implementation(
    name: str, device: torch.device | str = "cpu"
) -> Literal["reference", "cpp", "triton"]:
    """Kind of code that runs the operation `name` on `device`. ValueError for an unknown name."""
    if name not in OPERATIONS:
        raise ValueError(f"unknown operation {name!r}: one of {', '.join(OPERATIONS)}")
    kind = torch.device(device).type
    if kind == "cuda" and name in triton.OPERATIONS:
        return "triton"
    return "cpp" if kind == "cpu" and name in HOST else "reference"


def function_for(name: str, x: Tensor) -> Callable[..., Any]:
    """The function `name` of `reference`, as it is computed on tensors like `x`. It is asked a
    hundred times a step, hence so little else."""
    if x.is_cuda:
        # The kernels of the GPU compute in float32.
        if x.dtype != torch.float64 and name in triton.OPERATIONS:
            return triton.load(name)
    elif x.is_cpu and (compiled := HOST.get(name)):
        module, dtypes = compiled
        if dtypes is None or x.dtype in dtypes:
            return getattr(module, name)
    return reference_of(name)


def host_function(name: str) -> Callable[..., Any]:
    """The function `name` of arrays and lists, compiled where it can be."""
    return getattr(HOST[name][0], name) if name in HOST else reference_of(name)


def reference_of(name: str) -> Callable[..., Any]:
    """The definition of the function `name`."""
    return getattr(reference if hasattr(reference, name) else reference_layers, name)
