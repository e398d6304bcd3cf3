# SPDX-License-Identifier: Apache-2.0
"""The questions of a reinforcement stage: whole ones, and the restart buffer, cut from graded
samples of a policy and kept on disk (Satori, algorithm 1).

The paper builds its buffer once, from the format-tuned model; `refresh_every` builds it again from
the current policy. Which questions are mixed, and so asked at all with `solutions.questions`, is
`mixed_questions`. Not for where solutions are cut (`data.prefixes`), nor for how restarts mix with
whole problems (`data.mixture`), nor for sampling (`solutions`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satori_fast.config import ConfigError, RestartConfig
from satori_fast.data.mixture import CORRECT, INCORRECT, ORIGINAL, ProblemMixture, origin_of
from satori_fast.data.prefixes import restart_buffer
from satori_fast.data.problem_file import problem_from_row, problem_to_row
from satori_fast.rollout.restarting import Restarting
from satori_fast.stages.run_folder import RunFolder
from satori_fast.stages.solutions import Solved, Solver
from satori_fast.storage import (
    read_sealed,
    sealed_records,
    wait_for_file,
    write_sealed,
    write_sealed_records,
)
from satori_fast.types import Problem, Trajectory

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
                _chosen(self.solver.solutions(engine, name=name), self.solver.size.questions),
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


@dataclass(frozen=True, slots=True)
class AnsweredQuestions:
    """Questions by the samples of a policy: right and wrong ones, or one kind.

    mixed: ids of the problems with right and wrong samples. always_right, never_right: numbers of
    the others.
    """

    mixed: frozenset[str]
    always_right: int
    never_right: int

    def figures(self) -> dict[str, float]:
        """Entries of the summary."""
        return {
            "questions_mixed": float(len(self.mixed)),
            "questions_always_right": float(self.always_right),
            "questions_never_right": float(self.never_right),
        }


def answered_questions(solver: Solver, engine: Restarting, *, name: str) -> AnsweredQuestions:
    """Find the mixed questions of solutions/NAME.jsonl; what is missing of that is sampled from
    `engine`. Counted once, into questions/NAME.json. Every rank must call it."""
    folder = solver.folder
    path = _answered_path(folder, name)
    if not folder.from_main(path.exists):
        solved = solver.solutions(engine, name=name)
        folder.on_main(lambda: write_sealed(path, _counted(solved), indent=None))
        folder.keep(path)
    answered = read_answered(folder, name=name)
    logger.info(
        "of the questions of solutions/%s.jsonl %d are mixed, %d always right, %d never",
        name,
        len(answered.mixed),
        answered.always_right,
        answered.never_right,
    )
    return answered


def read_answered(folder: RunFolder, *, name: str) -> AnsweredQuestions:
    """Read what `answered_questions` left in a run folder."""
    row = read_sealed(wait_for_file(_answered_path(folder, name)))
    return AnsweredQuestions(frozenset(row["mixed"]), row["always_right"], row["never_right"])


def _answered_path(folder: RunFolder, name: str) -> Path:
    return folder.path / "questions" / f"{name}.json"


def mixed_questions(
    problems: Sequence[Problem], answered: AnsweredQuestions, *, name: str
) -> list[Problem]:
    """The problems that have right and wrong samples. ConfigError where none has."""
    kept = [problem for problem in problems if problem.problem_id in answered.mixed]
    if not kept:
        raise ConfigError(
            f'solutions.questions = "mixed": none of the questions in solutions/{name}.jsonl has '
            f"right and wrong samples ({answered.always_right} always right, "
            f"{answered.never_right} never): raise solutions.num_samples or num_problems, or set "
            'questions = "all"'
        )
    return kept


def is_mixed(group: Sequence[tuple[Trajectory, bool]]) -> bool:
    """Whether the samples of a problem are not all right, and not all wrong."""
    return len({correct for _, correct in group}) > 1


def _chosen(solved: Iterable[Solved], questions: str) -> Iterator[Solved]:
    return (group for group in solved if questions == "all" or is_mixed(group))


def _counted(solved: Iterable[Solved]) -> dict[str, Any]:
    mixed: list[str] = []
    always = never = 0
    for group in solved:
        if is_mixed(group):
            mixed.append(group[0][0].problem.problem_id)
        elif group[0][1]:
            always += 1
        else:
            never += 1
    return {"mixed": mixed, "always_right": always, "never_right": never}


def write_restarts(path: Path, restarts: Sequence[Problem]) -> None:
    """Write one JSON object a line, in one piece."""
    write_sealed_records(path, map(problem_to_row, restarts))


def read_restarts(path: Path) -> list[Problem]:
    """Restarts as `write_restarts` left them."""
    return [problem_from_row(row) for row in sealed_records(path)]
