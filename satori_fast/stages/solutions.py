# SPDX-License-Identifier: Apache-2.0
"""Graded samples of the current policy on training problems, kept on disk as they come.

Restart buffer, preference pairs and distillation all start from them: Satori takes its restarts
from the very samples that its reward model was trained on. A file holds whole chunks only, so a
run that was killed goes on after the last one, with the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from satori_fast.config import SolutionsConfig
from satori_fast.data.problem_file import problem_from_row, problem_to_row
from satori_fast.data.prompts import PromptRenderer, build_trajectory, full_response
from satori_fast.evaluation.evaluate import graded
from satori_fast.profiling.metrics import progress
from satori_fast.rollout.engine import Engine
from satori_fast.stages.run import Run
from satori_fast.storage import sealed_line, sealed_records, unsealed, wait_for_file
from satori_fast.types import RolloutResult, Trajectory

# Samples that are asked for, graded and written together.
CHUNK_SAMPLES = 8192

Solved = list[tuple[Trajectory, bool]]


@dataclass(frozen=True)
class SolutionFile:
    """Graded samples on disk; each iteration reads them anew, one problem at a time.

    What it yields: the samples of a problem with their verdicts. Log-probs are not kept: zeros.
    """

    path: Path
    renderer: PromptRenderer

    def __iter__(self) -> Iterator[Solved]:
        rows = sealed_records(self.path)
        for group, of_problem in groupby(rows, key=lambda row: row["group"]):
            yield [(self._trajectory(row, group), row["correct"]) for row in of_problem]

    def _trajectory(self, row: dict[str, Any], group: int) -> Trajectory:
        ids = np.asarray(row["response_ids"])
        return build_trajectory(
            problem_from_row(row),
            ids,
            renderer=self.renderer,
            group_id=group,
            finish=row["finish"],
        )


def load_or_sample_solutions(
    run: Run, engine: Engine, *, name: str, size: SolutionsConfig | None = None
) -> SolutionFile:
    """solutions/NAME.jsonl of the run folder; what is missing of it is sampled from `engine`.

    size: how many problems and samples; None: the section `solutions`. Problems are a random
    choice that depends on the run's seed only. Every rank must call it. Span "solutions".
    """
    size = size or run.config.solutions
    path = run.folder / "solutions" / f"{name}.jsonl"
    chosen = run.rng("solutions", "problems").permutation(len(run.problems))[: size.num_problems]
    num_each = max(1, CHUNK_SAMPLES // size.num_samples)
    chunks = [chosen[begin : begin + num_each] for begin in range(0, len(chosen), num_each)]
    # One process looks and decides for all: sampling is collective.
    done = run.parallel.from_main(lambda: _num_chunks(path))
    with progress("solutions", len(chunks), completed=done, console=run.console) as bar:
        for number in range(done, len(chunks)):
            sampling = run.sampling(
                num_samples=size.num_samples, seed=run.seed("solutions", name, number)
            )
            if size.temperature is not None:
                sampling = replace(sampling, temperature=size.temperature)
            with run.spans.span("solutions"):
                rollout = run.collect(engine, [run.problems[i] for i in chunks[number]], sampling)
                correct = graded(rollout.trajectories, run.grader)
            run.spans.count("solutions", rollout.num_generated_tokens)
            lines = _lines(rollout, correct, chunk=number, first_group=number * num_each)
            run.parallel.on_main(lambda lines=lines: _append(path, lines))
            bar.advance()
    run.keep(path)
    return SolutionFile(wait_for_file(path), run.renderer)


def _lines(
    rollout: RolloutResult, correct: Sequence[bool], *, chunk: int, first_group: int
) -> list[str]:
    rows = [
        {
            **problem_to_row(t.problem),
            "group": first_group + t.group_id,
            "response": full_response(t),
            "response_ids": t.response_tokens.tolist(),
            "finish": t.finish,
            "correct": right,
            "chunk": chunk,
        }
        for t, right in zip(rollout.trajectories, correct, strict=True)
    ]
    rows[-1]["ends_chunk"] = True
    return [sealed_line(row) for row in rows]


def _num_chunks(path: Path) -> int:
    """Whole chunks in a file; what a kill left of another one is cut off."""
    if not path.exists():
        return 0
    done = kept_bytes = position = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            position += len(line)
            if line.endswith(b"\n") and unsealed(line, f"{path}:{number}").get("ends_chunk"):
                done, kept_bytes = done + 1, position
    if kept_bytes < position:
        with path.open("r+b") as file:
            file.truncate(kept_bytes)
    return done


def _append(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
