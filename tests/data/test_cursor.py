# SPDX-License-Identifier: Apache-2.0
"""The cursor drops and repeats nothing, resumes exactly; the split depends on keys alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.data.cursor import ProblemCursor, is_heldout


@given(
    st.integers(1, 12),
    st.lists(st.integers(0, 30), max_size=8),
    st.integers(0, 2**40),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_holds_every_item_once(
    num_items: int, counts: list[int], seed: int, shuffle: bool
) -> None:
    cursor = ProblemCursor(range(num_items), seed=seed, shuffle=shuffle)
    taken: list[int] = []
    for count in counts:
        chunk = cursor.take(count)
        assert len(chunk) == count
        taken += chunk
    assert cursor.epoch == len(taken) // num_items
    for start in range(0, len(taken) - num_items + 1, num_items):
        assert sorted(taken[start : start + num_items]) == list(range(num_items))


@given(st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_resumed_equals_uninterrupted(before: int, after: int) -> None:
    cursor = ProblemCursor("abcdefg", seed=3)
    cursor.take(before)
    state = json.loads(json.dumps(cursor.state_dict()))
    expected = cursor.take(after)
    resumed = ProblemCursor("abcdefg", seed=3)
    resumed.take(5)
    resumed.load_state_dict(state)
    assert resumed.take(after) == expected


def test_order_changes_with_epoch_and_seed() -> None:
    first, second = ProblemCursor(range(50), seed=1), ProblemCursor(range(50), seed=2)
    epoch_0, epoch_1 = first.take(50), first.take(50)
    assert epoch_0 != epoch_1
    assert epoch_0 != second.take(50)
    assert epoch_0 == ProblemCursor(range(50), seed=1).take(50)


def test_unshuffled_keeps_the_order() -> None:
    assert ProblemCursor("abc", shuffle=False).take(7) == list("abcabca")


def test_state_of_other_data_is_refused() -> None:
    state = ProblemCursor("abc", seed=1).state_dict()
    with pytest.raises(ValueError, match="num_items was 3, now it is 4"):
        ProblemCursor("abcd", seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="seed was 1, now it is 2"):
        ProblemCursor("abc", seed=2).load_state_dict(state)


def test_no_items_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        ProblemCursor([])


def test_the_asked_share_is_held_out() -> None:
    num_heldout = sum(is_heldout(f"problem {i}", 0.25) for i in range(4000))
    # Binomial with standard deviation 27.4: five of them.
    assert abs(num_heldout - 1000) < 137


def test_a_larger_share_holds_out_the_same_items_and_more() -> None:
    items = [f"problem {i}" for i in range(200)]
    smaller, larger = ({i for i in items if is_heldout(i, share)} for share in (0.3, 0.5))
    assert smaller < larger
    assert not any(is_heldout(i, 0.0) for i in items) and all(is_heldout(i, 1.0) for i in items)


def test_the_held_out_share_is_checked() -> None:
    with pytest.raises(ValueError, match="heldout_fraction"):
        is_heldout("a", 1.5)
