# SPDX-License-Identifier: Apache-2.0
"""Graded samples on disk: what a file holds, and that a killed run goes on with the same ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from satori_fast.config import SolutionsConfig
from satori_fast.grading import grade
from satori_fast.stages import solutions
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.run import Run, build_run
from satori_fast.stages.solutions import SolutionFile
from tests.stages.test_run import tiny_config

SIZE = SolutionsConfig(num_problems=7, num_samples=3, temperature=0.9)


def sampled(run: Run, name: str) -> SolutionFile:
    context = run.context(plan_stages(run.config)[-1])
    engine = context.engine(context.model_folders.policy(context.policy_folder))
    return context.solver(run.folder, run.books).solutions(engine, name=name, size=SIZE)


def test_a_file_holds_every_sample_with_its_verdict(tmp_path: Path) -> None:
    with build_run(tiny_config(tmp_path)) as run:
        groups = list(sampled(run, "x"))
    assert [len(group) for group in groups] == [3] * 7
    questions = [group[0][0].problem.question for group in groups]
    assert {trajectory.problem for group in groups for trajectory, _ in group} <= set(run.problems)
    assert len(set(questions)) == 7
    for group in groups:
        assert len({(t.group_id, t.problem.question) for t, _ in group}) == 1
    rows = [json.loads(line) for line in (tmp_path / "tiny/solutions/x.jsonl").open()]
    for row, (trajectory, correct) in zip(rows, (p for g in groups for p in g), strict=True):
        assert row["response_ids"] == trajectory.response_tokens.tolist()
        assert correct == grade(row["response"], row["answer"]).correct
        assert (trajectory.finish, trajectory.policy_version) == (row["finish"], -1)
        assert not np.any(trajectory.logprobs)


def test_solutions_may_be_longer_than_rollouts(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    long = config.solutions.model_copy(update={"max_new_tokens": 12})
    short = config.rollout.model_copy(update={"max_new_tokens": 4})
    config = config.model_copy(update={"rollout": short, "solutions": long})
    with build_run(config) as run:
        context = run.context(plan_stages(run.config)[-1])
        engine = context.engine(context.model_folders.policy(context.policy_folder))
        solver = context.solver(run.folder, run.books)
        lengths = [
            max(
                t.num_response_tokens
                for g in solver.solutions(engine, name=n, size=s)
                for t, _ in g
            )
            for n, s in (("long", None), ("short", SIZE))
        ]
    assert lengths == [12, 4]


@pytest.mark.parametrize("kept", [0, 1, 8, 13])
def test_a_killed_run_samples_what_is_missing(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solutions, "CHUNK_SAMPLES", 6)  # two problems a chunk
    with build_run(tiny_config(tmp_path)) as run:
        path = sampled(run, "whole").path
        # Another name has other seeds: the same name in a second folder has the same.
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        assert len(lines) == 21 and len(set(lines)) == 21
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        assert sampled(run, "whole").path.read_bytes() == whole
        assert sampled(run, "other").path.read_bytes() != whole
