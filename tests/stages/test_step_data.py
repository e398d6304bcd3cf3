# SPDX-License-Identifier: Apache-2.0
"""The step problems of a run: what a file gives, what is held out, and what is counted."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from satori_fast.config import Config, ConfigError, load_config
from satori_fast.data.cursor import is_heldout
from satori_fast.data.problem_split import question_key
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.resume import check_inputs, input_digests
from satori_fast.stages.run import Run, build_run
from satori_fast.stages.step_data import StepData, load_step_data
from satori_fast.types import Problem
from tests.data.agent_runs import FORMS, RUNS
from tests.data.test_agent_steps import TOOL

TINY = """
schema_version = 1
name = "tiny"
stages = ["srl"]
[model]
hidden_size = 32
num_layers = 2
intermediate_size = 64
num_attention_heads = 2
num_key_value_heads = 1
[tokenizer]
kind = "bpe"
vocab_size = 400
[data]
template = "plain"
format = "plain"
heldout_fraction = 0.3
max_prompt_tokens = 400
[rollout]
max_seqlen = 480
max_new_tokens = 40
[reward]
num_workers = 0
reflection_bonus = 0.0
[srl]
num_validation = 1000
[evaluation]
num_problems = 4
"""


def sum_row(n: int, response: str | None = None) -> dict[str, Any]:
    """How many n + 2 + 3 are, in three numbered steps."""
    solution = (
        f"I think it over.\n\n## Solution\n1. **Add two** {n} + 2 = {n + 2}\n"
        f"2. **Add three** {n + 2} + 3 = {n + 5}\n3. **Answer** \\boxed{{{n + 5}}}"
    )
    return {
        "problem_id": f"sum-{n}",
        "question": f"What is {n} + 2 + 3?",
        "answer": str(n + 5),
        "response": solution if response is None else response,
    }


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ROWS = [sum_row(n) for n in range(40)]


def config_of(folder: Path, rows: Sequence[dict[str, Any]], *overrides: str) -> Config:
    """A run on `ROWS`; its expert solutions are `rows`."""
    path = folder / "tiny.toml"
    path.write_text(TINY)
    data = written(folder / "data.jsonl", ROWS)
    expert = written(folder / "expert.jsonl", rows)
    options = ["--output_dir", f"'{folder}'", "--data.source", f"'{data}'"]
    options += ["--data.mapping", "coat", "--srl.mapping", "coat", "--srl.expert", f"'{expert}'"]
    return load_config(path, [*options, *overrides])


def step_data(run: Run) -> StepData:
    return load_step_data(run.context(plan_stages(run.config)[0]), run.folder)


def made(config: Config) -> StepData:
    with build_run(config) as run:
        return step_data(run)


def questions(problems: Sequence[Problem]) -> set[str]:
    return {problem.question for problem in problems}


def test_no_question_is_trained_on_and_measured(tmp_path: Path) -> None:
    # Two solutions of each question, the second in other words and other spacing.
    again = [sum_row(n) | {"question": f"what is  {n} + 2 + 3?", "problem_id": f"b{n}"}
             for n in range(60)]  # fmt: skip
    with build_run(config_of(tmp_path, [*ROWS, *again])) as run:
        data = step_data(run)
        evaluated = {question_key(problem.question) for problem in run.heldout}
        resumed = step_data(run)
    training, validation = (
        {question_key(question) for question in questions(problems)}
        for problems in (data.training, data.validation)
    )
    assert len(evaluated) == 4 and evaluated <= validation
    assert training.isdisjoint(validation | evaluated)
    expected = {key for row in again if is_heldout(key := question_key(row["question"]), 0.3)}
    assert validation == expected | evaluated and len(training | validation) == 60
    # Two instances of each of the hundred solutions: the last step is not asked for.
    assert len(data.training) + len(data.validation) == 200
    assert data.figures == {
        "num_solutions": 100,
        "num_used": 100,
        "num_step_problems": len(data.training),
        "num_validation": len(data.validation),
    }
    assert all(problem.answer is None and problem.asks_step for problem in data.training)
    assert resumed == data


def test_a_data_set_is_its_own_expert(tmp_path: Path) -> None:
    """All held-out questions are evaluated on, and validated on too: some are left for that."""
    data = made(config_of(tmp_path, ROWS, "--evaluation.num_problems", "40"))
    held = {row["question"] for row in ROWS if is_heldout(question_key(row["question"]), 0.3)}
    assert questions(data.validation) == held and 0 < len(held) < 40
    assert questions(data.training) == {row["question"] for row in ROWS} - held


def test_what_is_asked_and_compared(tmp_path: Path) -> None:
    for tell, target, title in (
        ("false", "2. **Add three** 7 + 3 = 10", None),
        ("true", "7 + 3 = 10", "Add three"),
    ):
        config = config_of(tmp_path, ROWS, "--srl.tell_title", tell, "--name", tell)
        with build_run(config) as run:
            data = step_data(run)
            both = (*data.training, *data.validation)
            (second,) = [p for p in both if p.problem_id.endswith("sum-5/step-2")]
            shown = run.renderer.decode(run.renderer.prompt_ids(second))
        assert second.prefix is not None
        assert (second.prefix.target, second.prefix.title) == (target, title)
        assert shown == (
            "What is 5 + 2 + 3?\n\nPartial solution:\n1. **Add two** 5 + 2 = 7"
            + ("\n\nNext step: Add three\n" if title else "\n")
        )


def test_what_cannot_be_used_is_counted_by_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [
        sum_row(1, "1. **Add** 1 + 5 = 7\n2. **Answer** \\boxed{7}"),
        sum_row(2, "2. **Add** 2 + 5 = 7\n1. **Answer** \\boxed{7}"),
        sum_row(3, "1. **Add**\n2. **Answer** \\boxed{8}"),
        sum_row(4, "It is \\boxed{9}"),
        sum_row(5, "Add up: \\boxed{10}"),
        sum_row(6, "1. **Answer** \\boxed{11}"),
    ]
    bad.append({"question": "", "answer": "1", "response": "1. **Answer** \\boxed{1}"})
    with caplog.at_level(logging.WARNING):
        data = made(config_of(tmp_path, [*bad, *ROWS]))
    assert data.figures == {
        "num_solutions": 47,
        "num_used": 40,
        "discarded_empty_field_'question'": 1,
        "discarded_wrong_answer": 1,
        "discarded_out_of_order": 1,
        "discarded_title_without_text": 1,
        "discarded_no_steps": 2,
        "discarded_too_few_steps": 1,
        "num_step_problems": len(data.training),
        "num_validation": len(data.validation),
    }
    (warning,) = [r.getMessage() for r in caplog.records if "discarded" in r.getMessage()]
    assert "2 x no_steps (the first: expert/sum-4: It is \\boxed{9})" in warning


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    plain = [sum_row(n, f"It is \\boxed{{{n + 5}}}") for n in range(3)]
    with pytest.raises(
        ValueError,
        match=r"no step problem is left of 3 expert solutions read as numbered: 3 x no_s",
    ):
        made(config_of(tmp_path, plain))
    with pytest.raises(
        ConfigError, match=r"no step problem is held out to validate on: raise data"
    ):
        known = [row for row in ROWS if not is_heldout(question_key(row["question"]), 0.3)]
        made(config_of(tmp_path, known, "--name", "other"))
    with pytest.raises(ConfigError, match=r"srl\.expert: .*nowhere\.jsonl"):
        path = tmp_path / "nowhere.jsonl"
        made(config_of(tmp_path, ROWS, "--srl.expert", f"'{path}'", "--name", "third"))


def test_a_prompt_above_the_limit_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of each solution the second prompt is the longer one."""
    whole = made(config_of(tmp_path, ROWS))
    with build_run(config_of(tmp_path, ROWS, "--name", "lengths")) as run:
        lengths = [len(run.renderer.unchecked_prompt_ids(p)) for p in whole.training]
    limit = min(lengths[1::2]) - 1
    assert limit >= max(lengths[::2])
    options = ("--data.max_prompt_tokens", str(limit), "--name", "short")
    with caplog.at_level(logging.WARNING):
        data = made(config_of(tmp_path, ROWS, *options))
    assert list(data.training) == list(whole.training[::2])
    number = len(whole.training) // 2
    assert f"{number} step problems have a prompt above data.max_prompt_tokens" in caplog.text
    with pytest.raises(ValueError, match=r"no step problem fits data\.max_prompt_tokens = 20"):
        long = [row | {"question": row["question"] + " Tell me." * 20} for row in ROWS]
        options = ("--data.max_prompt_tokens", "20", "--name", "none")
        made(config_of(tmp_path, long, *options))


