# SPDX-License-Identifier: Apache-2.0
"""Restarts are off, aloud, for a model that has never seen a meta-action."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from satori_fast.config import Config
from satori_fast.data.arithmetic import domain_words
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.stages.settled import settled
from tests.stages.test_run import tiny_config

ALONE = ("--stages", "['reinforce']")


def is_on(config: Config) -> bool:
    return settled(config).restarts_enabled


def model_in(folder: Path, *, knows: bool) -> tuple[str, ...]:
    words = domain_words()
    tokenizer = build_word_tokenizer(words) if knows else build_word_tokenizer(words, ())
    tokenizer.save_pretrained(folder)
    return ("--model.path", f"'{folder}'", "--tokenizer.kind", "model")


def demonstrations(path: Path, response: str) -> tuple[str, ...]:
    row = {"question": "sum 4", "answer": "4", "response": response}
    path.write_text(json.dumps(row) + "\n")
    return ("--stages", "['supervised','reinforce']", "--supervised.source", f"'{path}'")


def test_off_for_a_fresh_model_and_for_one_that_lacks_the_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = tiny_config(tmp_path, *ALONE)
    assert (
        not is_on(fresh) and "shows <|reflect|> to the model, which is a fresh one" in caplog.text
    )
    caplog.clear()
    foreign = tiny_config(tmp_path, *ALONE, *model_in(tmp_path / "foreign", knows=False))
    assert not is_on(foreign)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(
        "reinforce: restarts are off: no stage before reinforce shows <|reflect|> to the model, and"
        " its tokenizer lacks it; put synthesize and supervised before it, or set data.format"
    )
    # A second look changes nothing more, and says nothing more.
    once = settled(foreign)
    caplog.clear()
    assert settled(once) == once and not caplog.records


def test_on_for_a_model_that_knows_them_or_will(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_on(tiny_config(tmp_path, *ALONE, *model_in(tmp_path / "tuned", knows=True)))
    assert is_on(tiny_config(tmp_path))  # synthesize and supervised come first
    shown = demonstrations(tmp_path / "a.jsonl", "a<|reflect|> b")
    assert is_on(tiny_config(tmp_path, *shown))
    # A model folder that cannot be read is somebody else's to refuse.
    assert is_on(tiny_config(tmp_path, *ALONE, "--model.path", f"'{tmp_path / 'nowhere'}'"))
    assert not caplog.records


def test_off_after_demonstrations_without_a_meta_action(tmp_path: Path) -> None:
    assert not is_on(tiny_config(tmp_path, *demonstrations(tmp_path / "a.jsonl", "a b")))


def test_what_was_asked_for_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = tiny_config(tmp_path, *ALONE, "--reinforce.restarts.enabled", "true")
    assert settled(asked) == asked
    assert "reinforce.restarts.enabled = true, but no stage before" in caplog.text
    caplog.clear()
    for more in (("--reinforce.restarts.enabled", "false"), ("--data.format", "plain")):
        config = tiny_config(tmp_path, *ALONE, *more)
        assert settled(config) == config
    assert not caplog.records
