# SPDX-License-Identifier: Apache-2.0
"""Training and held-out problems: disjoint, once each, short enough, and read no further than
needed."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from satori_fast.data.problem_split import question_key, split_problems
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer
from satori_fast.data.sources import CheckAnswers, PoolSource, load_pool, load_problems
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.types import Problem

WORDS = ["what", "is", *map(str, range(600))]
RENDERER = PromptRenderer(build_word_tokenizer(WORDS), PLAIN_TEMPLATE, max_prompt_tokens=12)


def write(path: Path, questions: list[str], *, answer: str = "1", end: str = "") -> Path:
    rows = [{"question": question, "answer": answer} for question in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return path


def split(
    source: Path,
    benchmark: Path | None = None,
    *,
    check_answers: CheckAnswers | None = None,
    **changed: int,
) -> tuple[list[Problem], list[Problem]]:
    settings: dict[str, Any] = {"num_train": None, "num_heldout": 1000}
    return split_problems(
        partial(load_problems, source, "coat", check_answers=check_answers),
        partial(load_problems, benchmark, "coat") if benchmark else None,
        RENDERER,
        heldout_fraction=0.25,
        **settings | changed,
    )


def keys(problems: list[Problem]) -> list[str]:
    return [question_key(problem.question) for problem in problems]


def test_a_question_is_on_one_side_and_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Spacing and case do not make another question of it."""
    questions = [f"what is {i}" for i in range(400)]
    source = write(tmp_path / "a.jsonl", questions + [f"What  is\n{i}" for i in range(400)])
    with caplog.at_level(logging.INFO):
        training, heldout = split(source)
    assert sorted(keys(training) + keys(heldout)) == sorted(questions)
    # Binomial with standard deviation 8.7: four of them.
    assert abs(len(heldout) - 100) < 35
    repeated = [record for record in caplog.records if "repeat a question" in record.message]
    assert sum(int(record.args[0]) for record in repeated) == 400  # type: ignore[index, call-overload]


def test_no_question_of_a_benchmark_is_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "a.jsonl", [f"what is {i}" for i in range(10)])
    benchmark = write(tmp_path / "b.jsonl", ["WHAT is 3", "what is 3", "what is  7", "what is 99"])
    training, heldout = split(source, benchmark, num_heldout=2)
    # A benchmark stays as it is published; 7 is not evaluated on here and not trained on either.
    assert [problem.question for problem in heldout] == ["WHAT is 3", "what is 3"]
    assert keys(training) == [f"what is {i}" for i in (0, 1, 2, 4, 5, 6, 8, 9)]
    assert "2 training rows ask a question of data.eval_source" in caplog.text