def test_the_file_of_solutions_is_an_input_of_the_run(tmp_path: Path) -> None:
    config = config_of(tmp_path, ROWS)
    before = input_digests(config)
    assert before["srl.expert"]["path"] == str(tmp_path / "expert.jsonl")
    check_inputs(before, before, ["srl"])
    written(tmp_path / "expert.jsonl", ROWS[1:])
    with pytest.raises(ConfigError, match=r"srl\.expert: .*expert\.jsonl is not what it was"):
        check_inputs(before, input_digests(config), ["srl"])


def test_other_settings_make_the_problems_anew(tmp_path: Path) -> None:
    first = made(config_of(tmp_path, ROWS))
    asked = config_of(tmp_path, ROWS, "--srl.last_step", "ask")
    with build_run(asked, resume=True) as run:  # no stage has begun
        again = step_data(run)
    assert 3 * len(first.training) == 2 * len(again.training)


# --- trajectories --------------------------------------------------------------------------------


def test_trajectories_of_an_agent(tmp_path: Path) -> None:
    """Every resolved row gives the instances of the table; those of one task stay together."""
    form = FORMS[0]
    rows = [run.row(form) for run in RUNS]
    # The same tasks again, by another run.
    rows += [row | {"traj_id": f"{row['traj_id']}-again"} for row in rows]
    options = ("--srl.parser", "agent", "--data.max_prompt_tokens", "4000")
    options += ("--rollout.max_seqlen", "4096", "--packing.max_tokens_per_microbatch", "4096")
    data = made(config_of(tmp_path, rows, *options))
    training, validation = questions(data.training), questions(data.validation)
    assert training and validation and training.isdisjoint(validation)
    number = 2 * sum(count for count, _, _ in TOOL.values())
    assert len(data.training) + len(data.validation) == number
    assert data.figures["num_used"] == 2 * len(TOOL) == 2 * sum(run.resolved for run in RUNS)
    assert all(p.prefix is not None and p.prefix.target for p in data.training)
