# SPDX-License-Identifier: Apache-2.0
"""The restart buffer of a stage: cut from graded samples of a policy, and kept on disk (Satori,
algorithm 1).

The paper builds it once, from the format-tuned model; `refresh_every` builds it again from the
current policy. Not for where solutions are cut (`data.prefixes`), nor for how restarts mix with
whole problems (`data.mixture`), nor for sampling (`solutions`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satori_fast.config import RestartConfig
from satori_fast.data.mixture import CORRECT, INCORRECT, ORIGINAL, ProblemMixture, origin_of
from satori_fast.data.prefixes import restart_buffer
from satori_fast.data.problem_file import problem_from_row, problem_to_row
from satori_fast.rollout.restarting import Restarting
from satori_fast.stages.solutions import Solver
from satori_fast.storage import sealed_records, wait_for_file, write_sealed_records
from satori_fast.types import Problem

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestartBuffers:
    """The restart buffers of a stage, by the step from which they serve: restarts/STAGE-STEP.jsonl.

    start: name of the solutions that the first buffer is cut from, those of the model that the
           stage started with: they serve the reward model too.
    """

    config: RestartConfig
    solver: Solver
    stage: str
    start: str

    def load_or_build(self, engine: Restarting, *, step: int) -> list[Problem]:
        """The buffer that serves from `step` on; built from what `engine` samples if it is not in
        the run folder yet. Every rank must call it."""
        folder = self.solver.folder
        path = folder.path / "restarts" / f"{self.stage}-{step}.jsonl"
        # One process looks and decides for all: sampling is collective.
        if not folder.from_main(path.exists):
            name = self.start if step == 0 else f"{self.stage}-{step}"
            restarts = self._build(engine, name=name)
            folder.on_main(lambda: write_restarts(path, restarts))
            folder.keep(path)
        return read_restarts(wait_for_file(path))

    def _build(self, engine: Restarting, *, name: str) -> list[Problem]:
        """Cut the samples of solutions/NAME.jsonl (see `data.prefixes.restart_buffer`)."""
        restarts = list(
            restart_buffer(
                self.solver.solutions(engine, name=name),
                max_backtrack=self.config.max_backtrack,
                cut_after=self.config.cut_after,
                renderer=engine.renderer,
                rng=self.solver.seeds.rng("restarts", name),
            )
        )
        num_right = sum(origin_of(p) == CORRECT for p in restarts)
        logger.info(
            "restart buffer: %d from right, %d from wrong solutions of %d problems",
            num_right,
            len(restarts) - num_right,
            self.solver.size.num_problems,
        )
        return restarts


class StageProblems:
    """The problems of a reinforcement stage: whole ones and, with `buffers`, restarts.

    A `experience.source.ProblemFeed`. The buffer is built anew every `refresh_every` steps, from
    what the engine samples then.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        buffers: RestartBuffers | None,
        engine: Restarting,
        *,
        seed: int,
    ) -> None:
        self._problems = problems
        self._buffers = buffers
        self._engine = engine
        self._seed = seed
        self._buffer_step = 0
        self._mixture = self._mixture_of(0)

    def take(self, num_problems: int, *, step: int) -> list[Problem]:
        """The next problems, from a new buffer where one is due."""
        every = 0 if self._buffers is None else self._buffers.config.refresh_every
        if every and step and step % every == 0 and step != self._buffer_step:
            self._use_buffer_of(step)
        return self._mixture.take(num_problems)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: the buffer in use, and the position of every cursor."""
        return {"mixture": self._mixture.state_dict(), "buffer_step": self._buffer_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if state["buffer_step"] != self._buffer_step:
            self._use_buffer_of(state["buffer_step"])
        self._mixture.load_state_dict(state["mixture"])

    def _use_buffer_of(self, step: int) -> None:
        self._mixture = self._mixture_of(step)
        self._buffer_step = step

    def _mixture_of(self, step: int) -> ProblemMixture:
        seed = self._seed + step
        if self._buffers is None:
            return ProblemMixture({ORIGINAL: self._problems}, {ORIGINAL: 1.0}, seed=seed)
        config = self._buffers.config
        restarts = self._buffers.load_or_build(self._engine, step=step)
        origins = {
            ORIGINAL: self._problems,
            CORRECT: [p for p in restarts if origin_of(p) == CORRECT],
            INCORRECT: [p for p in restarts if origin_of(p) == INCORRECT],
        }
        weights = {
            ORIGINAL: config.original_weight,
            CORRECT: config.correct_weight,
            INCORRECT: config.incorrect_weight,
        }
        return ProblemMixture(origins, weights, seed=seed)


def write_restarts(path: Path, restarts: Sequence[Problem]) -> None:
    """Write one JSON object a line, in one piece."""
    write_sealed_records(path, map(problem_to_row, restarts))


def read_restarts(path: Path) -> list[Problem]:
    """Restarts as `write_restarts` left them."""
    return [problem_from_row(row) for row in sealed_records(path)]
