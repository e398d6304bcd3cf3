# SPDX-License-Identifier: Apache-2.0
"""The problems of a run: read and checked once, by one process, and kept in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.config import Config, load_config
from satori_fast.data.coat import PLAIN_TEMPLATE, PromptRenderer
from satori_fast.data.tokenizer import add_meta_action_tokens, build_word_tokenizer, load_tokenizer
from satori_fast.stages.setup import build_problems
from satori_fast.types import Problem
from tests.stages.test_sharing import on_ranks

CONFIG = """
schema_version = 1
name = "tiny"
stages = ["reinforce"]
[tokenizer]
kind = "words"
[data]
template = "plain"
mapping = "math500"
max_prompt_tokens = 8
[reward]
num_workers = 0
timeout_s = 0.5
"""

Halves = tuple[Sequence[Problem], Sequence[Problem]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "sums.jsonl", [f"\\frac{{{i}}}{{7}}" for i in range(50)])


def write(path: Path, answers: list[Any]) -> Path:
    rows = [
        {"problem": f"what is {i}", "answer": answer, "level": i % 5}
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(source: Path, *overrides: str) -> Config:
    path = source.parent / "tiny.toml"
    path.write_text(CONFIG)
    return load_config(path, ["--data.source", f"'{source}'", *overrides])


def problems_of(config: Config, folder: Path, *, parallel: Any = None) -> Halves:
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        made = build_word_tokenizer(["what", "is", *map(str, range(50))])
        add_meta_action_tokens(made)
        made.save_pretrained(tokenizer)
    longest = config.data.max_prompt_tokens
    renderer = PromptRenderer(load_tokenizer(tokenizer), PLAIN_TEMPLATE, longest)
    return build_problems(
        config,
        renderer,
        folder=folder,
        tokenizer=tokenizer,
        parallel=parallel or initialize_parallel(),
    )


def test_problems_are_kept_and_read_back(source: Path, tmp_path: Path) -> None:
    training, heldout = problems_of(config_of(source), tmp_path)
    assert len(training) + len(heldout) == 50 and min(len(training), len(heldout)) > 0
    assert {p.level for p in training} == set("01234")
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {"train.jsonl", "heldout.jsonl", "key.json"}
    kept = (tmp_path / "data" / "key.json").stat()
    assert problems_of(config_of(source), tmp_path) == (training, heldout)
    assert (tmp_path / "data" / "key.json").stat() == kept


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("contents", "contents of"),
        ("--data.num_train=5", "data.num_train"),
        ("--evaluation.num_problems=3", "evaluation.num_problems"),
        ("--data.max_prompt_tokens=7", "data.max_prompt_tokens"),
        ("tokenizer", "tokenizer"),
    ],
)
def test_another_source_or_setting_reads_again(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str, named: str
) -> None:
    problems_of(config_of(source), tmp_path)
    overrides = list[str]()
    if change == "contents":
        write(source, [f"{i}" for i in range(50)])
    elif change == "tokenizer":
        (tmp_path / "tokenizer" / "chat_template.jinja").write_text("x")
    else:
        overrides = change.split("=")
    training, heldout = problems_of(config_of(source, *overrides), tmp_path)
    assert f"{tmp_path / 'data'}: the problems are read again, because of: {named}" in caplog.text
    if change == "contents":
        assert all(p.answer == p.question.split()[-1] for p in [*training, *heldout])


def test_one_process_reads_and_all_have_the_problems(source: Path, tmp_path: Path) -> None:
    problems_of(config_of(source), tmp_path / "alone")
    folder = tmp_path / "both"
    (folder / "tokenizer").mkdir(parents=True)
    for path in (tmp_path / "alone" / "tokenizer").iterdir():
        (folder / "tokenizer" / path.name).write_bytes(path.read_bytes())
    config = config_of(source)
    first, second = on_ranks(lambda rank: problems_of(config, folder, parallel=rank))
    assert first == second == problems_of(config, tmp_path / "alone")


def test_a_gold_that_cannot_be_worked_out_costs_its_time_limit(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endless = [r"\binom{2000000}{1000000}", "(" * 5000 + "x" + ")" * 5000]
    write(source, [*(f"\\frac{{{i}}}{{7}}" for i in range(40)), *endless])
    training, heldout = problems_of(config_of(source, "--reward.num_workers", "1"), tmp_path)
    answers = {p.answer for p in [*training, *heldout]}
    assert answers == {f"\\frac{{{i}}}{{7}}" for i in range(40)}
    assert "2 of 42 rows skipped: 2 x answer cannot be graded (row 41: " in caplog.text
