# SPDX-License-Identifier: Apache-2.0
"""Best of n by a reward model, against transformers' scores of the same texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from satori_fast.config import ConfigError
from satori_fast.data.formats.coat import COAT
from satori_fast.stages.benchmark import BenchmarkOptions, evaluate_benchmarks
from satori_fast.stages.setup import keep_tokenizer
from tests.stages.test_benchmark import options, own_cache, place
from tests.tiny_models import tiny_model

__all__ = ["own_cache", "place"]  # fixtures


@pytest.fixture
def reward_model(place: Path, tmp_path: Path) -> Path:
    """A scalar model with the tokenizer of the evaluated one, and with scores that differ."""
    # The protocol of Satori adds the meta-action tokens.
    keep_tokenizer(place / "model", tmp_path / "scalar", COAT.special_tokens)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "scalar")
    config = tiny_model("qwen2", vocab_size=len(tokenizer) + 8).config
    config.num_labels, config.pad_token_id = 1, 0
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path / "scalar")
    return tmp_path / "scalar"


def asked(place: Path, output: Path, **changes: Any) -> BenchmarkOptions:
    sampled = {"benchmarks": ("gsm8k",), "num_samples": 3, "temperature": 1.0}
    return options(place, output, **sampled, **changes)


def test_the_best_of_n_is_that_of_the_highest_score(
    place: Path, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[tuple[str, str, int], float] = {}
    result_of = evaluate_benchmarks.__globals__["benchmark_result"]

    def noted(*arguments: Any, **keys: Any) -> Any:
        given.update(keys["rewards"])
        return result_of(*arguments, **keys)

    monkeypatch.setitem(evaluate_benchmarks.__globals__, "benchmark_result", noted)
    output = tmp_path / "out"
    result = evaluate_benchmarks(asked(place, output, reward_model=str(reward_model)))
    found = result["benchmarks"]["gsm8k"]
    assert (found["best_of_n"]["n"], result["reward_model"]) == (6, str(reward_model))
    tokenizer: Any = AutoTokenizer.from_pretrained(reward_model)
    model = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    records = map(json.loads, (output / "responses.jsonl").read_text().splitlines()[1:])
    responses = [record.get("record", record) for record in records]
    assert len(given) == len(responses) == 18
    for response in responses:
        text = response["prompt"] + "".join(text for _, text in response["segments"])
        ids = tokenizer.encode(text, add_special_tokens=False)
        ended = [*ids, tokenizer.eos_token_id] if response["finish"] == "stop" else ids
        if response["finish"] == "length":
            ended[-1] = tokenizer.eos_token_id
        with torch.no_grad():
            hidden = model.model(torch.tensor([ended])).last_hidden_state
            score = model.score(hidden)[0, -1, 0].item()
        key = response["benchmark"], response["problem_id"], response["sample"]
        assert given[key] == pytest.approx(score, abs=1e-4)
    assert len({round(score, 4) for score in given.values()}) > 6


def test_one_response_leaves_no_choice(place: Path, reward_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--reward-model chooses among several responses"):
        options(place, tmp_path / "out", reward_model=str(reward_model))
