# SPDX-License-Identifier: Apache-2.0
"""Rows of sequences that begin alike: those of a trie that is written down in plain Python."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.data.shared_prefixes import lexicographic, shared_lengths, shared_rows

# Few different tokens, so that many sequences begin alike, and some are another's beginning.
SEQUENCES = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=12
).map(lambda lists: [np.array(each, dtype=np.int32) for each in lists])


def prefixes(sequence: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(sequence[: end + 1].tolist()) for end in range(len(sequence))]


@settings(max_examples=150, deadline=None)
@given(SEQUENCES)
def test_rows_are_the_nodes_of_a_trie(sequences: list[np.ndarray]) -> None:
    ordered = [sequences[place] for place in lexicographic(sequences)]
    lengths = np.array([len(each) for each in ordered])
    shared = shared_rows(lengths, shared_lengths(ordered))
    nodes = [prefix for sequence in ordered for prefix in prefixes(sequence)]
    if shared is None:
        assert len(set(nodes)) == len(nodes)
        return
    assert len(shared.tokens) == len(set(nodes)) < len(nodes)
    rows = shared.rows.tolist()
    # A row stands for one prefix, and names the first token that it stands for.
    assert len(set(zip(rows, nodes, strict=True))) == len(set(nodes))
    assert shared.tokens.tolist() == [rows.index(row) for row in range(len(shared.tokens))]
    repeated = {
        row: sorted(places)
        for of_rows, tokens in shared.repeats
        for row, places in zip(of_rows.tolist(), tokens.tolist(), strict=True)
    }
    counted = {row: [t for t, r in enumerate(rows) if r == row] for row in set(rows)}
    assert repeated == {row: tokens for row, tokens in counted.items() if len(tokens) > 1}
    assert len(shared.repeats) == len({len(tokens) for tokens in repeated.values()})


@settings(max_examples=100, deadline=None)
@given(SEQUENCES, st.sampled_from([2, 4]))
def test_rows_are_shared_as_far_as_ranks_can_divide_them(
    sequences: list[np.ndarray], multiple: int
) -> None:
    ordered = [sequences[place] for place in lexicographic(sequences)]
    lengths = np.array([len(each) for each in ordered])
    alike = np.append(shared_lengths(ordered), 0)
    lengths = np.append(lengths, -lengths.sum() % multiple + multiple)
    shared = shared_rows(lengths, alike, multiple=multiple)
    num_rows = lengths.sum() if shared is None else len(shared.tokens)
    assert num_rows % multiple == 0
    assert lengths.sum() - alike.sum() <= num_rows < lengths.sum() - alike.sum() + multiple


def test_siblings_by_hand() -> None:
    # One prompt (7 8 9) and two responses that part at their second token; another prompt.
    sequences = [np.array(each) for each in ([7, 8, 9, 1, 2], [7, 8, 9, 1, 3, 4], [7, 5])]
    assert lexicographic(sequences).tolist() == [2, 0, 1]
    lengths = shared_lengths(sequences)
    assert lengths.tolist() == [0, 4, 1]
    shared = shared_rows(np.array([5, 6, 2]), lengths)
    assert shared is not None
    assert shared.tokens.tolist() == [0, 1, 2, 3, 4, 9, 10, 12]
    assert shared.rows.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 5, 6, 0, 7]
    (twice, at_twice), (thrice, at_thrice) = shared.repeats
    assert (twice.tolist(), at_twice.tolist()) == ([1, 2, 3], [[1, 6], [2, 7], [3, 8]])
    assert (thrice.tolist(), at_thrice.tolist()) == ([0], [[0, 5, 11]])
    assert shared_rows(np.array([3, 3]), np.array([0, 0])) is None
