# SPDX-License-Identifier: Apache-2.0
"""The record of a real model's runs: its arithmetic, and a tiny one made whole and not twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure, real_words
from benchmarks.real_words import (
    CONFIG,
    MANNERS,
    TRAINED,
    TUNED,
    UNTOUCHED,
    answers,
    corrections,
    summarise,
)
from satori_fast.config import load_config
from satori_fast.data.stories import parse_story
from satori_fast.data.word_problems import WordProblems, expert_steps
from tests.tiny_models import save_chat_model

SMALL = """
schema_version = 1
base = "{base}"
name = "small"
[model]
path = "{model}"
dtype = "float32"
[rollout]
max_seqlen = 640
max_new_tokens = 12
[data]
num_train = 60
max_prompt_tokens = 600
[synthesize]
num_problems = 8
num_solutions = 4
[solutions]
num_problems = 4
num_samples = 2
[reinforce]
num_steps = 1
problems_per_step = 2
samples_per_problem = 2
[evaluation]
num_problems = 4
"""


def asked(greedy: float, sampled: float) -> dict[str, Any]:
    return {"greedy": {"accuracy": greedy}, "sampled": {"accuracy": sampled}}


def test_what_rl_adds_is_paired_by_seed() -> None:
    seeds = {
        0: {TUNED: asked(0.5, 0.25), TRAINED: asked(0.75, 0.75)},
        1: {TUNED: asked(0.25, 0.125), TRAINED: asked(0.5, 0.5)},
    }
    table = summarise(seeds, asked(0.0, 0.0))
    assert table["greedy"][UNTOUCHED] == 0.0
    assert table["greedy"][TRAINED]["mean"] == 0.625
    assert table["greedy"][TRAINED]["standard_error"] == pytest.approx(0.125)
    assert table["greedy"]["added"]["mean"] == 0.25
    assert table["greedy"]["added"]["standard_error"] == 0.0
    assert table["sampled"]["added"]["mean"] == pytest.approx((0.5 + 0.375) / 2)


def test_answers_are_those_to_the_first_problems(tmp_path: Path) -> None:
    rows = [
        {"problem_id": f"w/heldout/{n}", "segments": [["a", f"{n}"], ["b", "!"]]}
        for n in (10, 2, 1)
    ]
    (tmp_path / "responses.jsonl").write_text("\n".join(map(json.dumps, [{}, *rows])))
    assert answers(tmp_path, 2) == {"w/heldout/1": "1!", "w/heldout/2": "2!"}


@pytest.mark.slow
def test_a_tiny_model_is_trained_and_asked_and_nothing_is_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = WordProblems(40, levels=[1, 2, 3], split="train", seed=0)
    texts = [f"{problem.question} \\boxed{{{problem.answer}}}" for problem in problems]
    model = save_chat_model(tmp_path / "model", texts, max_position_embeddings=1024)
    config = tmp_path / "small.toml"
    config.write_text(SMALL.format(base=Path(CONFIG).resolve(), model=model))
    records: dict[str, Any] = {}
    monkeypatch.setattr(
        measure, "record", lambda name, table: records.setdefault(name, []).append(table)
    )
    command = ["--seeds", "0", "--config", str(config), "--folder", str(tmp_path / "runs")]
    real_words.main(command)
    monkeypatch.setattr(real_words, "satori_fast", None)  # whatever is done again fails
    real_words.main(command)
    first, again = records["real_words"]
    assert first == again
    own = first["seeds"]["0"]
    assert own["cost"]["peak_gib"] > 0 and own["cost"]["tokens_per_s"][TRAINED]["rollout"] > 0
    for model_name in (TUNED, TRAINED):
        assert {own[model_name][manner]["num_problems"] for manner in MANNERS} == {4}
        assert set(own[model_name]["sampled"]["steps"]) == {"slips", "mends", "breaks"}
        assert len(own[model_name]["answers"]) == 4
    assert first[UNTOUCHED]["sampled"]["num_problems"] == 4
    written = {"figures": {**first, "seeds": {"7": own}}}
    (tmp_path / "real_words.json").write_text(json.dumps(written))
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    real_words.main([*command, "--extend"])
    extended = records["real_words"][-1]
    assert list(extended["seeds"]) == ["0", "7"] and extended["command"].endswith("--seeds 0 7")
    assert extended[UNTOUCHED] == first[UNTOUCHED]
    with pytest.raises(SystemExit, match="is of other settings"):
        real_words.main([*command, "--extend", "--reinforce.num_steps", "2"])


def test_corrections_are_counted_over_all_responses(tmp_path: Path) -> None:
    config = load_config(Path(CONFIG))
    problem = next(iter(WordProblems(300, levels=config.data.levels, split="heldout", seed=0)))
    rights = expert_steps(parse_story(problem.question))
    segments = [
        ["continue", "1 + 1 = 3"],
        ["reflect", "<|reflect|> That is wrong."],
        ["explore", f"<|explore|> {rights[0]}"],
    ]
    row = {"problem_id": problem.problem_id, "segments": segments}
    (tmp_path / "responses.jsonl").write_text("\n".join(map(json.dumps, [{}, row, row])))
    found = corrections(tmp_path, config)
    assert found == {"slips": 2, "mends": 2, "breaks": 0}
