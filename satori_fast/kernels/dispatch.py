# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an operation runs: by device, and where kernels know some types only, by
type. Nothing is imported for a device before it is used."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from satori_fast.kernels import cpu, cpu_head, cpu_layers, reference, reference_layers, triton

OPERATIONS = (
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

# Types that a compiled operation of the host computes in, where these are not all.
HOST_DTYPES = {
    **dict.fromkeys(cpu_head.OPERATIONS, cpu_head.DTYPES),
    "sample_tokens": (torch.float32,),
}


def implementation(
    name: str, device: torch.device | str = "cpu"
) -> Literal["reference", "cpp", "triton"]:
    """What runs the operation `name` on `device`. ValueError for an unknown name."""
    if name not in OPERATIONS:
        raise ValueError(f"unknown operation {name!r}: one of {', '.join(OPERATIONS)}")
    kind = torch.device(device).type
    if kind == "cuda" and name in triton.OPERATIONS:
        return "triton"
    is_compiled = name in cpu.OPERATIONS | cpu_head.OPERATIONS | cpu_layers.OPERATIONS
    return "cpp" if kind == "cpu" and is_compiled else "reference"


def implementation_of(name: str, device: torch.device | str = "cpu") -> Callable[..., Any]:
    return _named(implementation(name, device), name, name)


def function_for(operation: str, x: Tensor, name: str | None = None) -> Callable[..., Any]:
    """What runs `operation`, or the function `name` that goes with it, on tensors like `x`."""
    kind = implementation(operation, x.device)
    # The kernels of the GPU compute in float32, some of the host's in some types.
    if kind == "triton":
        is_known = x.dtype != torch.float64
    else:
        is_known = x.dtype in HOST_DTYPES.get(operation, (x.dtype,))
    return _named(kind if is_known else "reference", operation, name or operation)


def layer_function(name: str, x: Tensor) -> Callable[..., Any]:
    """What runs the function `name` of `reference_layers` on tensors like `x`. It is asked a
    hundred times a step, hence so little else."""
    if x.is_cuda and x.dtype != torch.float64 and name in triton.OPERATIONS:
        return triton.load(name)
    if x.is_cpu and name in cpu_layers.FUNCTIONS and x.dtype in cpu_layers.DTYPES:
        return getattr(cpu_layers, name)
    return getattr(reference_layers, name)


def _named(kind: str, operation: str, name: str) -> Callable[..., Any]:
    if kind == "triton":
        return triton.load(name)
    compiled = cpu_head if operation in cpu_head.OPERATIONS else cpu
    return getattr(compiled if kind == "cpp" else reference, name)
