# SPDX-License-Identifier: Apache-2.0
"""Agents from the config: keys, addresses, and a scalar reward model against transformers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.config import AgentConfig, ConfigError
from satori_fast.data.tokenizer import load_tokenizer, train_tokenizer
from satori_fast.stages.agents import OPENAI_HOST, ScalarRewardModel, endpoint_settings
from satori_fast.synthesis.agents import Unusable
from satori_fast.types import Problem
from tests.synthesis.test_engine_chat import CHAT_TEMPLATE
from tests.tiny_models import tiny_model

AGENT = AgentConfig(kind="endpoint", model="m", url="http://127.0.0.1:9/v1")
PROBLEM = Problem("p", "What is 2 + 2?", "4")


def test_keys_come_from_the_named_variable() -> None:
    assert endpoint_settings(AGENT, "critic", {}).api_key == "none"
    assert endpoint_settings(AGENT, "critic", {"OPENAI_API_KEY": "k"}).api_key == "k"
    public = AGENT.model_copy(update={"url": f"https://{OPENAI_HOST}/v1"})
    assert endpoint_settings(public, "critic", {"OPENAI_API_KEY": "k"}).api_key == "k"
    stranger = AGENT.model_copy(update={"url": "https://192.0.2.1/v1"})
    with pytest.raises(ConfigError, match=r"critic.api_key_variable is missing: .*192.0.2.1"):
        endpoint_settings(stranger, "critic", {"OPENAI_API_KEY": "k"})
    named = stranger.model_copy(update={"api_key_variable": "OPENAI_API_KEY"})
    assert endpoint_settings(named, "critic", {"OPENAI_API_KEY": "k"}).api_key == "k"
    other = AGENT.model_copy(update={"api_key_variable": "KEY", "url": "https://192.0.2.1/v1"})
    assert endpoint_settings(other, "critic", {"KEY": "k"}).api_key == "k"
    with pytest.raises(ConfigError, match=r"critic.api_key_variable: the environment has no KEY"):
        endpoint_settings(other, "critic", {"OPENAI_API_KEY": "k"})


def test_an_address_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"critic.url: 'nowhere' is not of the form"):
        endpoint_settings(AGENT.model_copy(update={"url": "nowhere"}), "critic", {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A scalar model as transformers writes one."""
    tokenizer = train_tokenizer([PROBLEM.question], 300)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    config = tiny_model("llama31", vocab_size=len(tokenizer)).config
    config.num_labels, config.pad_token_id = 1, 0
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    return tmp_path


def reward_model(folder: Path, max_seqlen: int = 256) -> ScalarRewardModel:
    agent = AgentConfig(kind="scalar", model=str(folder), max_seqlen=max_seqlen, dtype="float32")
    return ScalarRewardModel(agent, initialize_parallel(seed=0))


def test_scores_of_a_scalar_model_are_those_of_transformers(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer: Any = load_tokenizer(folder)
    scores, expected = [], []
    for response in ("Add.<|continue|> \\boxed{4}", "No.<|reflect|> But wait.<|explore|> Add."):
        turns = [
            {"role": "user", "content": PROBLEM.question},
            {"role": "assistant", "content": response.replace("<|continue|> ", "\n")},
        ]
        turns[1]["content"] = (
            turns[1]["content"].replace("<|reflect|> ", "\n").replace("<|explore|> ", "\n")
        )
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            expected.append(model(ids, attention_mask=torch.ones_like(ids)).logits.item())
        scores.append(asyncio.run(reward_model(folder).score(PROBLEM, response)))
    assert scores == pytest.approx(expected, abs=1e-5)
    assert abs(scores[0] - scores[1]) > 1e-4


def test_what_is_too_long_gets_no_score(folder: Path) -> None:
    with pytest.raises(Unusable, match="reward_model_refused"):
        asyncio.run(reward_model(folder, 20).score(PROBLEM, "x" * 40))


def test_context_of_the_model(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward_model.max_seqlen = 9999 exceeds the 512"):
        reward_model(folder, 9999)
