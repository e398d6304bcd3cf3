# SPDX-License-Identifier: Apache-2.0
"""The penalty of long responses, against equation 13 of DAPO with its own numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from satori_fast.rewards.length import LengthPenalty
from tests.algorithms.test_advantages import make_trajectory


@pytest.mark.parametrize(
    ("num_tokens", "value"), [(1, 0), (16_384, 0), (17_408, -0.25), (18_432, -0.5), (20_480, -1)]
)
def test_the_papers_line(num_tokens: int, value: float) -> None:
    assert LengthPenalty(20_480).of_length(num_tokens) == pytest.approx(value)


def test_a_cut_response_has_all_of_it_however_short() -> None:
    whole = make_trajectory(2, [9])
    rewards = LengthPenalty(10)([whole, replace(whole, finish="length"), make_trajectory(2, [8])])
    assert [reward.terms for reward in rewards] == [
        {"overlong": -0.5},
        {"overlong": -1.0},
        {"overlong": 0},
    ]
