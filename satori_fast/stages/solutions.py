# SPDX-License-Identifier: Apache-2.0
"""Graded samples of the current policy on training problems, kept on disk as they come.

Restart buffer, preference pairs and distillation all start from them: Satori takes its restarts
from the very samples that its reward model was trained on. A file holds whole chunks only, so a
run that was killed goes on after the last one, with the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from satori_fast.backbone.parallel import parallel_state
from satori_fast.config import SolutionsConfig
from satori_fast.data.problem_file import problem_from_row
from satori_fast.data.prompts import PromptRenderer, build_trajectory
from satori_fast.evaluation.evaluate import graded
from satori_fast.experience.stored import header_of, trajectory_to_row
from satori_fast.grading import Grader
from satori_fast.profiling.metrics import progress
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rollout.engine import SamplingParams, collect
from satori_fast.rollout.restarting import Restarting
from satori_fast.stages.run_folder import RunFolder
from satori_fast.stages.seeds import Seeds
from satori_fast.storage import sealed_line, sealed_records, unsealed, wait_for_file
from satori_fast.types import Problem, RolloutResult, Trajectory

# Samples that are asked for, graded and written together.
CHUNK_SAMPLES = 8192

Solved = list[tuple[Trajectory, bool]]


@dataclass(frozen=True)
class SolutionFile:
    """Graded samples on disk; each iteration reads them anew, one problem at a time.

    It yields the samples of a problem with their verdicts. Log-probs are left in the file: zeros;
    `experience.stored` reads them, where the file was sampled with `solutions.keep_logprobs`.
    """

    path: Path
    renderer: PromptRenderer

    def __iter__(self) -> Iterator[Solved]:
        rows = (row for row in sealed_records(self.path) if "group" in row)  # not the header
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


@dataclass(frozen=True)
class Solver:
    """Samples training problems, grades the samples, and keeps them in solutions/ of a run folder.

    sampling: its temperature and limits, unless a `SolutionsConfig` says otherwise.
    """

    problems: Sequence[Problem]
    sampling: SamplingParams
    seeds: Seeds
    grader: Grader
    folder: RunFolder
    spans: SpanRecorder
    size: SolutionsConfig

    def solutions(
        self, engine: Restarting, *, name: str, size: SolutionsConfig | None = None
    ) -> SolutionFile:
        """solutions/NAME.jsonl of the run folder; what is missing of it is sampled from `engine`.

        size: number of problems and samples; None: the section `solutions`. Problems are a random
        choice that depends on the run's seed only. Every rank must call it. Span "solutions".
        """
        size = size or self.size
        path = self.folder.path / "solutions" / f"{name}.jsonl"
        order = self.seeds.rng("solutions", "problems").permutation(len(self.problems))
        chosen = order[: size.num_problems]
        num_each = max(1, CHUNK_SAMPLES // size.num_samples)
        chunks = [chosen[begin : begin + num_each] for begin in range(0, len(chosen), num_each)]
        # One process looks and decides for all: sampling is collective.
        done = self.folder.from_main(lambda: _num_chunks(path))
        console = Console(quiet=not parallel_state().is_main)
        with progress(
            "solutions", len(chunks), unit="chunk", completed=done, console=console
        ) as bar:
            for number in range(done, len(chunks)):
                sampling = replace(
                    self.sampling,
                    num_samples=size.num_samples,
                    seed=self.seeds.of("solutions", name, number),
                    temperature=size.temperature or self.sampling.temperature,
                    max_new_tokens=size.max_new_tokens or self.sampling.max_new_tokens,
                )
                with self.spans.span("solutions"):
                    problems = [self.problems[i] for i in chunks[number]]
                    rollout = collect(engine, problems, sampling)
                    correct = graded(rollout.trajectories, self.grader)
                self.spans.count("solutions", rollout.num_generated_tokens)
                rows = _rows(
                    rollout,
                    correct,
                    chunk=number,
                    first_group=number * num_each,
                    keep_logprobs=size.keep_logprobs,
                )
                if size.keep_logprobs and number == 0:
                    rows.insert(0, self._header(engine, sampling))
                self.folder.on_main(lambda rows=rows: _append(path, rows))
                bar.advance()
        self.folder.keep(path)
        return SolutionFile(wait_for_file(path), engine.renderer)

    def _header(self, engine: Restarting, sampling: SamplingParams) -> dict[str, Any]:
        return header_of(
            sampling.temperature,
            format=engine.renderer.format.name,
            fingerprint=engine.weights_fingerprint(),
            tokenizer=engine.renderer.fingerprint,
        )


def _rows(
    rollout: RolloutResult,
    correct: Sequence[bool],
    *,
    chunk: int,
    first_group: int,
    keep_logprobs: bool,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            **trajectory_to_row(t, group=first_group + t.group_id, keep_logprobs=keep_logprobs),
            "correct": right,
            "chunk": chunk,
        }
        for t, right in zip(rollout.trajectories, correct, strict=True)
    ]
    rows[-1]["ends_chunk"] = True
    return rows


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


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(map(sealed_line, rows))
