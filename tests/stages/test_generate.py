# SPDX-License-Identifier: Apache-2.0
"""Questions of one's own to a model folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import satori_fast
from satori_fast.config import Config, ConfigError
from satori_fast.data.tokenizer import load_tokenizer
from tests.stages.test_init import sums
from tests.tiny_models import save_chat_model

QUESTION = "What is 1 + 1?"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of a chat model; its data is not there, and nobody needs it."""
    folder = tmp_path_factory.mktemp("generate")
    model = save_chat_model(folder / "tiny", [row["response"] for row in sums(30)])
    path = folder / "config.toml"
    path.write_text(
        f"""
schema_version = 1
model.path = {json.dumps(str(model))}
rollout = {{ max_seqlen = 200, max_new_tokens = 12 }}
[data]
source = "nowhere.jsonl"
template = "chat"
format = "plain"
max_prompt_tokens = 64
""",
        encoding="utf-8",
    )
    return satori_fast.load_config(path)


def test_a_greedy_response_needs_no_data(config: Config) -> None:
    ((text,),) = satori_fast.generate(config, [QUESTION])
    assert config.model.path is not None
    tokens = load_tokenizer(config.model.path)(text)["input_ids"]
    assert 0 < len(tokens) <= 12  # type: ignore[arg-type]
    assert satori_fast.generate(config, [QUESTION], seed=5) == [[text]]


def test_samples_have_their_own_seeds(config: Config) -> None:
    both = satori_fast.generate(config, [QUESTION, "And 2 + 2?"], num_samples=3)
    assert [len(own) for own in both] == [3, 3] and len(set(both[0])) > 1
    assert both[:1] == satori_fast.generate(config, [QUESTION], num_samples=3)
    assert both[:1] != satori_fast.generate(config, [QUESTION], num_samples=3, seed=1)


def test_the_model_is_the_one_that_is_named(config: Config, tmp_path: Path) -> None:
    other = save_chat_model(tmp_path / "other", ["no words of sums"], num_hidden_layers=1)
    texts = satori_fast.generate(config, [QUESTION], model=other, num_samples=3)
    assert texts != satori_fast.generate(config, [QUESTION], num_samples=3)


def test_what_cannot_be_asked(config: Config) -> None:
    with pytest.raises(ConfigError, match="more than max_prompt_tokens = 64"):
        satori_fast.generate(config, ["1 + 1 " * 80])
    without = config.model_copy(update={"model": config.model.model_copy(update={"path": None})})
    with pytest.raises(ConfigError, match=r"generate: model\.path is not set"):
        satori_fast.generate(without, [QUESTION])
