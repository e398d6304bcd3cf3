# SPDX-License-Identifier: Apache-2.0
"""The restart buffer of a run: sampled from the model that a stage starts with, graded, cut, and
kept on disk (Satori, algorithm 1).

Not for where solutions are cut (`data.prefixes`), nor for how restarts mix with whole problems
(`data.mixture`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from satori_fast.data.mixture import CORRECT, origin_of
from satori_fast.data.prefixes import restart_buffer
from satori_fast.evaluation.evaluate import graded
from satori_fast.rollout.engine import Engine
from satori_fast.stages.run import Run
from satori_fast.types import Prefix, Problem, Trajectory

logger = logging.getLogger(__name__)


def load_or_build_restarts(run: Run, engine: Engine) -> list[Problem]:
    """The restart buffer: restarts.jsonl of the run folder, built on first use."""
    path = run.folder / "restarts.jsonl"
    # One process decides for all: sampling is collective.
    if not run.parallel.all_gather(path.exists())[0]:
        restarts = build_restarts(run, engine)
        run.parallel.on_main(lambda: write_restarts(path, restarts))
    return read_restarts(path)


def build_restarts(run: Run, engine: Engine) -> list[Problem]:
    """Sample the starting model, grade, and cut (see `data.prefixes.restart_buffer`)."""
    config = run.config.reinforce.restarts
    rng = run.rng("reinforce", "restarts")
    chosen = rng.permutation(len(run.problems))[: config.num_problems]
    sampling = run.sampling(
        num_samples=config.num_samples, seed=run.seed("reinforce", "restarts", "sampling")
    )
    with run.spans.span("restart_buffer"):
        rollout = run.collect(engine, [run.problems[i] for i in chosen], sampling)
        correct = graded(rollout.trajectories, run.grader)
    groups: dict[int, list[tuple[Trajectory, bool]]] = {}
    for trajectory, is_correct in zip(rollout.trajectories, correct, strict=True):
        groups.setdefault(trajectory.group_id, []).append((trajectory, is_correct))
    restarts = list(
        restart_buffer(
            groups.values(),
            max_backtrack=config.max_backtrack,
            cut_after=config.cut_after,
            renderer=run.renderer,
            rng=rng,
        )
    )
    num_right = sum(origin_of(p) == CORRECT for p in restarts)
    logger.info(
        "restart buffer: %d from right, %d from wrong solutions of %d problems",
        num_right,
        len(restarts) - num_right,
        len(chosen),
    )
    return restarts


def write_restarts(path: Path, restarts: Sequence[Problem]) -> None:
    """One JSON object a line, in one piece."""
    lines = [json.dumps(_restart_line(problem)) + "\n" for problem in restarts]
    partial = path.with_suffix(".jsonl.partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)


def read_restarts(path: Path) -> list[Problem]:
    """Restarts as `load_or_build_restarts` wrote them."""
    problems = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prefix = Prefix(row["prefix"], "restart", row["correct"])
        problems.append(Problem(row["problem_id"], row["question"], row["answer"], prefix))
    return problems


def _restart_line(problem: Problem) -> dict[str, Any]:
    assert problem.prefix is not None
    return {
        "problem_id": problem.problem_id,
        "question": problem.question,
        "answer": problem.answer,
        "prefix": problem.prefix.text,
        "correct": problem.prefix.correct,
    }
