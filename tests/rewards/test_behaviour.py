# SPDX-License-Identifier: Apache-2.0
"""The behaviour of the similarity reward: worked values, difflib, and what is left out."""

from __future__ import annotations

import difflib
import json
from statistics import fmean, pstdev

import pytest

from satori_fast.data.formats.steps import PAPER, WORDS, StepDialect
from satori_fast.rewards.behaviour import (
    MAX_TARGETS,
    GranularityBehaviour,
    SimilarityBehaviour,
    similarity_behaviour,
)
from satori_fast.types import Prefix, Problem

PLUS, TIMES = "plus 25 : 37 + 25 = 62", "times 3 : 62 * 3 = 86"


def asking(target: str | None, title: str | None = None) -> Problem:
    return Problem("1", "start 37", None, Prefix("", "step", target=target, title=title))


def lengths_of_words(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def measured(
    *targets: str, dialect: StepDialect = WORDS, autojunk: bool = False
) -> SimilarityBehaviour:
    problems = [asking(target) for target in targets]
    return similarity_behaviour(
        problems, dialect=dialect, encode=lengths_of_words, autojunk=autojunk
    )


def row(behaviour: SimilarityBehaviour, granularity: str) -> GranularityBehaviour:
    (found,) = [each for each in behaviour.rows if each.granularity == granularity]
    return found


def test_worked_values_in_words() -> None:
    words = row(measured(PLUS, TIMES), "words")
    assert (words.num_targets, words.median_length, words.longest) == (2, 8.0, 8)
    means = {case: figures.mean for case, figures in words.cases.items()}
    assert means == pytest.approx(
        {
            "itself": 1.0,
            "digit": 14 / 16,
            "half": 8 / 12,
            "double": 16 / 24,
            "title": 6 / 11,  # the offset of a copied title
            "unrelated": 4 / 16,  # ":" and one word more
        }
    )
    # Both targets are of one form.
    assert all(figures.std == pytest.approx(0.0) for figures in words.cases.values())


def test_values_are_those_of_difflib() -> None:
    targets = [PLUS, "minus 4 : 62 - 4 = 58", "answer : 58", TIMES, "so it is even"]
    others = [targets[(i + 2) % 5] for i in range(5)]
    behaviour = measured(*targets)
    spelled = {"characters": list, "words": str.split, "tokens": lengths_of_words}
    for granularity, spell in spelled.items():
        cases = row(behaviour, granularity).cases
        expected = {
            "half": [
                difflib.SequenceMatcher(None, a[: len(a) // 2], a, False).ratio()
                for a in map(spell, targets)
            ],
            "double": [
                difflib.SequenceMatcher(None, spell(f"{a} {b}"), spell(a), False).ratio()
                for a, b in zip(targets, others, strict=True)
            ],
            "unrelated": [
                difflib.SequenceMatcher(None, spell(b), spell(a), False).ratio()
                for a, b in zip(targets, others, strict=True)
            ],
        }
        for case, values in expected.items():
            figures = {str(name): figures for name, figures in cases.items()}[case]
            assert figures.mean == pytest.approx(fmean(values), abs=1e-12)
            assert figures.std == pytest.approx(pstdev(values), abs=1e-12)
            assert figures.num_targets == 5


def test_tokens_are_those_of_the_tokenizer() -> None:
    # 4 2 1 2 1 2 1 2 and 5 1 1 2 1 1 1 2; of the slip 62 -> 63 the lengths say nothing.
    tokens = row(measured(PLUS, TIMES), "tokens")
    assert tokens.cases["digit"].mean == 1.0 and tokens.longest == 8


def test_what_cannot_be_made_is_left_out() -> None:
    # No title, no digit, one word, nothing else to compare with.
    assert set(row(measured("even"), "words").cases) == {"itself"}
    assert set(row(measured("even"), "characters").cases) == {"itself", "half"}
    # Of four targets one has a title, and pairs of equal texts are no unrelated ones.
    some = row(measured(PLUS, "odd", "even", "odd"), "words").cases
    assert (some["title"].num_targets, some["digit"].num_targets) == (1, 1)
    assert (some["unrelated"].num_targets, some["double"].num_targets) == (2, 2)


def test_a_title_that_the_prompt_tells_is_not_looked_for_in_the_target() -> None:
    problems = [asking("12 : 4 = 3", title="divide")]
    behaviour = similarity_behaviour(problems, dialect=WORDS, encode=lengths_of_words)
    assert "title" not in row(behaviour, "words").cases


def test_titles_as_the_paper_writes_them() -> None:
    # Two of the words "2." "**Add**" "37" "+" "25" "=" "62".
    titled = row(measured("2. **Add** 37 + 25 = 62", dialect=PAPER), "words").cases["title"]
    assert titled.mean == pytest.approx(4 / 9)
    assert "title" not in row(measured("2. 37 + 25 = 62", dialect=PAPER), "words").cases


def test_a_nine_becomes_a_zero() -> None:
    digit = row(measured("x 19 y"), "characters").cases["digit"]
    assert digit.mean == pytest.approx(difflib.SequenceMatcher(None, "x 10 y", "x 19 y").ratio())


def test_autojunk_is_as_it_is_given() -> None:
    # Of the two targets one has 200 characters: there all of them are junk.
    targets = ("abcdefghij" * 20, ("abcdefghij" * 20)[5:])
    without, given = (
        row(measured(*targets, autojunk=autojunk), "characters").cases["unrelated"].mean
        for autojunk in (False, True)
    )
    assert (without, given) == pytest.approx((0.987342, 0.987342 / 2), abs=1e-6)


def test_many_problems_are_spread_evenly_and_others_do_not_count() -> None:
    number = MAX_TARGETS * 3 // 2
    problems = [asking("one " * (1 + i)) for i in range(number)]
    problems += [Problem("1", "start", "1"), asking(None), asking(" ")]
    words = row(similarity_behaviour(problems, dialect=WORDS, encode=lengths_of_words), "words")
    assert words.num_targets == MAX_TARGETS and words.longest == number - 1
    assert words.median_length == pytest.approx(number / 2, abs=2)


def test_rows_are_json() -> None:
    rows = json.loads(json.dumps(measured(PLUS, TIMES, autojunk=True).as_rows()))
    assert [each["granularity"] for each in rows] == ["characters", "words", "tokens"]
    assert rows[1]["autojunk"] is True and rows[1]["median_length"] == 8.0
    assert rows[1]["cases"]["digit"] == {"mean": 0.875, "std": 0.0, "num_targets": 2}


def test_without_a_target_there_is_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="no step problem with a target"):
        measured()
