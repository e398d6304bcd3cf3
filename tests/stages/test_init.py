# SPDX-License-Identifier: Apache-2.0
"""`init` from a model folder and a data file to a config that loads, and is tried out small."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from satori_fast import cli
from satori_fast.config import ConfigError, load_config
from satori_fast.stages.init import config_text, run_name, write_config
from satori_fast.stages.init_guess import Setting
from tests.tiny_models import save_chat_model


def sums(number: int = 200) -> list[dict[str, Any]]:
    """Sums with worked solutions."""
    rows: list[dict[str, Any]] = []
    for i in range(number):
        first, second = 10 + i % 90, 10 + i * 7 % 83
        steps = f"{first} + {second} = {first + second}."
        answer = f"{steps} The answer is \\boxed{{{first + second}}}."
        rows.append(
            {"question": f"What is {first} + {second}? ({i})", "answer": answer, "n": i}
            | {"answer": first + second, "response": answer}
        )
    return rows


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"{row['question']} {row['response']}" for row in sums()]
    return save_chat_model(tmp_path_factory.mktemp("models") / "tiny", texts)


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    rows = [
        {"question": row["question"], "answer": f"It is so.\n#### {row['answer']}"}
        for row in sums()
    ]
    return write_rows(tmp_path / "gsm8k_small.jsonl", rows)


def test_the_config_loads_and_says_what_was_seen_and_guessed(
    model: Path, gsm8k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.toml"
    assert cli.main(["init", str(model), str(gsm8k), "--output", str(path)]) == 0
    said = capsys.readouterr().out
    assert "data: " in said and "200 problems; question in question, answer in answer" in said
    assert "guessed:\n" in said and "reinforce.optimizer.learning_rate" in said
    assert "time: about " in said and "memory: about " in said
    config = load_config(path)
    assert config.name == "gsm8k_small" and config.stages == ("supervised", "reinforce")
    assert config.data.template == "chat" and config.data.mapping == "gsm8k"
    assert config.data.system is not None and "\\boxed{}" in config.data.system
    assert config.data.format == "plain" and not config.restarts_enabled
    assert config.model.dtype == "float32"  # a small model
    room = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    assert config.rollout.max_seqlen == room <= 512
    text = path.read_text(encoding="utf-8")
    keys = [line for line in text.splitlines() if " = " in line and not line.startswith("#")]
    assert sum("#" in line for line in keys) >= len(keys) - 4  # reasons, behind or above
    assert text.count("guess:") == said.split("guessed:\n")[1].split("memory:")[0].count("\n")


def test_the_config_is_tried_out(model: Path, gsm8k: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    write_config(str(model), str(gsm8k), output=path)
    assert cli.main(["run", str(path), "--dry-run"]) == 0


def test_without_solutions_there_is_nothing_to_imitate(model: Path, tmp_path: Path) -> None:
    rows = [{"problem": row["question"], "answer": row["answer"]} for row in sums()]
    data, path = write_rows(tmp_path / "mine.jsonl", rows), tmp_path / "config.toml"
    made = write_config(str(model), str(data), output=path)
    assert load_config(path).stages == ("reinforce",) and made.tuning_s is None


def refusal(model: str | Path, data: str | Path, output: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        write_config(str(model), str(data), output=output)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_written(model: Path, gsm8k: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert refusal(tmp_path / "none", gsm8k, path).startswith(f"MODEL {tmp_path / 'none'}: model")
    missing = refusal(model, tmp_path / "none.jsonl", path)
    assert missing.startswith(f"DATA {tmp_path / 'none.jsonl'}: ")
    nameless = write_rows(tmp_path / "odd.jsonl", [{"a": "1 + 1", "b": "2"}])
    told = refusal(model, nameless, path)
    assert "its fields are: a, b: rename two of them to question and answer" in told
    path.write_text("mine")
    assert "exists: choose another name with --output" in refusal(model, gsm8k, path)
    assert path.read_text() == "mine"


def test_the_text_of_a_config() -> None:
    settings = [
        Setting("stages", ["reinforce"], "why"),
        Setting("data.system", 'say "yes"\\ \x7f' * 12, "long", is_guess=True),
        Setting("reinforce.optimizer.learning_rate", 2e-05, "small", is_guess=True),
        Setting("data.template", "chat", "its own"),
        Setting("reinforce.recipe", "grpo", "x"),
    ]
    text = config_text(settings, name="na me", command=("a model", "b.jsonl"))
    assert "'a model' b.jsonl" in text
    assert "# guess: long\nsystem = " in text and "learning_rate = 2e-05" in text
    assert tomllib.loads(text) == {
        "schema_version": 1,
        "name": "na me",
        "stages": ["reinforce"],
        "data": {"system": settings[1].value, "template": "chat"},
        "reinforce": {"optimizer": {"learning_rate": 2e-05}, "recipe": "grpo"},
    }


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/my set.v2.jsonl.gz", "my-set.v2"),
        ("...jsonl", "run"),
        ("\u00f6/\u00e4.json", "\u00e4"),
    ],
)
def test_names_of_runs(path: str, name: str) -> None:
    assert run_name(path) == name
