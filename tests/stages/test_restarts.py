# SPDX-License-Identifier: Apache-2.0
"""The questions of reinforcement, mixed ones or all, and the restart buffer, cut once or again
every few steps, and the same after a kill."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from satori_fast.config import ConfigError
from satori_fast.stages import run_stages
from satori_fast.stages.restarts import (
    AnsweredQuestions,
    mixed_questions,
    read_restarts,
    write_restarts,
)
from satori_fast.types import Prefix, Problem
from tests.stages.test_run import take_back, timeless, tiny_config


def test_a_buffer_reads_back_as_it_was_written(tmp_path: Path) -> None:
    restarts = [
        Problem("1", "p 7 q 1", "p", Prefix("q<|reflect|>", "restart", correct=False), level="3"),
        Problem("2", "p 7 q 1", "q", Prefix("q<|continue|> p<|reflect|>", "restart", correct=True)),
    ]
    write_restarts(tmp_path / "buffers" / "x.jsonl", restarts)
    assert read_restarts(tmp_path / "buffers" / "x.jsonl") == restarts


def test_refreshed_buffers_come_from_the_policy_of_the_day(tmp_path: Path) -> None:
    options = ("--reinforce.restarts.refresh_every", "2", "--reinforce.num_steps", "5")
    options += ("--reinforce.checkpoint_every", "3", "--supervised.num_epochs", "3.0")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        run_stages(tiny_config(folder, *options))
    names = sorted(path.name for path in (whole / "tiny" / "restarts").iterdir())
    assert names == [f"reinforce-{step}.jsonl" for step in (0, 2, 4)]
    assert {path.stem for path in (whole / "tiny" / "solutions").iterdir()} == {
        "supervised",
        "reinforce-2",
        "reinforce-4",
    }
    # Back to the checkpoint after step 3, which drew from the buffer of step 2.
    take_back(cut / "tiny", num_finished=2, policy="models/supervised")
    last = cut / "tiny" / "checkpoints" / "reinforce" / "step-5"
    assert last.exists()
    run_stages(tiny_config(cut, *options), resume=True)
    assert timeless(cut / "tiny/metrics.jsonl") == timeless(whole / "tiny/metrics.jsonl")
    weights = Path("tiny/models/reinforce/model.safetensors")
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()


MIXED = ("--solutions.questions", "mixed", "--solutions.num_problems", "40")
MIXED += ("--solutions.num_samples", "4", "--supervised.num_epochs", "20.0")
MIXED += ("--supervised.optimizer.learning_rate", "5e-3")
MIXED += ("--reinforce.num_logged_samples", "100", "--evaluation.num_problems", "4")
MIXED += ("--reinforce.num_steps", "2", "--reinforce.checkpoint_every", "1")


def verdicts(path: Path) -> dict[str, set[bool]]:
    """Verdicts of the samples of each problem of a file of solutions."""
    found: defaultdict[str, set[bool]] = defaultdict(set)
    for line in path.open():
        row = json.loads(line)
        found[row["problem_id"]].add(row["correct"])
    return dict(found)


def asked(folder: Path) -> tuple[set[str], set[str]]:
    """Training problems that reinforcement asked whole, and in restarts, by its samples."""
    whole, restarted = set[str](), set[str]()
    for row in map(json.loads, (folder / "samples.jsonl").open()):
        if row["stage"] == "reinforce" and "/train/" in row["problem_id"]:
            (restarted if row["prefix"] else whole).add(row["problem_id"])
    return whole, restarted


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [True, False])
def test_mixed_questions_are_those_with_right_and_wrong_samples(
    tmp_path: Path, restarts: bool
) -> None:
    options = (*MIXED, "--reinforce.restarts.enabled", str(restarts).lower())
    summary = run_stages(tiny_config(tmp_path, *options))
    folder = tmp_path / "tiny"
    by_problem = verdicts(folder / "solutions/supervised.jsonl")
    mixed = {name for name, found in by_problem.items() if len(found) == 2}
    assert len(by_problem) == 40 and 0 < len(mixed) < 40
    entry: dict[str, Any] = summary["stages"][-1]
    assert entry["questions_mixed"] == len(mixed)
    assert entry["questions_always_right"] == list(by_problem.values()).count({True})
    assert entry["questions_never_right"] == list(by_problem.values()).count({False})
    whole, restarted = asked(folder)
    assert whole and whole <= mixed and restarted <= mixed
    assert bool(restarted) is restarts and (folder / "restarts").exists() is restarts
    if restarts:
        buffer = read_restarts(folder / "restarts/reinforce-0.jsonl")
        sides = defaultdict[str, set[Any]](set)
        for problem in buffer:
            assert problem.prefix is not None
            sides[problem.problem_id].add(problem.prefix.correct)
        # One from a right and one from a wrong solution of each, but for what is too long.
        assert set(sides) <= mixed and len(buffer) > 1.5 * len(mixed)
    # Sampled once: a resumed run reads what it counted, and asks the same.
    lines, weights = timeless(folder / "metrics.jsonl"), "models/reinforce/model.safetensors"
    left = (folder / weights).read_bytes()
    take_back(folder, num_finished=2, policy="models/supervised")
    (folder / "checkpoints/reinforce/step-2").rename(tmp_path / "gone")
    run_stages(tiny_config(tmp_path, *options), resume=True)
    assert timeless(folder / "metrics.jsonl") == lines
    assert (folder / weights).read_bytes() == left


def test_all_questions_are_asked_by_default_and_counted_where_they_are_sampled(
    tmp_path: Path,
) -> None:
    options = (*MIXED, "--solutions.questions", "all")
    entry: dict[str, Any] = run_stages(tiny_config(tmp_path, *options))["stages"][-1]
    by_problem = verdicts(tmp_path / "tiny/solutions/supervised.jsonl")
    mixed = {name for name, found in by_problem.items() if len(found) == 2}
    assert entry["questions_mixed"] == len(mixed)
    buffer = {p.problem_id for p in read_restarts(tmp_path / "tiny/restarts/reinforce-0.jsonl")}
    assert buffer - mixed and set.union(*asked(tmp_path / "tiny")) - mixed


def test_no_mixed_question_is_one_line() -> None:
    problems = [Problem("1", "p 7 q 1", "p"), Problem("2", "p 7 q 2", "p")]
    kept = mixed_questions(problems, AnsweredQuestions(frozenset("2"), 1, 0), name="x")
    assert kept == problems[1:]
    with pytest.raises(ConfigError) as caught:
        mixed_questions(problems, AnsweredQuestions(frozenset(), 3, 9), name="x")
    assert str(caught.value) == (
        'solutions.questions = "mixed": none of the questions in solutions/x.jsonl has right and '
        "wrong samples (3 always right, 9 never): raise solutions.num_samples or num_problems, or "
        'set questions = "all"'
    )
