# SPDX-License-Identifier: Apache-2.0
"""Segments from places in a text: bytes of tokens against decode, and tokens that straddle."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from satori_fast.data.formats import FORMATS, split_at_bytes, tiled
from satori_fast.data.formats.plain import PLAIN
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer, build_trajectory, full_response
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.types import Problem, SegmentKind

SOLVE, VERIFY = SegmentKind.SOLVE, SegmentKind.VERIFY
SEPARATOR = "\n\nWait"


@cache
def merging() -> PromptRenderer:
    """Byte-level BPE without splitting into words: its merges cross the separator on both sides."""
    from tokenizers import Tokenizer

    made = Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([".\n\n", "Wait, no", "Wait, so", "it is"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
    return PromptRenderer(tokenizer, PLAIN_TEMPLATE, 64, format=PLAIN)


def starts_of(text: bytes, separator: bytes) -> list[int]:
    return [i for i in range(len(text)) if text.startswith(separator, i)]


def test_a_token_that_straddles_belongs_to_the_segment_that_it_starts_in() -> None:
    renderer = merging()
    text = f"is it 3.{SEPARATOR}, no.{SEPARATOR}, so"
    ids = np.asarray([*renderer.encode(text), renderer.eos_id])
    pieces = renderer.token_bytes(ids)
    assert b"".join(pieces) == text.encode() and pieces[-1] == b""
    begins = np.cumsum([0, *map(len, pieces)])
    starts = starts_of(text.encode(), SEPARATOR.encode())
    # The merges hide where the separators begin: no token does there.
    assert not set(starts) & set(begins.tolist())
    first, second = split_at_bytes(ids, renderer, starts)
    for position, start in ((first, starts[0]), (second, starts[1])):
        assert begins[position - 1] < start < begins[position]
    segments = tiled(ids, renderer, [(0, SOLVE), (first, VERIFY), (second, SOLVE)])
    assert [s.kind for s in segments] == [SOLVE, VERIFY, SOLVE]
    assert "".join(s.text for s in segments) == text
    assert segments[-1].stop == len(ids)


def test_segments_of_whole_tokens_begin_at_their_separators() -> None:
    renderer = PromptRenderer(build_word_tokenizer(["a", "b", "wait"], ()), PLAIN_TEMPLATE, 64)
    ids = np.asarray([*renderer.encode("a b wait b wait wait a"), renderer.eos_id])
    assert b"".join(renderer.token_bytes(ids)) == b"a b wait b wait wait a"
    starts = starts_of(b"a b wait b wait wait a", b"wait")
    assert split_at_bytes(ids, renderer, starts) == [2, 4, 5]
    assert split_at_bytes(ids, renderer, []) == []


def test_a_segment_without_a_token_of_its_own_is_left_out() -> None:
    renderer = merging()
    ids = np.asarray(renderer.encode(SEPARATOR))
    starts = [0, 1, 2]
    positions = split_at_bytes(ids, renderer, starts)
    segments = tiled(ids, renderer, list(zip(positions, [SOLVE, VERIFY, SOLVE], strict=True)))
    assert [s.start for s in segments] == sorted({p for p in positions if p < len(ids)})
    assert segments[-1].stop == len(ids) and segments[0].start == 0


@given(
    text=st.text(alphabet="a3.\n Wait,no\u00e9\u4e16\U0001f600", max_size=30),
    cuts=st.lists(st.integers(0, 60), max_size=5).map(sorted),
    ends=st.booleans(),
)
def test_bytes_are_those_of_decode_and_every_start_is_found(
    text: str, cuts: list[int], ends: bool
) -> None:
    renderer = merging()
    ids = np.asarray([*renderer.encode(text), *[renderer.eos_id] * (ends or not text)])
    pieces = renderer.token_bytes(ids)
    assert len(pieces) == len(ids)
    assert b"".join(pieces).decode() == text == renderer.decode(ids)
    starts = [0, *(cut for cut in cuts if cut < len(text.encode()))]
    positions = split_at_bytes(ids, renderer, starts)
    begins = np.cumsum([0, *map(len, pieces)])
    # By hand: the first token that begins at the place or behind it.
    expected = [next((i for i in range(len(ids)) if begins[i] >= s), len(ids)) for s in starts]
    assert positions == expected
    segments = tiled(ids, renderer, [(position, SOLVE) for position in positions])
    assert segments[0].start == 0 and segments[-1].stop == len(ids)
    assert all(a.stop == b.start for a, b in pairwise(segments))


def test_every_row_is_named_as_its_format() -> None:
    assert all(name == row.name for name, row in FORMATS.items())
    assert set(FORMATS) >= {"coat", "plain"}


def test_other_tokenizers_are_refused_where_bytes_are_asked_for() -> None:
    tokenizer: Any = build_word_tokenizer(["a"], ())
    tokenizer.backend_tokenizer.decoder = decoders.Metaspace()
    renderer = PromptRenderer(tokenizer, PLAIN_TEMPLATE, 64)
    with pytest.raises(ValueError, match="this tokenizer is not byte-level: take a model"):
        renderer.token_bytes([1])


def test_the_worked_example_of_contributing() -> None:
    text = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "Waits" in b]
    names: dict[str, Any] = {}
    exec(example, names)
    renderer = replace(merging(), format=names["WAITS"])
    response = rf"it is \boxed{{3}}.{SEPARATOR}, no \boxed{{4}}.{SEPARATOR}, so"
    ids = np.asarray([*renderer.encode(response), renderer.eos_id])
    made = build_trajectory(
        Problem("1", "q", "4"), ids, renderer=renderer, group_id=0, finish="stop"
    )
    # The line breaks that a token joins to the full stop stay with the attempt before.
    assert [segment.text for segment in made.segments] == [
        "it is \\boxed{3}.\n\n",
        "Wait, no \\boxed{4}.\n\n",
        "Wait, so",
    ]
    assert {segment.kind for segment in made.segments} == set(renderer.format.colours)
    assert renderer.format.attempts(full_response(made)) == ["3", "4"]
    assert [piece for _, piece in renderer.format.pieces(response)][1].startswith(SEPARATOR)
