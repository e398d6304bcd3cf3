# SPDX-License-Identifier: Apache-2.0
"""Questions that repeat an earlier one in nearly the same words, found by MinHash and LSH.

As The Stack was deduplicated (Kocetkov et al., arXiv 2211.15533): sets of word 5-shingles are
compared through minimal hashes, and only what falls into one bucket is compared at all. Candidates
are then compared exactly, so that a bucket decides nothing.

Numbers count on their own. Word problems are written from templates: "2 + 3 apples" and "2 + 4
apples" share nearly all of their shingles and are two questions, with two answers. So a question
can repeat only one that has the same multiset of numbers, in digits or in words, and of signs. This
also keeps a template with thousands of fillings from being compared with itself.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from satori_fast.data.curation import LeftOut
from satori_fast.types import Problem

NEAR_DUPLICATE = "near_duplicate"
_SHINGLE_WORDS = 5
_NUM_PERMUTATIONS = 128
_SEED = 1  # of the permutations, the same for every run
_RECALL = 0.99  # of pairs that are just similar enough

_IN_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million billion dozen half halves third thirds fourth fourths quarter "
    "quarters fifth fifths sixth seventh eighth ninth tenth once twice thrice double triple"
)
_NUMBER_WORDS = frozenset(_IN_WORDS.split())
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+(?![\d])")
_WORD = re.compile(r"\d+(?:\.\d+)?|\\?[^\W\d_]+")
# A hyphen between letters is none, as in "two-digit"; nor is a comparison in a tag.
_QUANTITY = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[+*/^=<>\u00d7\u00f7\u00b7]|[-\u2212]")
_SIGN = re.compile(r"[+*/^=<>\u00d7\u00f7\u00b7\-\u2212]")

Numbers = tuple[tuple[str, int], ...]


def numbers_of(question: str) -> Numbers:
    """The numbers of a question, in digits or words, and its signs, each with its count, sorted.

    Example: "Two-digit: 1,200 + 3 + 3" gives (("+", 2), ("1200", 1), ("3", 2), ("two", 1)).
    """
    text = re.sub(r"(?<=[^\W\d_])-(?=[^\W\d_])", " ", _whole_numbers(question).casefold())
    found = Counter(
        word
        for word in _QUANTITY.findall(text)
        if word[0].isdigit() or _SIGN.fullmatch(word) or word in _NUMBER_WORDS
    )
    return tuple(sorted(found.items()))


def shingles(question: str) -> frozenset[str]:
    """Every five words in a row of a question, lower case, without punctuation; of a shorter one,
    all its words."""
    words = _WORD.findall(_whole_numbers(question).casefold())
    last = max(1, len(words) - _SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(last))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity of two sets that are not both empty: shared over all."""
    return len(one & other) / len(one | other)


def distinct_questions(
    problems: Sequence[Problem], threshold: float, left_out: LeftOut
) -> list[Problem]:
    """The problems without those that repeat an earlier one that is kept, in their order.

    threshold: the similarity of shingles from which a question with the same numbers is a
    repetition. What is left out goes into the books, beside what it repeats.
    """
    same_numbers: defaultdict[Numbers, list[int]] = defaultdict(list)
    for place, problem in enumerate(problems):
        same_numbers[numbers_of(problem.question)].append(place)
    repeated: dict[int, int] = {}
    for places in same_numbers.values():
        if len(places) > 1:
            found = _repetitions([problems[place].question for place in places], threshold)
            repeated |= {places[late]: places[early] for late, early in found.items()}
    kept: list[Problem] = []
    for place, problem in enumerate(problems):
        if place in repeated:
            first = problems[repeated[place]]
            detail = f"repeats {first.problem_id}: {first.question}"
            left_out.add(NEAR_DUPLICATE, problem, detail=detail)
        else:
            kept.append(problem)
    return kept


def bands(threshold: float) -> tuple[int, int]:
    """(bands, hashes of a band) for LSH: as long as bands can be while 99 of 100 pairs of this
    similarity s share one, 1 - (1 - s^length)^bands.

    A wrong candidate costs an exact comparison, a missed one a repeated question. Example: 0.7
    gives (32, 4), which find 99.98 % of pairs at 0.7, and take up 23 % at 0.3.
    """
    for length in range(_NUM_PERMUTATIONS // 2, 1, -1):
        number = _NUM_PERMUTATIONS // length
        if 1 - (1 - threshold**length) ** number >= _RECALL:
            return number, length
    return _NUM_PERMUTATIONS, 1


def _repetitions(questions: Sequence[str], threshold: float) -> dict[int, int]:
    """The place of each repetition, with the first place of a question kept that it repeats."""
    import datasketch  # pyright: ignore[reportMissingTypeStubs]

    library: Any = datasketch
    buckets = library.MinHashLSH(num_perm=_NUM_PERMUTATIONS, params=bands(threshold))
    unset = library.MinHash(num_perm=_NUM_PERMUTATIONS, seed=_SEED)
    repeated: dict[int, int] = {}
    for place, question in enumerate(questions):
        own = shingles(question)
        hashes = unset.copy()
        hashes.update_batch([shingle.encode() for shingle in own])
        found: list[int] = buckets.query(hashes)
        for early in sorted(found):
            if similarity(own, shingles(questions[early])) >= threshold:
                repeated[place] = early
                break
        else:
            buckets.insert(place, hashes, check_duplication=False)
    return repeated


def _whole_numbers(text: str) -> str:
    """1,200 and 1{,}200 as 1200."""
    return _THOUSANDS.sub(lambda found: re.sub(r"[^\d]", "", found.group()), text)
