# SPDX-License-Identifier: Apache-2.0
"""Similarity of 400 pairs of texts, as tokens and as characters: ours, difflib, cydifflib. The
results are equal to the last bit, which is checked first."""

from __future__ import annotations

import difflib

import cydifflib
import numpy as np
import pytest

from satori_fast.kernels import sequence_similarity

NUM_PAIRS, SHORTEST, LONGEST = 400, 300, 2000
VOCABULARY = 2000
TARGETS = {"difflib": 20.0, "cydifflib": 3.0}


def make_texts() -> list[tuple[list[int], list[int]]]:
    """Pairs of texts of 300 to 2000 words, as word numbers; frequent words are very frequent. In
    each pair, phrases of the first come back in the second, between others."""
    rng = np.random.default_rng(0)
    frequency = 1.0 / np.arange(3, VOCABULARY + 3)
    frequency /= frequency.sum()
    pairs = []
    for _ in range(NUM_PAIRS):
        length = int(rng.integers(SHORTEST, LONGEST + 1))
        a, b = rng.choice(VOCABULARY, (2, length), p=frequency)
        for start in range(0, length, 20):
            if rng.random() < 0.5:
                b[start : start + 12] = a[start : start + 12]
        pairs.append((a.tolist(), b.tolist()))
    return pairs


def as_characters(pairs: list[tuple[list[int], list[int]]]) -> list[tuple[str, str]]:
    """The same texts spelled out in words of 2 to 8 letters, cut to at most 2000 characters."""
    rng = np.random.default_rng(1)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    weights = 1.0 / np.arange(2, len(letters) + 2)
    weights /= weights.sum()
    words = ["".join(rng.choice(letters, rng.integers(2, 9), p=weights)) for _ in range(VOCABULARY)]

    def spelled(numbers: list[int]) -> str:
        # As many characters as the text has words: the lengths stay between 300 and 2000.
        return " ".join(words[number] for number in numbers)[: len(numbers)]

    return [(spelled(a), spelled(b)) for a, b in pairs]


def ratios(library, pairs, *, autojunk: bool) -> list[float]:
    return [library.SequenceMatcher(None, a, b, autojunk).ratio() for a, b in pairs]


@pytest.mark.parametrize("autojunk", [False, True], ids=["exact", "autojunk"])
@pytest.mark.parametrize("what", ["tokens", "characters"])
def test_sequence_similarity(race, one_thread, what: str, autojunk: bool) -> None:
    numbers = make_texts()
    # difflib takes strings as they are; ours takes lists of integers.
    texts = numbers if what == "tokens" else as_characters(numbers)
    is_text = what == "characters"
    a, b = ([list(map(ord, p[i])) if is_text else p[i] for p in texts] for i in (0, 1))

    def ours() -> list[float]:
        return sequence_similarity(a, b, autojunk=autojunk).tolist()

    assert ours() == ratios(difflib, texts, autojunk=autojunk)
    race(
        what + (" autojunk" if autojunk else ""),
        {
            "ours": ours,
            "difflib": lambda: ratios(difflib, texts, autojunk=autojunk),
            "cydifflib": lambda: ratios(cydifflib, texts, autojunk=autojunk),
        },
        targets=TARGETS,
        repeats=3,
        warmup=0,
        extra={"pairs": NUM_PAIRS, "mean_similarity": round(float(np.mean(ours())), 3)},
    )
