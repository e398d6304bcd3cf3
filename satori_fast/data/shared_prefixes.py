# SPDX-License-Identifier: Apache-2.0
"""Sequences that begin alike: the trunk of a model computes what they have in common once.

Eight samples of one problem repeat its prompt eight times, and often begin with the same words.
Under a causal mask a token's hidden state depends on the tokens before it alone, so equal
beginnings have equal rows, and their gradients add up. Laid in lexicographic order, each sequence
shares with the one before it all that it shares with any earlier one: the sequences are a trie, one
row for each of its nodes.

Here: the order, how much neighbours share, and the rows that follow from it. Bins of sequences are
`packing`; what is done with the rows, `backbone.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from satori_fast.types import SharedRows

Indices = npt.NDArray[np.int64]


def lexicographic(sequences: Sequence[np.ndarray]) -> Indices:
    """Places of the sequences in an order in which those that begin alike are neighbours.

    The order is that of their bytes: it puts prefixes together as that of their numbers would.
    """
    keys = [np.ascontiguousarray(tokens, dtype=np.int64).tobytes() for tokens in sequences]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def shared_lengths(sequences: Sequence[np.ndarray]) -> Indices:
    """Tokens that each sequence begins with and the one before it too: numbers, int64 [N].

    >>> shared_lengths([np.array([5, 6, 7]), np.array([5, 6, 8, 9]), np.array([5])])
    array([0, 2, 1])
    """
    lengths = np.zeros(len(sequences), dtype=np.int64)
    for place in range(1, len(sequences)):
        before, tokens = sequences[place - 1], sequences[place]
        most = min(len(before), len(tokens))
        differ = np.flatnonzero(before[:most] != tokens[:most])
        lengths[place] = differ[0] if len(differ) else most
    return lengths


def shared_rows(lengths: Indices, shared: Indices, *, multiple: int = 1) -> SharedRows | None:
    """The rows of sequences of these lengths, of which each has its first `shared` tokens in common
    with the one before it; None where nothing is shared.

    multiple: that the number of rows has to be of, as the sum of `lengths` is: less is shared then.
    """
    shared = _rounded(shared, multiple)
    if not shared.any():
        return None
    begins: Indices = np.cumsum(lengths) - lengths
    positions: Indices = np.arange(int(lengths.sum())) - np.repeat(begins, lengths)
    is_new: npt.NDArray[np.bool_] = positions >= np.repeat(shared, lengths)
    tokens = np.flatnonzero(is_new)
    rows: Indices = np.cumsum(is_new) - 1
    for place in np.flatnonzero(shared):
        begin, before, length = begins[place], begins[place - 1], shared[place]
        rows[begin : begin + length] = rows[before : before + length]
    return SharedRows(torch.as_tensor(tokens), torch.as_tensor(rows), _repeats(rows))


def _rounded(shared: Indices, multiple: int) -> Indices:
    """Lengths whose sum is a multiple, at most those given; the last ones give way."""
    excess = int(shared.sum()) % multiple
    if not excess:
        return shared
    left = np.maximum(shared.sum() - excess - (np.cumsum(shared) - shared), 0)
    return np.minimum(shared, left)


def _repeats(rows: Indices) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows)
    begins = np.cumsum(counts) - counts
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for count in np.unique(counts[counts > 1]):
        repeated = np.flatnonzero(counts == count)
        places = order[begins[repeated, None] + np.arange(count)]
        found.append((torch.as_tensor(repeated), torch.as_tensor(places)))
    return tuple(found)
