# SPDX-License-Identifier: Apache-2.0
"""Similarity rewards: the worked values, difflib, and who gets none."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from satori_fast.rewards.similarity import Granularity, SimilarityReward
from satori_fast.types import Prefix, Problem, Segment, SegmentKind, Trajectory

TARGET = "37 + 25 = 62"
REPEATED = ("abcdefghij" * 20)[5:]


def answering(text: str, prefix: Prefix | None) -> Trajectory:
    return Trajectory(
        problem=Problem("1", "start 37 plus 25", None, prefix),
        group_id=0,
        tokens=np.zeros(2, dtype=np.int32),
        prompt_len=1,
        logprobs=np.zeros(1, dtype=np.float32),
        policy_version=0,
        finish="stop",
        segments=(Segment(SegmentKind.WHOLE, 0, 1, text),),
    )


def rewarded(text: str, target: str = TARGET, granularity: Granularity = "words") -> float:
    step = Prefix("", "step", target=target)
    (made,) = SimilarityReward(granularity)([answering(f"<think> a </think> {text}", step)])
    assert made.correct is None and made.segments is None
    return made.terms["similarity"]


@pytest.mark.parametrize(
    ("text", "words", "characters"),
    [
        ("37 + 25 = 62", 1.0, 1.0),
        ("37 + 25 = 52", 0.8, 0.916667),
        ("37 + 24 = 61", 0.6, 0.833333),
        ("62", 0.333333, 0.285714),
        ("25 + 37 = 62", 0.6, 0.666667),
        ("37 + 25 = 62 62 - 8 = 54", 0.666667, None),
        ("", -1.0, -1.0),
    ],
)
def test_worked_values(text: str, words: float, characters: float | None) -> None:
    assert rewarded(text) == pytest.approx(words, abs=1e-6)
    if characters is not None:
        assert rewarded(text, granularity="characters") == pytest.approx(characters, abs=1e-6)


def test_a_copied_title_is_a_free_offset() -> None:
    assert rewarded("plus 25 :", "plus 25 : 37 + 25 = 62") == pytest.approx(0.545455, abs=1e-6)


@pytest.mark.parametrize(
    ("length", "autojunk", "expected"),
    [
        (199, False, 0.984772),
        (199, True, 0.984772),
        (200, False, 0.987342),
        (200, True, 0.0),
    ],
)
def test_autojunk_makes_the_reward_jump(length: int, autojunk: bool, expected: float) -> None:
    reward = SimilarityReward("characters", autojunk=autojunk)
    (value,) = reward.similarities([REPEATED], [("abcdefghij" * 20)[:length]])
    assert value == pytest.approx(expected, abs=1e-6)


@given(
    st.lists(st.sampled_from(["a", "bb", "é", "\U0001d538", "1"]), max_size=9),
    st.lists(st.sampled_from(["a", "bb", "é", "\U0001d538", "1"]), max_size=9),
)
def test_values_are_those_of_difflib(a: list[str], b: list[str]) -> None:
    action, target = " ".join(a), " ".join(b)
    both = bool(a) and bool(b)
    pairs: dict[Granularity, Any] = {"words": (a, b), "characters": (action, target)}
    for granularity, (own, other) in pairs.items():
        (value,) = SimilarityReward(granularity).similarities([action], [target])
        expected = difflib.SequenceMatcher(None, own, other, autojunk=False).ratio()
        assert value == (expected if both else 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["characters", "words"])
def test_values_of_all_real_steps_are_those_of_difflib(
    data_dir: Path, granularity: Granularity
) -> None:
    """The lines of every solution against those of the solution half of the file further on."""
    with (data_dir / "train" / "gsm8k_train.jsonl").open(encoding="utf-8") as file:
        solutions = [json.loads(line)["answer"].partition("\n####")[0] for line in file]
    half = len(solutions) // 2
    pairs = [
        pair
        for own, other in zip(solutions, solutions[half:] + solutions[:half], strict=True)
        for pair in zip(*(text.split("\n") for text in (own, other)), strict=False)
        if all(pair)
    ]
    assert len(pairs) > 17_000
    actions, targets = (list(side) for side in zip(*pairs, strict=True))
    spell = str.split if granularity == "words" else list
    for autojunk in (False, True):
        ours = SimilarityReward(granularity, autojunk).similarities(actions, targets)
        expected = [
            difflib.SequenceMatcher(None, spell(a), spell(b), autojunk).ratio() for a, b in pairs
        ]
        assert ours == expected


def test_tokens_are_those_of_the_tokenizer() -> None:
    reward = SimilarityReward("tokens", encode=lambda text: [len(word) for word in text.split()])
    # Lengths 2 1 2 1 2 and 2 1 2 1 2.
    assert reward.similarities(["47 - 25 > 62"], [TARGET]) == [1.0]


def test_two_empty_texts_never_meet() -> None:
    assert SimilarityReward().similarities(["", "a", ""], ["", "", "b"]) == [0.0, 0.0, 0.0]
    # A target that is empty cannot be met either.
    assert rewarded("62", target="") == 0.0


def test_faults_cost_and_other_problems_get_no_term() -> None:
    step, restart = Prefix("", "step", target=TARGET), Prefix("", "restart", True)
    texts = [(TARGET, step), (f"<think> a </think> {TARGET}", restart), (TARGET, None)]
    made = SimilarityReward()([answering(text, prefix) for text, prefix in texts])
    assert [part.terms for part in made] == [{"similarity": -1.0}, {}, {}]


def test_tags_may_be_required() -> None:
    step = Prefix("", "step", target="62")
    tagged, plain = ("<think> a </think> <solution> 62 </solution>", "<think> a </think> 62")
    made = SimilarityReward(tags="required")([answering(t, step) for t in (tagged, plain)])
    assert [part.total for part in made] == [1.0, -1.0]
