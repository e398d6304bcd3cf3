# SPDX-License-Identifier: Apache-2.0
"""Paths into nested rows: what they lead to, what is said where they lead nowhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from satori_fast.data.field_paths import NoSuchField, paths_in, root_of, steps_of, value_at

ROW: dict[str, Any] = {
    "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "2 + 2?"}],
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "a.b": "dotted",
    "notes": np.array([[1, 2], [3, 4]]),
}


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("question", ("question",)),
        ("prompt[0].content", ("prompt", 0, "content")),
        ("prompt[-1].content", ("prompt", -1, "content")),
        ("a b.c-d[10][2]", ("a b", "c-d", 10, 2)),
    ],
)
def test_names_and_indices(path: str, steps: tuple[str | int, ...]) -> None:
    assert steps_of(path) == steps
    assert root_of(path) == steps[0]


@pytest.mark.parametrize("path", ["", ".", "a.", "a..b", "[0]", "a[", "a[x]", "a[0]b", "a.[0]"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ValueError, match="is no field and no path to one"):
        steps_of(path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("prompt[0].content", "s"),
        ("prompt[-1].content", "2 + 2?"),
        ("reward_model.ground_truth", "4"),
        ("a.b", "dotted"),  # a field of that very name comes first
        ("notes[1][0]", 3),
    ],
)
def test_values_inside(path: str, value: object) -> None:
    assert value_at(ROW, path) == value


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("prompt[2].content", "[2] of 2 entries"),
        ("prompt.content", "'content' of list"),
        ("reward_model[0]", "[0] of dict"),
        ("reward_model.truth", "'truth' of style, ground_truth"),
        ("none", "'none' of prompt, reward_model, a.b, notes"),
    ],
)
def test_paths_that_lead_nowhere(path: str, message: str) -> None:
    with pytest.raises(NoSuchField) as caught:
        value_at(ROW, path)
    assert str(caught.value) == message


def test_paths_that_a_message_proposes() -> None:
    assert paths_in(ROW["prompt"], "prompt") == ["prompt[0].role", "prompt[0].content"]
    assert paths_in(ROW["reward_model"], "r") == ["r.style", "r.ground_truth"]
    assert paths_in({}, "empty") == [] and paths_in([], "none") == ["none"]
    assert root_of("a.b", tuple(ROW)) == "a.b" and root_of("a.b") == "a"
