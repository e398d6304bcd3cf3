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
    page,
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


def test_the_page_has_accuracy_steps_cost_and_answers() -> None:
    def own(greedy: float, mends: int, answer: str) -> dict[str, Any]:
        steps = {"slips": 9, "mends": mends, "breaks": 1}
        found = asked(greedy, greedy / 2)
        return {name: {**of, "steps": steps} for name, of in found.items()} | {
            "answers": {"w/1": answer}
        }

    def cost(minutes: float, rate: int) -> dict[str, Any]:
        rates = {TUNED: {"update": 280}, TRAINED: {"rollout": rate, "update": 390}}
        return {"minutes": minutes, "peak_gib": 5.5, "tokens_per_s": rates}

    seeds = {
        0: {TUNED: own(0.5, 3, "5"), TRAINED: own(0.75, 1, "6"), "cost": cost(30.0, 100)},
        1: {TUNED: own(0.25, 4, "?"), TRAINED: own(0.5, 2, "?"), "cost": cost(32.5, 300)},
    }
    untouched = asked(0.0, 0.0)
    text = page({"seeds": seeds, "table": summarise(seeds, untouched)}, {"w/1": "3 + 3 = ?"})
    assert text.splitlines()[2:] == [
        "| greedy | 0.0 % | 37.5 +- 12.5 % | 62.5 +- 12.5 % | 25.0 +- 0.0 |",
        "| sampled | 0.0 % | 18.8 +- 6.2 % | 31.2 +- 6.2 % | 12.5 +- 0.0 |",
        "| steps mended / broken, greedy | - | 7 / 2 | 3 / 2 | |",
        "| steps mended / broken, sampled | - | 7 / 2 | 3 / 2 | |",
        "",
        "At most 32.5 minutes and 5.5 GiB a run. Tokens per second:",
        "supervised update 280, reinforce rollout 200, reinforce update 390.",
        "",
        *("```", "3 + 3 = ?", "", "before: 5", "", "after:  6", "```"),
    ]
    alone = {0: seeds[0]}  # no error of one seed
    text = page({"seeds": alone, "table": summarise(alone, untouched)}, {"w/1": "3 + 3 = ?"})
    assert text.splitlines()[2] == "| greedy | 0.0 % | 50.0 % | 75.0 % | 25.0 |"


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
