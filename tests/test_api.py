# SPDX-License-Identifier: Apache-2.0
"""The verbs from Python: a config is loaded, run, evaluated, asked and explained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import satori_fast
from satori_fast import ConfigError
from satori_fast.data.tokenizer import load_tokenizer
from tests.architecture.documents import blocks, documents
from tests.stages.test_init import sums, write_rows
from tests.stages.test_run import TINY
from tests.tiny_models import save_chat_model

QUESTION = "p 3 q 9 pick 1 sum 9"
README = next(path for path in documents() if path.name == "README.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a config, mine.toml, whose run and samples the ten lines name."""
    folder = tmp_path_factory.mktemp("api")
    small = TINY.replace('name = "tiny"', 'name = "mine"').replace('"ppo"', '"grpo"')
    (folder / "mine.toml").write_text(small, encoding="utf-8")
    return folder


def ten_lines() -> str:
    """The block of the README that uses the package from Python."""
    (block,) = [b for b in blocks(README) if b.text.startswith("import satori_fast")]
    return block.text


@pytest.fixture(scope="module")
def used(folder: Path) -> dict[str, object]:
    """The names that the README's lines leave."""
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(ten_lines(), "README.md", "exec"), names)
    return names


def test_the_lines_of_the_readme_are_ten(used: dict[str, object]) -> None:
    lines = [line for line in ten_lines().splitlines() if line.strip()]
    assert len(lines) <= 10
    summary, texts = used["summary"], used["texts"]
    assert isinstance(summary, dict) and isinstance(texts, list)
    stages = summary["stages"]
    assert [stage["stage"] for stage in stages] == ["synthesize", "supervised", "reinforce"]
    assert [len(own) for own in texts] == [4] and all(isinstance(t, str) for t in texts[0])


def test_evaluation_is_that_of_the_run(used: dict[str, object]) -> None:
    summary, result = used["summary"], used["result"]
    assert isinstance(summary, dict)
    assert result.accuracy == summary["stages"][-1]["accuracy"]  # type: ignore[attr-defined]


def test_explained_are_the_samples_of_the_run(used: dict[str, object], folder: Path) -> None:
    explanation = used["explanation"]
    lines = (folder / "runs" / "mine" / "samples.jsonl").read_text().splitlines()
    assert len(explanation.rows) == len(lines)  # type: ignore[attr-defined]


def test_samples_have_their_own_seeds(used: dict[str, object], folder: Path) -> None:
    config = satori_fast.load_config(folder / "mine.toml")
    model = folder / "runs" / "mine" / "models" / "reinforce"
    options = {"model": model, "num_samples": 3}
    both = satori_fast.generate(config, [QUESTION, QUESTION], **options)
    assert both[:1] == satori_fast.generate(config, [QUESTION], **options)
    other = satori_fast.generate(config, [QUESTION], **options, seed=1)
    assert other != both[:1]
    greedy = satori_fast.generate(config, [QUESTION], model=model)
    assert greedy == satori_fast.generate(config, [QUESTION], model=model, seed=5)


def test_a_chat_model_is_asked_by_its_template(tmp_path: Path) -> None:
    """A question of one's own needs neither data nor a run."""
    rows = sums(30)
    model = save_chat_model(tmp_path / "tiny", [row["response"] for row in rows])
    data = write_rows(tmp_path / "mine.jsonl", rows)
    path = tmp_path / "config.toml"
    path.write_text(
        "schema_version = 1\n"
        f"model.path = {json.dumps(str(model))}\n"
        f"data = {{ source = {json.dumps(str(data))}, template = 'chat', format = 'plain' }}\n"
        "data.max_prompt_tokens = 64\n".replace("data.max", "# data.max")
        + "rollout = { max_seqlen = 200, max_new_tokens = 12 }\n",
        encoding="utf-8",
    )
    config = satori_fast.load_config(path, ["--data.max_prompt_tokens", "64"])
    data.unlink()
    ((text,),) = satori_fast.generate(config, ["What is 1 + 1?"])
    tokenizer = load_tokenizer(model)
    assert 0 < len(tokenizer(text)["input_ids"]) <= 12  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has 4.. tokens, more than max_prompt_tokens = 64"):
        satori_fast.generate(config, ["1 + 1 " * 80])


def test_what_has_no_model(folder: Path) -> None:
    config = satori_fast.load_config(folder / "mine.toml")
    with pytest.raises(ConfigError, match="generate: model.path is not set"):
        satori_fast.generate(config, [QUESTION])


def test_only_the_verbs_are_there() -> None:
    for name in satori_fast.__all__:
        assert getattr(satori_fast, name).__doc__ or name == "Config"
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = satori_fast.train
