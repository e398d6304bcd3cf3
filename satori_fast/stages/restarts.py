# SPDX-License-Identifier: Apache-2.0
"""The restart buffer of a stage: cut from graded samples of a policy, and kept on disk (Satori,
algorithm 1).

The paper builds it once, from the format-tuned model; `refresh_every` builds it again from the
policy of the day. Not for where solutions are cut (`data.prefixes`), nor for how restarts mix with
whole problems (`data.mixture`), nor for sampling (`solutions`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from satori_fast.data.mixture import CORRECT, INCORRECT, ORIGINAL, ProblemMixture, origin_of
from satori_fast.data.prefixes import restart_buffer
from satori_fast.data.problem_file import problem_from_row, problem_to_row
from satori_fast.rollout.engine import Engine
from satori_fast.stages.run import Run
from satori_fast.stages.solutions import load_or_sample_solutions
from satori_fast.storage import sealed_line, sealed_records, wait_for_file, write_atomically
from satori_fast.types import Problem

logger = logging.getLogger(__name__)


def problem_mixture(run: Run, engine: Engine, *, step: int) -> ProblemMixture:
    """Whole problems and, where restarts are on, the buffer that serves from `step` on."""
    config = run.config.reinforce.restarts
    seed = run.seed(run.stage, "problems") + step
    if not run.config.restarts_enabled:
        return ProblemMixture({ORIGINAL: run.problems}, {ORIGINAL: 1.0}, seed=seed)
    restarts = load_or_build_restarts(run, engine, step=step)
    origins = {
        ORIGINAL: run.problems,
        CORRECT: [p for p in restarts if origin_of(p) == CORRECT],
        INCORRECT: [p for p in restarts if origin_of(p) == INCORRECT],
    }
    weights = {
        ORIGINAL: config.original_weight,
        CORRECT: config.correct_weight,
        INCORRECT: config.incorrect_weight,
    }
    return ProblemMixture(origins, weights, seed=seed)


def load_or_build_restarts(run: Run, engine: Engine, *, step: int = 0) -> list[Problem]:
    """The restart buffer that serves from `step` on; built from what `engine` samples if it is not
    in the run folder yet: restarts/STAGE-STEP.jsonl."""
    path = run.folder / "restarts" / f"{run.stage}-{step}.jsonl"
    # One process looks and decides for all: sampling is collective.
    if not run.parallel.from_main(path.exists):
        # Samples of the model that the stage started with serve the reward model too.
        name = run.model_folder.name if step == 0 else f"{run.stage}-{step}"
        restarts = build_restarts(run, engine, name=name)
        run.parallel.on_main(lambda: write_restarts(path, restarts))
        run.keep(path)
    return read_restarts(wait_for_file(path))


def build_restarts(run: Run, engine: Engine, *, name: str) -> list[Problem]:
    """Cut the samples of solutions/NAME.jsonl (see `data.prefixes.restart_buffer`)."""
    config = run.config.reinforce.restarts
    restarts = list(
        restart_buffer(
            load_or_sample_solutions(run, engine, name=name),
            max_backtrack=config.max_backtrack,
            cut_after=config.cut_after,
            renderer=run.renderer,
            rng=run.rng("restarts", name),
        )
    )
    num_right = sum(origin_of(p) == CORRECT for p in restarts)
    logger.info(
        "restart buffer: %d from right, %d from wrong solutions of %d problems",
        num_right,
        len(restarts) - num_right,
        run.config.solutions.num_problems,
    )
    return restarts


def write_restarts(path: Path, restarts: Sequence[Problem]) -> None:
    """One JSON object a line, in one piece."""
    lines = [sealed_line(problem_to_row(problem)) for problem in restarts]
    write_atomically(path, "".join(lines))


def read_restarts(path: Path) -> list[Problem]:
    """Restarts as `load_or_build_restarts` wrote them."""
    return [problem_from_row(row) for row in sealed_records(path)]
