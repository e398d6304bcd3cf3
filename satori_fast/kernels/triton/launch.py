# SPDX-License-Identifier: Apache-2.0
"""One table of the types, constants and options that a kernel is compiled and launched with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

# Triton's names of element types.
TYPE_NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Configuration:
    """One compiled form of a kernel.

    name:      unique; file, kernel and what sets this form apart: "linear_logprob.merge".
    kernel:    the `@triton.jit` function.
    types:     type of each parameter that is not a constant, in Triton's notation: "*bf16" for a
               pointer, "i32", "fp32"; ":16" behind it says that the address or the number is a
               multiple of 16, which is what makes wide loads possible. Triton finds that out by
               itself at a launch: here it tells the ahead-of-time compiler what to expect.
    constants: the `tl.constexpr` parameters, block sizes included.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3

    def options(self) -> dict[str, Any]:
        """Options of the compiler; multiply-add fusion is off by default from 3.10 on."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }

    def launch(self, grid: tuple[int, ...], *arguments: Any) -> None:
        """Run over `grid`; `arguments` in the order of `types`, the first one a tensor."""
        # Triton launches on the current device, which need not be the one of the tensors.
        with torch.cuda.device_of(arguments[0]):
            named = dict(zip(self.types, arguments, strict=True))
            self.kernel[grid](**named, **self.constants, **self.options())
