# SPDX-License-Identifier: Apache-2.0
"""COAT: segments that tile and open at their tokens, attempts before reflections, counts."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from satori_fast.data.arithmetic import domain_words
from satori_fast.data.formats import FORMATS
from satori_fast.data.formats.coat import (
    COAT,
    CONTINUE,
    EXPLORE,
    META_ACTION_TOKENS,
    REFLECT,
    split_actions,
)
from satori_fast.data.prompts import (
    PLAIN_TEMPLATE,
    PromptRenderer,
    build_trajectory,
    full_response,
)
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.types import Prefix, Problem, SegmentKind, Trajectory

WORDS = PromptRenderer(build_word_tokenizer(domain_words()), PLAIN_TEMPLATE, 32)
QUESTION = "p 7 q 1 r 9 pick 2 sum 8"


def ids(text: str) -> np.ndarray:
    return np.asarray(WORDS.encode(text))


def trajectory(response: str, prefix: str | None = None) -> Trajectory:
    """A finished response to the example problem; the end-of-text token is added."""
    start = None if prefix is None else Prefix(prefix, "restart", correct=False)
    problem = Problem("one", QUESTION, "p q", start)
    response_ids = np.append(ids(response), WORDS.eos_id)
    return build_trajectory(problem, response_ids, renderer=WORDS, group_id=0, finish="stop")


def spans(made: Trajectory) -> list[tuple[str, int, int]]:
    return [(str(s.kind), s.start, s.stop) for s in made.segments]


# --- actions and segments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "actions"),
    [
        ("", []),
        ("p q", ["p q"]),
        ("a <|reflect|> b<|explore|>c", ["a ", "<|reflect|> b", "<|explore|>c"]),
        ("<|continue|>a", ["<|continue|>a"]),
        ("<|reflect|><|explore|>", ["<|reflect|>", "<|explore|>"]),
        ("a\n<|reflect|>\nb", ["a\n", "<|reflect|>\nb"]),
        ("<|other|> a", ["<|other|> a"]),
    ],
)
def test_split_actions(text: str, actions: list[str]) -> None:
    assert split_actions(text) == actions


@given(st.lists(st.sampled_from([*META_ACTION_TOKENS, "a", " ", "\n", "|", "<|"])).map("".join))
def test_actions_joined_are_the_text(text: str) -> None:
    actions = split_actions(text)
    assert "".join(actions) == text
    assert all(actions)
    assert all(action.startswith(META_ACTION_TOKENS) for action in actions[1:])


def test_segments_by_hand() -> None:
    response = f"p 7 {CONTINUE} \\boxed{{ p q }} {REFLECT} 7 + 1 {EXPLORE} less"
    made = trajectory(response)
    assert spans(made) == [
        ("continue", 0, 2),
        ("continue", 2, 7),
        ("reflect", 7, 11),
        ("explore", 11, 14),
    ]
    assert [s.text for s in made.segments] == [
        "p 7",
        f"{CONTINUE} \\boxed{{ p q }}",
        f"{REFLECT} 7 + 1",
        f"{EXPLORE} less",
    ]
    assert all(segment.verdict is None for segment in made.segments)


def test_leading_and_consecutive_meta_actions() -> None:
    assert spans(trajectory(f"{REFLECT} {REFLECT} {EXPLORE} p")) == [
        ("reflect", 0, 1),
        ("reflect", 1, 2),
        ("explore", 2, 5),
    ]


def test_end_of_text_alone_is_one_segment() -> None:
    made = trajectory("")
    assert spans(made) == [("continue", 0, 1)]
    assert made.segments[0].text == ""


def test_first_segment_of_a_restart_is_its_reflection() -> None:
    made = trajectory(f"7 + 1 {EXPLORE} p", prefix=f"p 7{REFLECT}")
    assert spans(made) == [("reflect", 0, 3), ("explore", 3, 6)]
    # A response that opens an action of its own is no reflection.
    assert spans(trajectory("<|continue|> p", f"p{REFLECT}"))[0] == ("continue", 0, 3)
    assert spans(trajectory("<|explore|> p", f"p{REFLECT}"))[0] == ("explore", 0, 3)
    # Neither is the start of a step-wise problem.
    assert spans(trajectory("p", prefix="p 7"))[0] == ("continue", 0, 2)


META_IDS = [WORDS.tokenizer.get_vocab()[token] for token in META_ACTION_TOKENS]
WORD_IDS = [int(i) for i in ids(" ".join(domain_words()))]
RESPONSES = st.lists(st.sampled_from(META_IDS) | st.sampled_from(WORD_IDS), max_size=24)
PREFIXES = st.none() | RESPONSES.map(lambda chosen: WORDS.decode(chosen[:8]) + REFLECT)


@given(response=RESPONSES, prefix=PREFIXES, stopped=st.booleans())
@example(response=[META_IDS[1]], prefix=None, stopped=False)
@example(response=[*META_IDS, *META_IDS], prefix=REFLECT, stopped=True)
def test_segments_tile_and_the_text_encodes_to_the_same_ids(
    response: list[int], prefix: str | None, stopped: bool
) -> None:
    response_ids = np.asarray([*response, WORDS.eos_id] if stopped or not response else response)
    start = None if prefix is None else Prefix(prefix, "restart", correct=True)
    problem = Problem("one", QUESTION, "p q", start)
    made = build_trajectory(problem, response_ids, renderer=WORDS, group_id=3, finish="stop")

    assert made.tokens.dtype == np.int32
    assert made.response_tokens.tolist() == response_ids.tolist()
    assert made.tokens[: made.prompt_len].tolist() == WORDS.prompt_ids(problem)
    covered = [i for s in made.segments for i in range(s.start, s.stop)]
    assert covered == list(range(len(response_ids)))
    for segment in made.segments:
        part = response_ids[segment.start : segment.stop]
        assert segment.text == WORDS.decode(part)
        assert not set(part[1:].tolist()) & set(META_IDS)
    # Apart from the first, every segment starts at its token.
    names = [t.strip("<|>") for t in META_ACTION_TOKENS]
    for segment in made.segments[1:]:
        kind = names[META_IDS.index(int(response_ids[segment.start]))]
        assert segment.kind == SegmentKind(kind)

    kept = [int(i) for i in response_ids if i != WORDS.eos_id]
    prefix_ids = WORDS.encode(prefix) if prefix else []
    assert WORDS.encode(full_response(made)) == prefix_ids + kept
    num_reflects = kept.count(META_IDS[1])
    assert COAT.metrics(made) == {"reflections_per_answer": num_reflects}


def test_segments_have_plain_python_positions() -> None:
    for segment in COAT.segments(ids(f"p {REFLECT} q"), WORDS, prefix=None):
        assert type(segment.start) is int
        assert type(segment.stop) is int


def num_reflections(made: Trajectory) -> float:
    return COAT.metrics(made)["reflections_per_answer"]


def test_reflections_that_the_prefix_started_do_not_count() -> None:
    assert num_reflections(trajectory(f"p {REFLECT} 7 {REFLECT} 1")) == 2
    assert num_reflections(trajectory("7 + 1", prefix=f"p{REFLECT}")) == 0
    assert num_reflections(trajectory(f"7 {REFLECT} 1", prefix=f"p{REFLECT}")) == 1


# --- attempts ----------------------------------------------------------------------------------


def box(answer: int) -> str:
    return f"\\boxed{{ {answer} }}"


@pytest.mark.parametrize(
    ("response", "answers"),
    [
        ("", []),
        ("p q", []),
        (box(4), []),
        ("p<|reflect|> q", []),
        (f"p<|reflect|> {box(4)}", []),
        (f"{box(4)}<|reflect|>", ["4"]),
        (f"{box(4)}<|reflect|> no<|explore|> {box(5)}<|reflect|> no", ["4", "5"]),
        (f"{box(4)}<|reflect|> ok<|reflect|> ok", ["4", "4"]),
        (f"p<|reflect|> q {box(4)}<|reflect|> no", ["4"]),
        (f"{box(4)}<|explore|> {box(5)}<|reflect|> no", ["5"]),
        (f"{box(4)}<|reflect|> \\boxed{{5<|reflect|>", ["4"]),
        # Reflections on the way to an answer judge none, neither the first nor one given up.
        (f"p<|reflect|> ok<|continue|> {box(4)}", []),
        (f"p<|reflect|> ok<|continue|> {box(4)}<|reflect|> no", ["4"]),
        (f"{box(4)}<|reflect|> no<|explore|> p<|reflect|> ok<|continue|> {box(5)}", ["4"]),
        (
            f"{box(4)}<|reflect|> no<|explore|> p<|reflect|> no<|explore|> q<|continue|> {box(4)}"
            "<|reflect|> ok",
            ["4", "4"],
        ),
        # An answer that is followed by more words of its own is judged all the same.
        (f"{box(4)}<|continue|> p<|reflect|> no<|explore|> {box(5)}", ["4"]),
        ("\\boxed{ 4<|reflect|> }", []),
    ],
)
def test_attempts(response: str, answers: list[str]) -> None:
    assert COAT.attempts(response) == answers


def test_thousands_of_reflections_copy_no_response() -> None:
    response = f"{box(4)} " + "<|reflect|> hm " * 5_000
    tracemalloc.start()
    try:
        answers = COAT.attempts(response)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answers == ["4"] * 5_000
    assert peak < 20 * len(response)


# --- prefixes, the report ------------------------------------------------------------------------


def test_a_prefix_is_cut_before_its_actions() -> None:
    prefix = "a b<|continue|> 3<|reflect|> no<|explore|> <|other|>"
    assert COAT.pieces(prefix) == [
        (SegmentKind.CONTINUE, "a b"),
        (SegmentKind.CONTINUE, "<|continue|> 3"),
        (SegmentKind.REFLECT, "<|reflect|> no"),
        (SegmentKind.EXPLORE, "<|explore|> <|other|>"),
    ]
    assert COAT.pieces("a") == [(SegmentKind.WHOLE, "a")]
    assert COAT.pieces("") == []


@given(st.lists(st.sampled_from([*META_ACTION_TOKENS, "a", " ", "\n"])).map("".join))
def test_every_piece_has_a_colour_and_together_they_are_the_text(text: str) -> None:
    pieces = COAT.pieces(text)
    assert "".join(piece for _, piece in pieces) == text
    assert {kind for kind, _ in pieces} <= set(COAT.colours)


def test_coat_is_the_format_with_restarts() -> None:
    assert FORMATS["coat"] is COAT
    assert COAT.has_restarts and COAT.restart_ending == REFLECT and COAT.self_corrects