def test_no_more_is_read_than_is_needed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The broken line at the end would be reported."""
    source = write(tmp_path / "a.jsonl", [f"what is {i}" for i in range(600)], end="{broken\n")
    training, heldout = split(source, num_train=20, num_heldout=10)
    assert (len(training), len(heldout)) == (20, 10)
    assert "skipped" not in caplog.text
    # The same problems lead both halves when all are asked for.
    whole_training, whole_heldout = split(source)
    assert whole_training[:20] == training and whole_heldout[:10] == heldout
    assert "not valid JSON" in caplog.text


def test_long_prompts_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "what is " + " ".join(["1"] * 12)
    source = write(tmp_path / "a.jsonl", [long, *(f"what is {i}" for i in range(40))])
    benchmark = write(tmp_path / "b.jsonl", [f"{long} 2", "what is 500"])
    training, heldout = split(source, benchmark, num_train=5)
    assert keys(training) == [f"what is {i}" for i in range(5)]
    assert keys(heldout) == ["what is 500"]
    for what in ("training", "held-out"):
        assert f"1 {what} problems have a prompt above data.max_prompt_tokens = 12" in caplog.text


def test_answers_of_the_other_half_are_not_checked(tmp_path: Path) -> None:
    """Parsing an answer costs more than reading it, so it comes last."""
    rows = [{"question": f"what is {i}", "answer": i} for i in range(100)]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checked: list[str] = []

    def check(answers: Sequence[str]) -> list[str | None]:
        checked.extend(answers)
        return [None] * len(answers)

    training, heldout = split(source, num_train=10, num_heldout=5, check_answers=check)
    assert len(training) + len(heldout) == 15
    assert len(checked) == len(set(checked)) == 15


def test_an_empty_half_is_an_error(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ["what is 1"])
    message = r"is left of the 1 rows of .*a\.jsonl \(1 ask a question of data\.eval_source\)"
    with pytest.raises(ValueError, match=f"no training problem {message}"):
        split(source, source)
    # Everything that was left out, with its reason.
    asked = write(tmp_path / "d.jsonl", ["what is 2"])
    few = write(tmp_path / "c.jsonl", ["WHAT is 2"] * 2, end='{"question": "x"}\n')
    message = r"\(2 ask a question of data\.eval_source; 1 skipped: 1 x no field 'answer' \(row 3"
    with pytest.raises(ValueError, match=message):
        split(few, asked)
    long = write(tmp_path / "b.jsonl", [f"what is {'1 ' * 12} {i}" for i in range(40)])
    with pytest.raises(ValueError, match=r"fits data\.max_prompt_tokens = 12: raise it"):
        split(long)


def test_real_training_text_holds_no_question_of_its_benchmark(data_dir: Path) -> None:
    """GSM8K's training set against its test set."""
    long = PromptRenderer(RENDERER.tokenizer, PLAIN_TEMPLATE, max_prompt_tokens=10_000)
    training, heldout = split_problems(
        partial(load_problems, data_dir / "train" / "gsm8k_train.jsonl"),
        partial(load_problems, data_dir / "benchmarks" / "gsm8k.jsonl"),
        long,
        heldout_fraction=0.1,
        num_train=None,
        num_heldout=2000,
    )
    assert len(heldout) == 1319 and 7000 < len(training) <= 7473
    assert not set(keys(training)) & set(keys(heldout))


def test_a_pool_has_a_question_once_and_none_that_is_evaluated(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [f"what is {i}" for i in range(60)])
    second = write(tmp_path / "b.jsonl", [f"What  is {i}" for i in range(30, 90)])
    (tmp_path / "c").mkdir()
    third = write(tmp_path / "c" / "a.jsonl", [f"what is {i}" for i in range(90, 95)])
    benchmark = write(tmp_path / "e.jsonl", [f"WHAT is {i}" for i in range(0, 95, 2)])
    sources = [
        PoolSource(path, "coat", weight)
        for path, weight in zip((first, second, third), (1.0, 2.0, 1.0), strict=True)
    ]
    training, heldout = split_problems(
        partial(load_pool, sources),
        partial(load_problems, benchmark, "coat"),
        RENDERER,
        heldout_fraction=0.25,
        num_train=None,
        num_heldout=1000,
    )
    assert sorted(keys(training)) == sorted(f"what is {i}" for i in range(1, 95, 2))
    assert len(heldout) == 48
    # Each source has ids of its own, two files of one name too.
    starts = {problem.problem_id.partition("/")[0] for problem in training}
    assert starts == {"a", "b", "a-2"} and len({p.problem_id for p in training}) == 47
    # Without a benchmark a question is on the side that it would be on alone.
    alone = split(second)
    halves = split_problems(
        partial(load_pool, sources),
        None,
        RENDERER,
        heldout_fraction=0.25,
        num_train=None,
        num_heldout=1000,
    )
    for half, part in zip(halves, alone, strict=True):
        assert set(keys(part)) <= set(keys(half))


def test_a_pool_of_one_source_is_that_source(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [f"what is {i}" for i in range(20)])
    alone, report = load_problems(source, "coat")
    pool, books = load_pool([PoolSource(source, "coat")])
    assert (pool, books) == (alone, report)
