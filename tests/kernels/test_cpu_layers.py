# SPDX-License-Identifier: Apache-2.0
"""The compiled operations inside a layer against float64, on every instruction set at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from satori_fast.kernels import cpu_head, cpu_layers, decode_attention, reference_layers

pytestmark = pytest.mark.skipif(
    not cpu_layers.OPERATIONS, reason="satori_fast._C is missing: install with a C++17 compiler"
)

LENGTHS = (1, 7, 63, 300)
# Relative to the largest value: sums in float32, and one rounding to the type.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE))


@pytest.fixture(params=cpu_head.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu_head.instruction_set()
    cpu_head.use_instruction_set(request.param)
    yield request.param
    cpu_head.use_instruction_set(before)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def decode_problem(
    groups: int, heads_per_group: int, head_dim: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A row for each of LENGTHS, in slots of another order; NaN beyond each row's position, and in
    the slot that no row has."""
    generator = torch.Generator().manual_seed(head_dim)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    rows, longest = len(LENGTHS), max(LENGTHS)
    mixed = noise(rows, groups, heads_per_group + 2, head_dim)
    caches = noise(2, rows + 1, groups, longest, head_dim)
    slots = torch.tensor([4, 0, 3, 1])
    for slot, length in zip(slots, LENGTHS, strict=True):
        caches[:, slot, :, length - 1 :] = torch.nan
    caches[:, 2] = torch.nan
    angles = torch.randn(rows, head_dim // 2, generator=generator)
    return {
        "queries": mixed[:, :, :-2],
        "keys": mixed[:, :, -2],
        "values": mixed[:, :, -1],
        "key_cache": caches[0],
        "value_cache": caches[1],
        "positions": torch.tensor(LENGTHS) - 1,
        "cos": angles.cos().to(dtype),
        "sin": angles.sin().to(dtype),
        "slots": slots,
    }


def copied(problem: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    return {
        name: x.to(dtype) if dtype and x.is_floating_point() else x.clone()
        for name, x in problem.items()
    }


def attention_formula(problem: dict[str, Tensor]) -> list[Tensor]:
    """Row by row and head by head in float64: [G, D] of each group of each row."""
    p = copied(problem, torch.float64)
    results = []
    for row, (slot, position) in enumerate(
        zip(p["slots"].tolist(), p["positions"].tolist(), strict=True)
    ):
        turn = torch.complex(p["cos"][row], p["sin"][row])

        def turned(x: Tensor, turn: Tensor = turn) -> Tensor:
            a, b = x.chunk(2, -1)
            product = torch.complex(a, b) * turn
            return torch.cat([product.real, product.imag], -1)

        for group in range(p["keys"].shape[1]):
            past = slice(0, position)
            keys = torch.cat(
                [p["key_cache"][slot, group, past], turned(p["keys"][row, group])[None]]
            )
            values = torch.cat([p["value_cache"][slot, group, past], p["values"][row, group][None]])
            scores = turned(p["queries"][row, group]) @ keys.T / math.sqrt(keys.shape[1])
            results.append(scores.softmax(-1) @ values)
    return results


def assert_near(got: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= TOLERANCE[dtype] * exact.abs().max().clamp(1)


@dtypes
@pytest.mark.parametrize(
    ("groups", "heads_per_group", "head_dim"),
    [(2, 1, 32), (2, 2, 32), (1, 4, 64), (2, 3, 80), (2, 2, 128), (2, 7, 128), (1, 2, 20)],
)
def test_decode_attention(
    instruction_set: str, groups: int, heads_per_group: int, head_dim: int, dtype: torch.dtype
) -> None:
    problem = decode_problem(groups, heads_per_group, head_dim, dtype)
    work = copied(problem)
    got = decode_attention(**work)
    exact = torch.stack(attention_formula(problem)).view(got.shape)
    assert_near(got, exact, dtype)
    # The caches hold the new entries, and are as they were everywhere else.
    expected = copied(problem, torch.float64)
    reference_layers.decode_attention(**expected)
    for name in ("key_cache", "value_cache"):
        untouched = problem[name].clone()
        at = (problem["slots"], slice(None), problem["positions"])
        assert_near(work[name][at], expected[name][at], dtype)
        untouched[at] = work[name][at]
        torch.testing.assert_close(work[name], untouched, rtol=0, atol=0, equal_nan=True)


@dtypes
def test_a_row_of_decode_attention_depends_on_nothing_else(
    instruction_set: str, dtype: torch.dtype, restore_threads: None
) -> None:
    problem = decode_problem(2, 3, 64, dtype)
    results = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        results.append(decode_attention(**copied(problem)))
    assert all(torch.equal(results[0], result) for result in results)
    per_row = ("queries", "keys", "values", "positions", "cos", "sin", "slots")
    for row in range(len(LENGTHS)):
        alone = copied(problem) | {name: problem[name][row : row + 1] for name in per_row}
        assert torch.equal(decode_attention(**alone)[0], results[0][row])
    # Rows whose slots are their own numbers, in caches cut to the longest position.
    order = problem["slots"]
    own = copied(problem)
    for name in ("key_cache", "value_cache"):
        longer = torch.full((4, 2, 333, 64), torch.nan, dtype=dtype)
        longer[:, :, :300] = problem[name][order]
        own[name] = longer[:, :, :300]
    assert torch.equal(decode_attention(**{**own, "slots": None}), results[0])


def test_scores_far_apart(instruction_set: str) -> None:
    """The running maximum moves at every tile, by more than float32 can hold as an exponential."""
    problem = decode_problem(1, 2, 32, torch.float32)
    problem["key_cache"][1, :, :299] *= torch.linspace(0, 200, 299)[:, None]
    got = decode_attention(**copied(problem))
    exact = torch.stack(attention_formula(problem)).view(got.shape)
    torch.testing.assert_close(got.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "values"), [("positions", [0, 5, 300, 2]), ("slots", [0, 1, -1, 2])]
)
def test_places_that_the_caches_do_not_have(name: str, values: list[int]) -> None:
    problem = decode_problem(2, 1, 32, torch.float32) | {name: torch.tensor(values)}
    with pytest.raises(ValueError, match=rf"{name}\[2\] is {values[2]}"):
        decode_attention(**problem)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def check_rows(
    function: Callable[..., Any], reference: Callable[..., Any], inputs: tuple[Any, ...]
) -> None:
    """Against the reference in float64, on any number of threads."""
    doubled = (x.double() if isinstance(x, Tensor) else x for x in inputs)
    exact = reference(*doubled)
    dtype = inputs[0].dtype
    outcomes = []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        outcomes.append(function(*inputs))
    as_tuples = [x if isinstance(x, tuple) else (x,) for x in (*outcomes, exact)]
    for one, three, truth in zip(*as_tuples, strict=True):
        assert torch.equal(one, three) and one.shape == truth.shape
        is_statistic = one.dtype != dtype
        assert_near(one, truth, torch.float32 if is_statistic else dtype)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (300, 128), (2, 3, 70), (0, 8)])
