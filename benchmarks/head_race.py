# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of the output head on the host share: shapes, the check of every rival's
results, and the figures beyond times (share of the hardware floor, peak memory).

Not the rivals (`baselines`) nor the measuring (`measure`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import baselines, measure
from benchmarks.baselines import HeadBatch

# A rival in half precision that takes longer for one call is left out.
MAX_CALL_SECONDS = 15.0
# Peak memory of ours should be at most this share of eager's.
MEMORY_TARGET = 1 / 20
# Relative Frobenius error allowed against eager float32: eager bfloat16 rounds its logits.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}

Results = tuple[Tensor, ...]
Step = Callable[[HeadBatch], Results]
Head = Callable[[HeadBatch], tuple[Tensor, Tensor]]


class Shape(NamedTuple):
    """T tokens, H hidden size, V vocabulary; repeats: samples of each rival."""

    num_tokens: int
    hidden_size: int
    vocab_size: int
    repeats: int

    @property
    def gemm_flops(self) -> float:
        """G: floating point operations of one matrix product of the head."""
        return 2.0 * self.num_tokens * self.hidden_size * self.vocab_size


SHAPES = {
    "main": Shape(4096, 256, 32_000, repeats=7),
    "laptop": Shape(4096, 128, 1000, repeats=7),
    "wide": Shape(256, 1024, 32_000, repeats=3),
    # So few tokens that even a host without bfloat16 instructions gets through eager's product.
    "slice": Shape(32, 256, 32_000, repeats=3),
}
CASES = [(name, torch.float32) for name in SHAPES if name != "slice"]
CASES += [(name, torch.bfloat16) for name in SHAPES]


def case_id(value: object) -> str:
    return getattr(value, "__name__", str(value).removeprefix("torch."))


@functools.cache
def product_flops(dtype: torch.dtype) -> float:
    """Floating point operations per second of torch's matrix product, measured once in a run."""
    if dtype != torch.float32:
        small = measure.gemm_flops(dtype, shapes=[(256, 256, 256)])
        # Without bfloat16 instructions torch multiplies a hundred times slower; 256 shows it.
        if small < product_flops(torch.float32) / 4:
            return small
    return measure.gemm_flops(dtype)


def batch_of(shape: Shape, dtype: torch.dtype) -> HeadBatch:
    return baselines.random_head_batch(*shape[:3], dtype=dtype, num_sequences=4)


def in_float32(function: Head) -> Head:
    """The rival on float32 copies of its inputs: the way out where torch is slow in bfloat16."""
    return lambda batch: function(
        batch._replace(hidden=batch.hidden.float(), weight=batch.weight.float())
    )


def is_affordable(step: Step, shape: Shape, dtype: torch.dtype) -> bool:
    """Whether one call of a rival in half precision takes at most MAX_CALL_SECONDS, judged by a few
    tokens; if not, a line that says so."""
    if dtype == torch.float32:
        return True
    few = shape._replace(num_tokens=8)
    batch = batch_of(few, dtype)
    seconds = min(_call_seconds(step, batch) for _ in range(3))
    seconds *= shape.num_tokens / few.num_tokens
    if seconds > MAX_CALL_SECONDS:
        print(f"left out: eager in {case_id(dtype)} and all like it, about {seconds:.0f} s a call")
    return seconds <= MAX_CALL_SECONDS


def check(
    steps: Mapping[str, Step | None],
    batch: HeadBatch,
    truths: Mapping[str, Results],
) -> dict[str, float]:
    """Largest relative error of each rival's results against its truth; AssertionError where one
    computes something else. truths: by the rival's name, "" for all others."""
    errors: dict[str, float] = {}
    for name, step in steps.items():
        if step is None:
            continue
        truth = truths.get(name, truths[""])
        pairs = zip(step(batch), truth, strict=True)
        error = max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs)
        limit = TOLERANCE[batch.hidden.dtype]
        assert error < limit, f"{name} differs from eager float32 by {error:.1e}, above {limit:g}"
        errors[name] = measure.significant(error, 2)
    return errors


def race_heads(
    race: Callable[..., dict[str, Any]],
    name: str,
    key: str,
    steps: Mapping[str, Step | None],
    batch: HeadBatch,
    shape: Shape,
    *,
    gemms: int,
    targets: Mapping[str, float],
    truths: Mapping[str, Results],
) -> None:
    """Checks, races and records under benchmarks/results/NAME.json; gemms: matrix products that our
    algorithm needs."""
    dtype, measures_memory = batch.hidden.dtype, shape is SHAPES["main"]
    errors = check(steps, batch, truths)
    table = race(
        key,
        {name: step and functools.partial(step, batch) for name, step in steps.items()},
        targets=targets,
        repeats=shape.repeats,
        memory=measures_memory,
        extra={
            "shape": dict(zip(("T", "H", "V"), shape[:3], strict=True)),
            "dtype": case_id(dtype),
            "relative_error": errors,
        },
    )
    timings = table["timings"]
    figures = {"floor": _floor(timings, shape, dtype, gemms)}
    if measures_memory:
        figures["peak_memory"] = _peak_memory(timings)
    measure.record(name, {key: table | figures})


def _call_seconds(step: Step, batch: HeadBatch) -> float:
    started = time.perf_counter()
    step(batch)
    return time.perf_counter() - started


def _floor(
    timings: Mapping[str, Any], shape: Shape, dtype: torch.dtype, gemms: int
) -> dict[str, Any]:
    """The time of the bare matrix products, and which share of each rival's time that is."""
    # A product of bfloat16 numbers may as well be done in float32.
    ceiling = max(product_flops(dtype), product_flops(torch.float32))
    floor_ms = 1e3 * gemms * shape.gemm_flops / ceiling
    return {
        "gemms": gemms,
        "ceiling_gflops": measure.significant(ceiling / 1e9),
        "ms": measure.significant(floor_ms),
        "share": {
            name: measure.significant(floor_ms / timing["wall_ms"], 3)
            for name, timing in timings.items()
        },
    }


def _peak_memory(timings: Mapping[str, Any]) -> dict[str, Any]:
    """Peak bytes of ours over eager's; both hold their results, gradients among them."""
    rival = next(name for name in timings if name.startswith("eager"))
    ratio = timings["ours"]["peak_mib"] / max(timings[rival]["peak_mib"], 1e-3)
    return {
        "ours_over": rival,
        "ratio": measure.significant(ratio, 3),
        "target": MEMORY_TARGET,
        "met": ratio <= MEMORY_TARGET,
    }
