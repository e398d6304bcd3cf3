# SPDX-License-Identifier: Apache-2.0
"""The loop over the steps of a stage: what is the same around each step, whatever it trains.

    with StepLoop(run, learners, num_steps, done, checkpoint_every=..., export_every=...) as loop:
        for step in loop:
            metrics = ...
            if loop.is_due(evaluate_every): ...
            loop.finish_step(metrics, data_state, shown={"loss": metrics["update/loss"]})

What a step does is the stage's; checkpoints and records themselves are `Run`'s. A SIGTERM ends the
loop after its step, with a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field
from types import TracebackType
from typing import Any, Self

from satori_fast import termination
from satori_fast.backbone.step import Learner, NonFiniteUpdate
from satori_fast.profiling.metrics import ProgressReporter, progress
from satori_fast.stages.alarms import SkippedUpdates
from satori_fast.stages.run import Run, StageProgress


@dataclass
class StepLoop:
    """Iterates over the steps that are left, `with` its progress bar.

    done:             where the stage stands; after the loop, where it ended.
    checkpoint_every: in steps, 0: none on the way. The last step is followed by one in any case.
    export_every:     in steps, 0: none; needs a learner "policy". The last step's model is what the
                      stage itself exports.
    """

    run: Run
    learners: Mapping[str, Learner]
    num_steps: int
    done: StageProgress
    _: KW_ONLY
    checkpoint_every: int
    export_every: int = 0
    _bar: ProgressReporter = field(init=False)
    _open: ExitStack = field(init=False, default_factory=ExitStack)
    _skipped: SkippedUpdates = field(init=False)

    def __enter__(self) -> Self:
        run, step = self.run, self.done.step
        self._open.enter_context(termination.deferred())
        run.start_steps(self.num_steps - step)
        bar = progress(run.stage, self.num_steps, completed=step, console=run.console)
        self._bar = self._open.enter_context(bar)
        self._skipped = SkippedUpdates(run.stage)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)
        if isinstance(error, NonFiniteUpdate):
            run, folder = self.run, self.run.folder / "failures"
            raise self._skipped.stop(
                self.done.step, error, folder=folder, parallel=run.parallel
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
        run = self.run
        self._skipped.look_at(self.done.step, metrics)
        times = self.done.times + run.record(self.done.step, metrics)
        self.done = StageProgress(self.done.step + 1, times, data)
        self._bar.advance(values=shown)
        step = self.done.step
        if self.export_every and step < self.num_steps and step % self.export_every == 0:
            run.keep_model(self.learners["policy"], step)
        ends_here = run.parallel.any_rank(termination.is_asked())
        if ends_here or self._is_due_after(step, self.checkpoint_every):
            run.save_stage(self.learners, self.done)
        if ends_here:
            raise termination.Terminated(
                f"terminated; saved at step {step} of {run.stage}; --resume continues"
            )

    def _is_due_after(self, step: int, every: int) -> bool:
        return step == self.num_steps or (every > 0 and step % every == 0)
