# SPDX-License-Identifier: Apache-2.0
"""Rows of a file as trajectories: siblings, prefixes, ends. What cannot be read is tested with the
verb (tests/stages/test_explain.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from satori_fast.data.arithmetic import domain_words
from satori_fast.data.formats.plain import PLAIN
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer
from satori_fast.data.rollout_rows import RolloutRow, read_rollout_rows
from satori_fast.data.tokenizer import END_OF_TEXT, build_word_tokenizer, train_tokenizer
from satori_fast.types import Prefix

RENDERER = PromptRenderer(build_word_tokenizer(domain_words()), PLAIN_TEMPLATE, 100)


def read(
    path: Path, *rows: dict[str, Any], renderer: PromptRenderer = RENDERER
) -> list[RolloutRow]:
    lines = [json.dumps({"question": "sum 1", "response": "p"} | row) for row in rows]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return read_rollout_rows(path, renderer)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_siblings_share_question_prefix_and_step(file: Path) -> None:
    rows = read(
        file,
        {},
        {"answer": 3},
        {"step": 1},
        {"prefix": "q<|reflect|>"},
        {"question": "sum 2"},
        {"prefix": None, "step": 0},
        {"stage": "eval"},
    )
    assert [row.trajectory.group_id for row in rows] == [0, 0, 1, 2, 3, 0, 4]
    assert [row.number for row in rows] == [1, 3, 5, 7, 9, 11, 13]
    assert rows[2].step == ("", 1) and rows[-1].step == ("eval", 0)
    assert rows[1].trajectory.problem.answer == "3"


def test_the_format_says_what_a_prefix_is(file: Path) -> None:
    given = {"prefix": "q<|reflect|>", "prefix_correct": True}
    restart, step = read(file, given, {"prefix": "q", "target": "r"})
    assert restart.trajectory.problem.prefix == Prefix("q<|reflect|>", "restart", True)
    assert step.trajectory.problem.prefix == Prefix("q", "step", target="r")
    plain = PromptRenderer(RENDERER.tokenizer, PLAIN_TEMPLATE, 100, format=PLAIN)
    (row,) = read(file, {"prefix": "q"}, renderer=plain)
    assert row.trajectory.problem.prefix == Prefix("q", "step")


def test_a_response_ends_once(file: Path) -> None:
    rows = read(
        file,
        {"response": "p q"},
        {"response": f"p q {END_OF_TEXT}"},
        {"response": "p q", "finish": "length"},
        {"response": ""},
    )
    ends = [row.trajectory.response_tokens.tolist().count(RENDERER.eos_id) for row in rows]
    assert ends == [1, 1, 0, 1]
    assert [row.trajectory.num_response_tokens for row in rows] == [3, 3, 2, 1]


def test_any_tokenizer(file: Path) -> None:
    tokenizer = train_tokenizer(["a response"], 300)
    bytes_of = PromptRenderer(tokenizer, PLAIN_TEMPLATE, 100)
    (row,) = read(file, {"response": "é<|reflect|> ok"}, renderer=bytes_of)
    assert [segment.text for segment in row.trajectory.segments] == ["é", "<|reflect|> ok"]
