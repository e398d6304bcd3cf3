# SPDX-License-Identifier: Apache-2.0
"""Keys and sums: what makes two requests the same, and what they cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from satori_fast.synthesis.chat import ChatReply, ChatRequest, ChatSampling, Usage

SAMPLING = ChatSampling(temperature=0.3, max_new_tokens=64)
REQUEST = ChatRequest("What?", SAMPLING)


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, prompt="What ?"),
        replace(REQUEST, sample=1),
        *(
            replace(REQUEST, sampling=replace(SAMPLING, **change))
            for change in (
                {"temperature": 0.2},
                {"max_new_tokens": 65},
                {"top_p": 0.9},
                {"seed": 1},
            )
        ),
    ],
)
def test_every_part_of_a_request_is_in_its_key(other: ChatRequest) -> None:
    assert other.key("critic", "model") != REQUEST.key("critic", "model")


def test_role_and_model_are_in_the_key() -> None:
    keys = {REQUEST.key(*names) for names in (("a", "b"), ("b", "a"), ("ab", ""), ("a",))}
    assert len(keys) == 4
    assert REQUEST.key("a", "b") == replace(REQUEST).key("a", "b")
    assert len(bytes.fromhex(REQUEST.key())) == 16


def test_cost_is_per_million_tokens() -> None:
    usage = Usage()
    usage.add(ChatReply("a", prompt_tokens=300, completion_tokens=100, num_retries=2))
    usage.add(ChatReply("b", prompt_tokens=200, completion_tokens=0))
    assert usage == Usage(requests=2, retries=2, prompt_tokens=500, completion_tokens=100)
    # 500 * 2 / 1e6 + 100 * 10 / 1e6
    assert usage.cost(2.0, 10.0) == pytest.approx(0.002)
