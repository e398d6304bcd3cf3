# SPDX-License-Identifier: Apache-2.0
"""The verbs from Python: a config is loaded, run, evaluated, asked and explained."""

from __future__ import annotations

from pathlib import Path

import pytest

import satori_fast
from tests.architecture.documents import blocks, documents
from tests.stages.test_run import TINY

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


def test_only_the_verbs_are_there() -> None:
    for name in satori_fast.__all__:
        assert getattr(satori_fast, name).__doc__ or name == "Config"
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = satori_fast.train
