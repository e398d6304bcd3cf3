# SPDX-License-Identifier: Apache-2.0
"""Sampled tokens against the cumulative probabilities in float64, on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from satori_fast.kernels import cpu_head, implementation, reference, sample_tokens, sampling


@pytest.fixture(params=cpu_head.instruction_sets() or ["none"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    before = cpu_head.instruction_set()
    if request.param != "none":
        cpu_head.use_instruction_set(request.param)
    yield
    if request.param != "none":
        cpu_head.use_instruction_set(before)


def problem(num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_columns)
    logits = 3 * torch.randn(num_rows, num_columns, generator=generator)
    return logits, torch.rand(num_rows, generator=generator, dtype=torch.float64)


# Around the lanes of a vector and the 256 columns of a block.
@pytest.mark.parametrize("num_columns", [1, 3, 8, 100, 256, 257, 1000, 5000])
def test_tokens_and_logprobs_are_those_of_float64(instruction_set: None, num_columns: int) -> None:
    logits, uniform = problem(400, num_columns)
    tokens, logprobs = sample_tokens(logits, uniform, temperature=0.7)
    cumulative = (logits.double() / 0.7).softmax(-1).cumsum(-1)
    # Within rounding of the sums, the drawn number lies in the token's interval.
    column = tokens[:, None]
    upper = cumulative.gather(1, column)[:, 0]
    lower = upper - (logits.double() / 0.7).softmax(-1).gather(1, column)[:, 0]
    assert ((lower - 1e-6 <= uniform) & (uniform <= upper + 1e-6)).all()
    exact_tokens, _ = sample_tokens(logits.double(), uniform, temperature=0.7)
    assert (tokens == exact_tokens).float().mean() > 0.99
    exact = (logits.double() / 0.7).log_softmax(-1).gather(1, column)[:, 0]
    torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=2e-6)


def test_a_row_depends_on_nothing_else(instruction_set: None) -> None:
    logits, uniform = problem(50, 700)
    before = torch.get_num_threads()
    results = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        results.append(sample_tokens(logits, uniform))
    torch.set_num_threads(before)
    for tokens, logprobs in results:
        assert torch.equal(tokens, results[0][0]) and torch.equal(logprobs, results[0][1])
    for row in range(50):
        token, logprob = sample_tokens(logits[row : row + 1], uniform[row : row + 1])
        assert token[0] == results[0][0][row] and logprob[0] == results[0][1][row]


def test_the_ends_of_the_interval_and_columns_of_probability_0(instruction_set: None) -> None:
    logits = torch.full((2, 600), -torch.inf)
    logits[:, [5, 590]] = 2.0
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs = sample_tokens(logits, uniform)
    assert tokens.tolist() == [5, 590]
    torch.testing.assert_close(logprobs, torch.full((2,), 0.5).log())
    # Rows without stride, as a test of one distribution makes them.
    assert sample_tokens(logits[:1].expand(2, -1), uniform)[0].tolist() == [5, 590]


def test_the_reference_agrees_and_half_precision_is_widened() -> None:
    logits, uniform = problem(300, 150)
    tokens, logprobs = sample_tokens(logits, uniform)
    expected = reference.sample_tokens(logits, uniform, 1.0)
    assert (tokens == expected[0]).float().mean() > 0.99
    torch.testing.assert_close(logprobs[tokens == expected[0]], expected[1][tokens == expected[0]])
    tokens, logprobs = sample_tokens(logits.bfloat16(), uniform)
    assert torch.equal(tokens, sample_tokens(logits.bfloat16().float(), uniform)[0])
    assert logprobs.dtype == torch.float32


def test_opcheck_and_torch_compile() -> None:
    logits, uniform = problem(4, 30)
    outcome = torch.library.opcheck(sampling._sample_tokens, (logits, uniform, 0.8))
    assert set(outcome.values()) == {"SUCCESS"}
    compiled = torch.compile(sample_tokens, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        compiled(logits, uniform), sample_tokens(logits, uniform), strict=True
    ):
        assert torch.equal(got, expected)


def test_errors_name_the_argument() -> None:
    logits, uniform = problem(4, 30)
    with pytest.raises(ValueError, match=r"logits must be floating point \[B, V\]"):
        sample_tokens(logits[0], uniform)
    with pytest.raises(ValueError, match=r"uniform must be float64 \[4\], got torch.float32"):
        sample_tokens(logits, uniform.float())
    with pytest.raises(ValueError, match="temperature is 0"):
        sample_tokens(logits, uniform, temperature=0)


def test_implementation_by_device() -> None:
    assert implementation("sample_tokens", "cpu") in ("cpp", "reference")
    assert implementation("sample_tokens", "cuda") == "reference"
