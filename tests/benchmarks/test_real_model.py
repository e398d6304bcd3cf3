# SPDX-License-Identifier: Apache-2.0
"""The training that both sides do: what they are given, and a tiny one for real."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks.peers.task import Task, task_config, task_of
from benchmarks.real_model import CONFIG, compare
from satori_fast.config import load_config
from satori_fast.data.word_problems import WordProblems
from tests.tiny_models import save_chat_model

SMALL = """
schema_version = 1
base = "{base}"
name = "small"
[rollout]
max_seqlen = 420
max_new_tokens = 12
[data]
num_train = 20
max_prompt_tokens = 400
[model]
dtype = "float32"
[reinforce]
num_steps = 2
problems_per_step = 4
samples_per_problem = 4
[evaluation]
num_problems = 6
"""

LEVELS = load_config(Path(CONFIG)).data.levels


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, str]:
    """A config file and a model folder."""
    config = tmp_path / "small.toml"
    config.write_text(SMALL.format(base=Path(CONFIG).resolve()))
    problems = WordProblems(40, levels=LEVELS, split="train", seed=0)
    texts = [f"{problem.question} \\boxed{{{problem.answer}}}" for problem in problems]
    return str(config), str(save_chat_model(tmp_path / "model", texts, max_position_embeddings=512))


def test_questions_are_the_configs_training_problems(small: tuple[str, str]) -> None:
    config, model = small
    task = task_of(config, model, steps=3, seed=1, title="t")
    assert (len(task.questions), task.num_rows, task.max_tokens) == (12, 16, 12)
    drawn = list(WordProblems(12, levels=LEVELS, split="train", seed=1))
    assert [question for question, _ in task.problems(2)] == [p.question for p in drawn[8:]]
    assert task.system is not None and "\\boxed{}" in task.system
    plain = task_config(config, model)
    assert not plain.restarts_enabled and plain.reinforce.weighting == "token"


def test_a_task_reads_back_as_it_was_written(small: tuple[str, str], tmp_path: Path) -> None:
    task = task_of(*small, steps=2, seed=0, title="t")
    task.write(tmp_path / "task.json")
    assert Task.read(tmp_path / "task.json") == task


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_both_train_on_the_same_prompts(small: tuple[str, str], tmp_path: Path) -> None:
    place = tmp_path / "race"
    place.mkdir()
    result = compare(task_of(*small, steps=2, seed=0, title="t"), place, core="any")
    for side in ("satori", "trl"):
        figures = result["sides"][side]
        records = figures["records"]
        assert all(16 <= record["completion_tokens"] <= 16 * 12 for record in records)
        assert all(record["tokens"] > record["completion_tokens"] for record in records)
        assert figures["tokens_per_s"]["update"] > 0
        assert (place / f"trained-{side}" / "model.safetensors").exists()
        assert result["accuracy"][side]["num_problems"] == 6
    assert result["ratios"]["tokens_per_s"]["step"] > 0
