# SPDX-License-Identifier: Apache-2.0
"""Packed attention against a dense fp64 mask, and the plan's bookkeeping."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from satori_fast.backbone.attention import (
    AttentionPlan,
    PackedCoreAttention,
    plan_attention,
    rotary_frequencies,
)

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _plan(lengths: list[int], head_dim: int = 8) -> AttentionPlan:
    return plan_attention(
        torch.tensor([0, *lengths]).cumsum(0).int(),
        max(lengths),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        frequencies=rotary_frequencies(head_dim, {"rope_theta": 1e4}),
        dtype=torch.float32,
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=40).filter(any))
def test_plan_holds_every_token_once_in_a_rectangle_of_its_sequence(lengths: list[int]) -> None:
    plan = _plan(lengths)
    num_tokens = sum(lengths)
    assert plan.slots is not None
    tokens = plan.slots.rows
    assert torch.equal(tokens[plan.slots.places], torch.arange(num_tokens))
    assert sum(count * length for count, length in plan.rectangles) == len(tokens)
    assert len(tokens) <= 1.25 * num_tokens
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    offset = 0
    for count, length in plan.rectangles:
        rows = owner[tokens[offset : offset + count * length]].view(count, length)
        assert (rows == rows[:, :1]).all()
        offset += count * length


def _dense_attention(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    index = torch.arange(len(owner))
    seen = (owner[:, None] == owner) & (index[:, None] >= index)
    scores = torch.einsum("ihd,jhd->hij", query, key) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, value).flatten(1)


# One sequence; one token; all lengths different; many equal ones.
@pytest.mark.parametrize("lengths", [[9], [1], [17, 3, 1, 30, 8, 9], [5] * 12])
def test_packed_attention_equals_a_dense_mask_in_fp64(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    plan = _plan(lengths)
    assert plan.slots is not None
    slots = plan.slots
    shapes = [(sum(lengths), heads, 8) for heads in (4, 2, 2)]
    dense = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]
    packed = [x.detach().float()[slots.rows].requires_grad_() for x in dense]
    expected = _dense_attention(*dense, lengths)
    actual = PackedCoreAttention(None)(*packed, plan)[slots.places]
    torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=1e-5)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    expected.backward(upstream)
    actual.backward(upstream.float())
    for mine, theirs in zip(packed, dense, strict=True):
        torch.testing.assert_close(
            mine.grad[slots.places].double(), theirs.grad, atol=5e-6, rtol=1e-4
        )


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 1e6}, _LLAMA3])
def test_frequencies_equal_those_of_transformers(rope: dict) -> None:
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters=rope)
    if rope["rope_type"] == "default":
        expected = rope["rope_theta"] ** (-torch.arange(0, 128, 2).double() / 128)
    else:
        expected = ROPE_INIT_FUNCTIONS["llama3"](config)[0]
    torch.testing.assert_close(rotary_frequencies(128, rope), expected.float(), rtol=1e-6, atol=0.0)


def test_unknown_rope_type_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="yarn"):
        rotary_frequencies(8, {"rope_type": "yarn", "rope_theta": 1e4})
