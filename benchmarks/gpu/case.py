# SPDX-License-Identifier: Apache-2.0
"""What a case of the GPU suite is, where it runs, and the sizes of all cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how long a case may measure; allowance_s: seconds for its timed calls."""

    device: torch.device
    allowance_s: float

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def finish(self) -> None:
        """Waits for the device; raises what went wrong on it."""
        if self.is_cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True, slots=True)
class Case:
    """One entry of the record.

    run:       measures and returns figures; "passed": False among them says that results are wrong.
    flops:     useful floating point operations of one call of ours.
    num_bytes: bytes that one call must move at least.
    memory:    bytes of device memory that inputs and ours need; rivals that need more are skipped
               one by one.
    limit_s:   seconds after which the process that runs the case is killed.
    """

    section: str
    name: str
    run: Callable[[Place], dict[str, Any]]
    shape: dict[str, int] = field(default_factory=dict)
    flops: float = 0.0
    num_bytes: float = 0.0
    memory: float = 0.0
    limit_s: float = 90.0


class HeadShape(NamedTuple):
    """T tokens, H hidden size, V vocabulary rows."""

    name: str
    num_tokens: int
    hidden_size: int
    vocab_size: int

    @property
    def gemm_flops(self) -> float:
        """G, the operations of one matrix product of the head."""
        return 2.0 * self.num_tokens * self.hidden_size * self.vocab_size

    @property
    def shape(self) -> dict[str, int]:
        return {"T": self.num_tokens, "H": self.hidden_size, "V": self.vocab_size}

    @property
    def num_logits(self) -> int:
        return self.num_tokens * self.vocab_size

    @property
    def input_bytes(self) -> float:
        """Of hidden and weight in bfloat16; their gradients take as much again."""
        return 2.0 * self.hidden_size * (self.num_tokens + self.vocab_size)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Everything that grows with the device.

    vocab:      (columns, real columns) of the correctness checks; the rest are phantoms.
    layer:      tokens, hidden size, feed-forward size, heads and head size of the layer operations.
    gpu_tests:  whether to run the tests that are marked `gpu`.
    """

    heads: tuple[HeadShape, ...]
    square: int
    copy_bytes: int
    vocab: tuple[int, int]
    check_tokens: int
    check_hidden: int
    policy_tokens: tuple[int, ...]
    scans: tuple[tuple[int, int], ...]
    layer: tuple[int, int, int, int, int]
    gpu_tests: bool = True


SIZES = {
    # Qwen2.5-Math 7B and 1.5B. 151,665 tokens are real, so that a rank's columns end raggedly.
    "full": Sizes(
        heads=(
            HeadShape("qwen_7b_8k", 8192, 3584, 152_064),
            HeadShape("qwen_7b_32k", 32_768, 3584, 152_064),
            HeadShape("qwen_1.5b_8k", 8192, 1536, 151_936),
        ),
        square=8192,
        copy_bytes=2**32,
        vocab=(151_936, 151_665),
        check_tokens=333,
        check_hidden=512,
        policy_tokens=(65_536, 1_048_576),
        scans=((16, 4096), (1024, 4096)),
        layer=(8192, 3584, 18_944, 28, 128),
    ),
    # For a host without a GPU: the code is the same, the figures mean nothing.
    "tiny": Sizes(
        heads=(HeadShape("tiny", 64, 16, 101),),
        square=64,
        copy_bytes=2**16,
        vocab=(101, 97),
        check_tokens=33,
        check_hidden=16,
        policy_tokens=(256,),
        scans=((4, 32),),
        layer=(32, 16, 24, 2, 8),
        gpu_tests=False,
    ),
}
