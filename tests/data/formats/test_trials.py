# SPDX-License-Identifier: Apache-2.0
"""Trials: cutting at separators of words, verdicts, and the faults of a response's shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from satori_fast.data.formats.trials import DIALECTS, FAULTS, PAPER, TRIALS, WORDS, Trial
from satori_fast.data.prompts import (
    PLAIN_TEMPLATE,
    PromptRenderer,
    answered_text,
    build_trajectory,
    full_response,
)
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.types import Finish, Problem, SegmentKind, Trajectory

Y1 = r"\boxed{ p r } wait 7 + 9 = 16 over again \boxed{ p q } wait 7 + 1 = 8 right"
VOCABULARY = [*"pqrs+=", r"\boxed{", "}", *(str(n) for n in range(20)), "over", *WORDS.words]
RENDERER = PromptRenderer(
    build_word_tokenizer(VOCABULARY, ()), PLAIN_TEMPLATE, 64, format=TRIALS.in_dialect("words")
)


def byte_level(*merges: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a merged token for each of `merges`, the pieces of which may
    straddle a separator."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = [merge.replace("\n", "Ċ").replace(" ", "Ġ") for merge in merges]
    steps: list[tuple[str, str]] = []
    vocabulary = ["<|endoftext|>", *alphabet]
    for word in spelled:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                steps.append((word[: end - 1], word[end - 1]))
                vocabulary.append(word[:end])
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, steps))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def trajectory(
    text: str, renderer: PromptRenderer = RENDERER, finish: Finish = "stop"
) -> Trajectory:
    ids = renderer.encode(text) + [renderer.eos_id] * (finish == "stop")
    problem = Problem("1", "p 7 q 1", "p q")
    return build_trajectory(problem, np.asarray(ids), renderer=renderer, group_id=0, finish=finish)


def test_the_worked_response() -> None:
    made = trajectory(Y1)
    assert [(s.kind.value, s.stop - s.start, s.verdict) for s in made.segments] == [
        ("solve", 4, None),
        ("verify", 7, False),
        ("solve", 5, None),
        ("verify", 8, True),
    ]
    assert full_response(made) == Y1
    assert answered_text(made).split() == ["again", r"\boxed{", "p", "q", "}"]
    assert TRIALS.in_dialect("words").attempts(Y1) == ["p r"]


def test_a_token_that_straddles_a_separator_belongs_to_the_action_it_starts_in() -> None:
    text = "It is 4.\n\nWait, let me recheck my solution.\n\nYes. Therefore, the answer is correct."
    renderer = PromptRenderer(byte_level(".\n\nWa", "n.\n\nY"), PLAIN_TEMPLATE, 64, format=TRIALS)
    made = trajectory(text, renderer)
    solve, verify = made.segments
    # The token ".\n\nWa" begins in the solution, so that the verification begins with "it, let".
    assert solve.text == "It is 4.\n\nWa" and verify.text.startswith("it, let me recheck")
    assert solve.stop == verify.start and verify.stop == made.num_response_tokens
    assert verify.verdict is True and full_response(made) == text


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Therefore, the answer is correct.", True),
        ("Therefore, the answer is incorrect.", False),
        ("Therefore, the answer is not correct.", False),
        ("Therefore, the answer cannot be verified.", None),
        ("The answer is correct so far. In the end the final answer of 7 is wrong.", False),
        ("The answer is incorrect? No: therefore, the answer is correct.", True),
        ("The answer is correct, but it cannot be verified.", None),
        ("Turn right, 2 + 2 = 4.", None),
        ("", None),
    ],
)
def test_verdicts_of_sentences(text: str, verdict: bool | None) -> None:
    assert PAPER.verdict(text) is verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("7 + 1 = 8 right", True),
        ("7 + 9 = 16 over", False),
        ("7 under", False),
        ("wrong", False),
        ("right wrong", False),
        ("wrong 8 right", True),
        ("7 + 1 = 8", None),
    ],
)
def test_verdicts_of_words(text: str, verdict: bool | None) -> None:
    assert WORDS.verdict(text) is verdict


@pytest.mark.parametrize(
    ("text", "finish", "faults"),
    [
        (Y1, "stop", set()),
        (r"\boxed{ p }", "stop", {"unverified"}),
        (r"\boxed{ p } wait right wait right", "stop", {"two_in_a_row"}),
        (r"\boxed{ p } again \boxed{ q } wait right", "stop", {"two_in_a_row"}),
        (r"\boxed{ p } wait 7 + 1 = 8", "stop", {"no_verdict"}),
        (r"\boxed{ p } wait", "stop", {"empty", "no_verdict"}),
        (r"\boxed{ p } wait wrong again", "stop", {"empty", "unboxed", "unverified"}),
        ("p q wait right", "stop", {"unboxed"}),
        (r"\boxed{ } wait right", "stop", {"unboxed"}),
        ("wait right", "stop", set()),
        (r"\boxed{ p } wait 7 +", "length", {"cut", "no_verdict"}),
    ],
)
def test_faults_of_the_shape(text: str, finish: Finish, faults: set[str]) -> None:
    made = trajectory(text, finish=finish)
    format = TRIALS.in_dialect("words")
    assert format.faults(made) == faults
    metrics = format.metrics(made)
    assert {name for name in FAULTS if metrics[f"malformed/{name}"]} == faults
    assert metrics["malformed"] == float(bool(faults))


WORD = st.sampled_from(["p", "7", "wait", "again", "right", "wrong", r"\boxed{", "}"])


@given(words=st.lists(WORD), ends=st.booleans())
def test_segments_tile_any_response(words: list[str], ends: bool) -> None:
    text = " ".join(words)
    if not text and not ends:
        return
    made = trajectory(text, finish="stop" if ends else "length")
    assert full_response(made) == text
    assert "".join(piece for _, piece in TRIALS.in_dialect("words").pieces(text)) == text


PART = st.lists(st.sampled_from(["2 + 2", "is", "4.", "\n", r"\boxed{4}"]), min_size=1).map(
    " ".join
)


@given(
    parts=st.lists(st.tuples(PART, PART), min_size=1, max_size=4),
    name=st.sampled_from(sorted(DIALECTS)),
    is_open=st.booleans(),
)
def test_trials_are_written_and_read_back(
    parts: list[tuple[str, str]], name: str, is_open: bool
) -> None:
    trials = [Trial(a.strip() or "1", b.strip() or "2") for a, b in parts]
    if is_open:
        trials[-1] = Trial(trials[-1].solution)
    assert DIALECTS[name].split_trials(DIALECTS[name].join_trials(trials)) == trials


def test_trials_in_disorder() -> None:
    assert WORDS.split_trials("wait right again 4 again 5 wait 6 wait 7") == [
        Trial("", "right"),
        Trial("4"),
        Trial("5", "6"),
        Trial("", "7"),
    ]


def test_separators_are_text_of_the_model_alone() -> None:
    assert {kind.value for kind in TRIALS.colours} == {"solve", "verify"}
    assert TRIALS.special_tokens == () and not TRIALS.has_restarts
    assert TRIALS.words == () and TRIALS.in_dialect("words").words == WORDS.words
    assert trajectory("wait right").segments[0].kind is SegmentKind.VERIFY