def test_rows(
    instruction_set: str, dtype: torch.dtype, shape: tuple[int, ...], restore_threads: None
) -> None:
    if 0 in shape:
        assert cpu_layers.swiglu(torch.zeros(0, 16, dtype=dtype)).shape == (0, 8)
        assert cpu_layers.rms_norm(torch.zeros(shape, dtype=dtype), torch.ones(8), 1e-6)[
            0
        ].shape == (0, 8)
        return
    x, residual, weight = (noise(*s).to(dtype) for s in (shape, (1, *shape), shape[-1:]))
    check_rows(cpu_layers.rms_norm, reference_layers.rms_norm, (x, weight, 1e-6))
    if dtype == torch.float32:  # in bfloat16 the sum is rounded before the norm: the next test
        inputs = (x, residual[0], weight, 1e-6)
        check_rows(cpu_layers.add_rms_norm, reference_layers.add_rms_norm, inputs)
    gate_up = noise(*shape[:-1], 2 * shape[-1]).mul(20).to(dtype)
    check_rows(cpu_layers.swiglu, reference_layers.swiglu, (gate_up,))


def test_the_norm_of_a_sum_is_that_of_the_rounded_sum(instruction_set: str) -> None:
    x, residual, weight = (noise(5, 70).bfloat16(), noise(70, 5).T.bfloat16(), noise(70).bfloat16())
    y, total, rstd = cpu_layers.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, x + residual)
    for got, expected in zip((y, rstd), cpu_layers.rms_norm(total, weight, 1e-6), strict=True):
        assert torch.equal(got, expected)


def test_swiglu_far_out(instruction_set: str) -> None:
    gates = torch.tensor([-1e38, -200.0, -88.0, -20.0, 0.0, 20.0, 100.0, 1e38, torch.nan])
    got = cpu_layers.swiglu(torch.cat([gates, torch.ones(9)]))
    torch.testing.assert_close(got, torch.nn.functional.silu(gates), equal_nan=True)


@dtypes
@pytest.mark.parametrize("inverse", [False, True])
def test_rope(
    instruction_set: str, dtype: torch.dtype, inverse: bool, restore_threads: None
) -> None:
    angles = noise(9, 20)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    packed = noise(9, 2, 5, 40).to(dtype)
    transposed = noise(9, 40, 3).to(dtype).transpose(1, 2)
    inputs = (
        packed[:, 0, 0],
        packed[:, :, 0],
        packed[:, :, :3],
        packed[:, None, :, 1:],
        transposed,
    )
    for x in inputs:
        check_rows(cpu_layers.rope, reference_layers.rope, (x, cos, sin, inverse))


def test_bfloat16_is_rounded_to_even_and_keeps_nan(instruction_set: str) -> None:
    """By a norm that multiplies by 1: what comes out is its own input, rounded."""
    x = torch.tensor([1.0, 1 + 2**-8, 1 + 3 * 2**-8, torch.nan, torch.inf, -0.0])
    cos = torch.ones(6, 1, dtype=torch.bfloat16)
    halves = torch.stack([x.bfloat16(), (x - x.bfloat16()).bfloat16()], -1)
    got = cpu_layers.rope(halves, cos, -cos, False)[:, 0]
    assert torch.equal(got.isnan(), halves.sum(-1).isnan())
    assert torch.equal(got.nan_to_num(), halves.float().sum(-1).bfloat16().nan_to_num())
