# SPDX-License-Identifier: Apache-2.0
"""Template 3 byte for byte, segments that tile, and ids that survive a round trip through text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from satori_fast.data.arithmetic import domain_words
from satori_fast.data.formats.coat import (
    CONTINUE,
    EXPLORE,
    META_ACTION_TOKENS,
    REFLECT,
    split_actions,
)
from satori_fast.data.prompts import (
    PLAIN_TEMPLATE,
    SATORI_TEMPLATE,
    PromptRenderer,
    build_trajectory,
    encode_demonstration,
    full_response,
)
from satori_fast.data.tokenizer import build_word_tokenizer, train_tokenizer
from satori_fast.types import Demonstration, Prefix, Problem, SegmentKind, Trajectory

WORDS = PromptRenderer(build_word_tokenizer(domain_words()), PLAIN_TEMPLATE, 32)
QUESTION = "p 7 q 1 r 9 pick 2 sum 8"
PROBLEM = Problem("one", QUESTION, "p q")

TEMPLATE_3 = b"""<|im_start|>user
Solve the following math problem efficiently and clearly.
Please reason step by step, and put your final answer within \\boxed{}.
Problem: What is {1, 2} + \\frac{1}{2}?<|im_end|>
<|im_start|>assistant
"""


@pytest.fixture(scope="module")
def bytes_renderer() -> PromptRenderer:
    """Byte-level: knows every text, line breaks included."""
    return PromptRenderer(train_tokenizer([SATORI_TEMPLATE] * 4, 400), SATORI_TEMPLATE, 1024)


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


# --- prompts -------------------------------------------------------------------------------------


def test_template_3_byte_for_byte(bytes_renderer: PromptRenderer) -> None:
    problem = Problem("1", "What is {1, 2} + \\frac{1}{2}?", "3")
    prompt = bytes_renderer.prompt_ids(problem)
    assert bytes_renderer.decode(prompt).encode() == TEMPLATE_3
    assert prompt[0] == bytes_renderer.tokenizer.get_vocab()["<|im_start|>"]


def test_restart_follows_the_template_at_once(bytes_renderer: PromptRenderer) -> None:
    problem = Problem("1", "2 + 2", "4", Prefix(f"5{REFLECT}", "restart", correct=False))
    prompt = bytes_renderer.prompt_ids(problem)
    text = SATORI_TEMPLATE.format(question="2 + 2") + f"5{REFLECT}"
    assert bytes_renderer.decode(prompt) == text
    assert prompt[-1] == bytes_renderer.tokenizer.get_vocab()[REFLECT]


def test_prefix_is_encoded_apart_from_the_template() -> None:
    # A byte-level tokenizer could merge the template's line break with one that opens the prefix.
    texts = ["question\n\nanswer\n\n"] * 50
    renderer = PromptRenderer(train_tokenizer(texts, 280), PLAIN_TEMPLATE, 64)
    assert len(renderer.encode("\n\n")) == 1
    problem = Problem("1", "q", "a", Prefix("\nstep\n", "step"))
    whole = Problem("1", "q", "a")
    prompt = renderer.prompt_ids(problem)
    assert prompt[: len(renderer.prompt_ids(whole))] == renderer.prompt_ids(whole)
    assert renderer.decode(prompt) == "q\n\nstep\n"


def test_too_long_prompt_is_refused_never_cut() -> None:
    num_tokens = len(WORDS.prompt_ids(PROBLEM))
    exact = PromptRenderer(WORDS.tokenizer, PLAIN_TEMPLATE, num_tokens)
    assert exact.fits(PROBLEM)
    assert exact.prompt_ids(PROBLEM) == WORDS.prompt_ids(PROBLEM)
    short = PromptRenderer(WORDS.tokenizer, PLAIN_TEMPLATE, num_tokens - 1)
    assert not short.fits(PROBLEM)
    message = f"prompt of problem 'one' has {num_tokens} tokens, more than max_prompt_tokens"
    with pytest.raises(ValueError, match=message):
        short.prompt_ids(PROBLEM)
    assert short.unchecked_prompt_ids(PROBLEM) == WORDS.prompt_ids(PROBLEM)


def test_tokenizer_without_meta_actions_is_refused() -> None:
    renderer = PromptRenderer(build_word_tokenizer(["a"], special_tokens=()), PLAIN_TEMPLATE, 8)
    with pytest.raises(ValueError, match=r"tokenizer lacks .*add_meta_action_tokens"):
        _ = renderer.kind_of_id


def test_tokenizer_without_end_of_text_is_refused() -> None:
    tokenizer = build_word_tokenizer(["a"])
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="tokenizer has no eos_token"):
        _ = PromptRenderer(tokenizer, PLAIN_TEMPLATE, 8).eos_id


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
    assert count_reflections(made) == num_reflects


def test_split_segments_gives_plain_python_positions() -> None:
    for segment in split_segments(ids(f"p {REFLECT} q"), WORDS):
        assert type(segment.start) is int
        assert type(segment.stop) is int


# --- trajectories and back -----------------------------------------------------------------------


def test_sampled_trajectory_keeps_what_the_engine_said() -> None:
    logprobs = np.array([-0.5, -1.5], dtype=np.float32)
    made = build_trajectory(
        PROBLEM,
        ids("p q"),
        renderer=WORDS,
        group_id=7,
        finish="length",
        logprobs=logprobs,
        policy_version=4,
    )
    assert made.logprobs.tolist() == logprobs.tolist()
    assert (made.group_id, made.finish, made.policy_version) == (7, "length", 4)
    assert made.reward is None


def test_demonstration_ends_with_end_of_text_and_has_no_sampler() -> None:
    response = f"p{CONTINUE} \\boxed{{ p q }}"
    made = encode_demonstration(Demonstration(PROBLEM, response, "I"), WORDS, group_id=2)
    assert made.tokens[-1] == WORDS.eos_id
    assert full_response(made) == response
    assert not made.logprobs.any()
    assert (made.policy_version, made.finish, made.group_id) == (-1, "stop", 2)


def test_reflections_that_the_prefix_started_do_not_count() -> None:
    assert count_reflections(trajectory(f"p {REFLECT} 7 {REFLECT} 1")) == 2
    assert count_reflections(trajectory("7 + 1", prefix=f"p{REFLECT}")) == 0
    assert count_reflections(trajectory(f"7 {REFLECT} 1", prefix=f"p{REFLECT}")) == 1


def test_full_response_starts_with_the_prefix() -> None:
    made = trajectory(f"7 + 1 {EXPLORE} p", prefix=f"p 7{REFLECT}")
    assert full_response(made) == f"p 7{REFLECT}7 + 1{EXPLORE} p"


@given(
    prefix=st.text(max_size=20),
    response=st.lists(
        st.sampled_from([*META_ACTION_TOKENS, " ", "\n", "\\boxed{4}", "a"]) | st.text(max_size=3)
    ).map("".join),
)
def test_byte_level_round_trip(bytes_renderer: PromptRenderer, prefix: str, response: str) -> None:
    # The end-of-text token is the only text that decode drops, and surrogates are no text.
    text = (prefix + REFLECT + response).encode("utf-8", "ignore").decode()
    text = text.replace("<|endoftext|>", "")
    assert bytes_renderer.decode(bytes_renderer.encode(text)) == text
