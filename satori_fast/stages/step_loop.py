# SPDX-License-Identifier: Apache-2.0
"""The loop over the steps of a stage: what is the same around each step, whatever it trains.

    loop = StepLoop("reinforce", learners, num_steps, folder, books, checkpoint_every=50)
    data = loop.resume()
    with loop:
        for step in loop:
            metrics = ...
            if loop.is_due(evaluate_every): ...
            loop.finish_step(metrics, data_state, shown={"loss": metrics["update/loss"]})

What a step does is the stage's. A SIGTERM ends the loop after its step, with a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console

from satori_fast import termination
from satori_fast.backbone.optimizer import NonFiniteUpdate
from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.step import Learner
from satori_fast.profiling.metrics import ProgressReporter, progress
from satori_fast.profiling.spans import StepTimes
from satori_fast.stages.alarms import SkippedUpdates
from satori_fast.stages.run_folder import StageProgress

# Leaves a learner as a model folder.
Export = Callable[[Learner, Path], None]


class Records(Protocol):
    """The part of `books.Books` that the loop needs."""

    def start_steps(self, num_steps: int) -> None: ...

    def record(self, step: int, metrics: Mapping[str, float]) -> StepTimes: ...

    def alarm(self, kind: str, message: str) -> None: ...

    def digests(self) -> dict[str, str] | None: ...

    def reset_clock(self) -> None: ...


class Checkpoints(Protocol):
    """The part of `run_folder.RunFolder` that the loop needs."""

    path: Path

    def resume(self, stage: str, learners: Mapping[str, Learner]) -> StageProgress: ...

    def save(
        self,
        stage: str,
        learners: Mapping[str, Learner],
        progress: StageProgress,
        *,
        records: Mapping[str, str] | None,
    ) -> None: ...

    def settle(self, stage: str, *, wait: bool) -> None: ...

    def exported(self, stage: str) -> Path: ...


@dataclass
class StepLoop:
    """Iterates over the steps that are left, `with` its progress bar.

    done:             where the stage stands; after the loop, where it ended.
    checkpoint_every: in steps, 0: none on the way. The last step is followed by one in any case.
    export_every:     in steps, 0: none; needs `export` and a learner "policy". The last step's
                      model is what the stage itself exports.
    """

    stage: str
    learners: Mapping[str, Learner]
    num_steps: int
    folder: Checkpoints
    books: Records
    _: KW_ONLY
    checkpoint_every: int
    export_every: int = 0
    export: Export | None = None
    done: StageProgress = field(default_factory=StageProgress)
    _bar: ProgressReporter = field(init=False)
    _open: ExitStack = field(init=False, default_factory=ExitStack)
    _skipped: SkippedUpdates = field(init=False)

    def resume(self) -> dict[str, Any] | None:
        """Go on from the stage's newest checkpoint; the state of its data, None without one."""
        self.done = self.folder.resume(self.stage, self.learners)
        return self.done.data

    def __enter__(self) -> Self:
        step = self.done.step
        self._open.enter_context(termination.deferred())
        self.books.start_steps(self.num_steps - step)
        console = Console(quiet=not parallel_state().is_main)
        bar = progress(self.stage, self.num_steps, completed=step, console=console)
        self._bar = self._open.enter_context(bar)
        self._skipped = SkippedUpdates(self.stage, self.books.alarm)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)
        if isinstance(error, NonFiniteUpdate):
            folder = self.folder.path / "failures"
            raise self._skipped.stop(
                self.done.step, error, folder=folder, parallel=parallel_state()
            ) from error

    def __iter__(self) -> Iterator[int]:
        for step in range(self.done.step, self.num_steps):
            yield step
            assert self.done.step == step + 1, "a step ends with finish_step"

    def is_due(self, every: int) -> bool:
        """Whether what happens every so many steps (0: only at the end) is due after this one."""
        return self._is_due_after(self.done.step + 1, every)

    def finish_step(
        self, metrics: Mapping[str, float], data: dict[str, Any], *, shown: Mapping[str, float]
    ) -> None:
        """Record the step, export the model and checkpoint the stage where either is due.

        Raises `termination.Terminated`, with the step saved, when any process had a SIGTERM.

        data:  where the stage's data stands, JSON-able: what a resumed stage goes on from.
        shown: values beside the progress bar.
        """
        self._skipped.look_at(self.done.step, metrics)
        times = self.done.times + self.books.record(self.done.step, metrics)
        self.done = StageProgress(self.done.step + 1, times, data)
        self._bar.advance(values=shown)
        step = self.done.step
        if self.export_every and step < self.num_steps and step % self.export_every == 0:
            self._keep_model(step)
        ends_here = parallel_state().any_rank(termination.is_asked())
        if ends_here or self._is_due_after(step, self.checkpoint_every):
            records = self.books.digests()
            self.folder.save(self.stage, self.learners, self.done, records=records)
            self.books.reset_clock()
        self.folder.settle(self.stage, wait=ends_here or step == self.num_steps)
        if ends_here:
            raise termination.Terminated(
                f"terminated; saved at step {step} of {self.stage}; --resume continues"
            )

    def _keep_model(self, step: int) -> None:
        assert self.export is not None, "export_every needs export"
        self.export(self.learners["policy"], self.folder.exported(f"{self.stage}-step-{step}"))
        self.books.reset_clock()

    def _is_due_after(self, step: int, every: int) -> bool:
        return step == self.num_steps or (every > 0 and step % every == 0)
