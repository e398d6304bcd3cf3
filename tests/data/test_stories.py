# SPDX-License-Identifier: Apache-2.0
"""Stories: told by hand, read back whatever they are composed of, and as good English as a test can
see."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from satori_fast.data import stories
from satori_fast.data.stories import (
    ASIDES,
    KINDS,
    NAMES,
    OPENERS,
    THEMES,
    Aside,
    Event,
    Story,
    calculate,
    parse_story,
)
from satori_fast.data.word_problems import LEVELS, draw_story

QUESTION = (
    "Leo is 12 years old. Mia keeps 14 shells in a box. Then she finds 10 more in the attic. "
    "Later, Mia gives half of them to Leo. How many shells does she have in the end?"
)
STORY = Story(
    "collection",
    14,
    (Event("add", 10, 0, 1), Event("divide", 2, 2, 2, named=True)),
    "shells",
    "Mia",
    "Leo",
    begin=1,
    ask=1,
    aside=Aside(0, 12),
)


def drawn(count: int, *, seed: int = 0) -> list[Story]:
    rng = np.random.default_rng(seed)
    return [draw_story(LEVELS[1 + i % len(LEVELS)], rng) for i in range(count)]


def test_a_story_by_hand() -> None:
    assert STORY.question == QUESTION
    assert parse_story(QUESTION) == STORY
    assert STORY.values == (14, 24, 12) and STORY.answer == "12"
    assert STORY.numbers == (14, 10, 2, 12)
    assert [STORY.clause(place) for place in range(2)] == [
        "she finds 10 more",
        "she gives half of them to Leo",
    ]
    assert STORY.state("14 + 10 = 24") == "she has 14 + 10 = 24 shells"


def test_a_man_is_he() -> None:
    story = parse_story(
        "Leo has 20 dollars. A train ticket costs him 5 dollars. His father doubles his money. "
        "How many dollars does he have in the end?"
    )
    assert story.values == (20, 15, 30)
    assert story.clause(1) == "his father doubles his money"


def test_every_drawn_story_reads_back() -> None:
    for story in drawn(3000):
        assert parse_story(story.question) == story


def test_every_wording_reads_back_as_itself() -> None:
    """Each in a story of its own: no two wordings are the same text."""
    for name, theme in THEMES.items():
        place = theme.places[0] if theme.places else ""
        for kind in KINDS:
            for wording, text in enumerate(theme.wordings(kind)):
                number = theme.fixed_number(kind, wording) or 4
                named = "{she}" in text
                event = Event(kind, number, wording, opener=3, named=named)
                story = Story(name, 24, (event,), theme.things[-1], "Ruth", "Theo", place)
                read = parse_story(stories.said(story).question)
                assert read.events == (event,), text


@pytest.mark.parametrize(
    "changed",
    [
        "Mia keeps 14 shells in a box.",
        QUESTION.replace("attic", "cellar"),
        QUESTION.replace("14 shells", "14 forks"),
        QUESTION.replace(" she finds", " he finds"),
        QUESTION.replace("How many shells does she", "How many coins does she"),
        QUESTION.replace("How many", "Leo waits for 5 minutes. How many"),
        QUESTION.replace("Then she", "Leo waits for 5 minutes. Then she"),
        "Leo is 12 years old. How many shells does Mia have now?",
        QUESTION.replace("14", "014"),
        QUESTION + " ",
        "2 + 2",
        "",
    ],
)
def test_other_texts_are_no_stories(changed: str) -> None:
    with pytest.raises(ValueError, match="not a story of the built-in domain"):
        parse_story(changed)


@pytest.mark.parametrize(
    ("value", "kind", "number", "result"),
    [
        (14, "add", 9, 23),
        (14, "subtract", 14, 0),
        (4, "subtract", 9, None),
        (14, "multiply", 3, 42),
        (14, "divide", 7, 2),
        (14, "divide", 4, None),
    ],
)
def test_operations(value: int, kind: stories.Kind, number: int, result: int | None) -> None:
    assert calculate(value, kind, number) == result
    # A story ends nowhere below two: "1 shells" is no English.
    assert Event(kind, number).apply(value) == (result if (result or 0) >= 2 else None)


# --- what they are made of -----------------------------------------------------------------------


def test_there_are_dozens_of_wordings_of_each_step() -> None:
    for kind in KINDS:
        assert len({text for theme in THEMES.values() for text in theme.wordings(kind)}) >= 30
    assert len(NAMES) >= 30 and len(ASIDES) >= 10 and len(set(NAMES)) == len(NAMES)


def test_nothing_is_left_unsaid_that_a_reader_needs() -> None:
    for name, theme in THEMES.items():
        for text in theme.begin:
            assert "{n}" in text, (name, text)
            assert "{thing}" in text or len(theme.things) == 1, (name, text)
            assert "{place}" in text or "{place}" not in "".join(theme.ask), (name, text)
        if any("{name}" in text for text in (*theme.ask, theme.state)):
            assert all("{name}" in text for text in theme.begin), name
        for kind in KINDS:
            for wording, text in enumerate(theme.wordings(kind)):
                # A number in words or in digits, never both, and never in what is left out later.
                fixed = theme.fixed_number(kind, wording)
                assert ("{n}" in re.sub(r"\[.*?\]", "", text)) == (fixed is None), (name, text)


def test_texts_are_clean() -> None:
    for story in drawn(1000, seed=1):
        text = story.question
        assert not re.search(r"[{}\[\]=]|  | ,|\.\.|\b1 ", text), text
        sentences = re.split(r"(?<=[.?]) ", text)
        assert all(re.match(r"[A-Z0-9]", each) for each in sentences), text
        assert text.endswith("?") and text.count("?") == 1
        for sentence in sentences:
            words = re.findall(r"[a-z0-9]+", sentence.lower())
            assert not any(a == b for a, b in pairwise(words)), text


def test_pronouns_agree_with_the_name() -> None:
    for story in drawn(1000, seed=2):
        words = set(re.findall(r"[a-z]+", story.question.lower()))
        hers, his = words & {"she", "her", "herself"}, words & {"he", "his", "him", "himself"}
        assert not (hers and his), story.question
        assert story.name or not (hers or his), story.question


def test_held_out_is_the_calculation_in_all_its_wordings() -> None:
    by_calculation = defaultdict[str, set[bool]](set)
    for story in drawn(1000, seed=3):
        calculation = f"{story.start} {[(e.kind, e.number) for e in story.events]}"
        others = replace(story, thing=THEMES[story.theme].things[-1], ask=0)
        by_calculation[calculation] |= {story.heldout, others.heldout}
    assert all(len(halves) == 1 for halves in by_calculation.values())
    heldout = [True in halves for halves in by_calculation.values()]
    assert 0.15 < np.mean(heldout) < 0.25


def test_openers_begin_large_and_end_with_a_space() -> None:
    assert OPENERS[0] == "" and all(re.fullmatch(r"[A-Z][a-z ]+,? ", each) for each in OPENERS[1:])
