# SPDX-License-Identifier: Apache-2.0
"""The growing files of a run folder (metrics.jsonl, samples.jsonl), and progress bars.

A resumed run leaves the same files as an uninterrupted one, times apart: lines that the interrupted
run wrote beyond its last checkpoint are cut before the first new line.

Not for: measuring (`spans`, `device`), the final table (`summary`) or what else metrics are sent to
(`sinks`). One process (rank 0) writes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from satori_fast.profiling.sinks import Sink, TensorBoardSink
from satori_fast.storage import write_atomically
from satori_fast.types import SegmentKind, SegmentSignal, StepReport, Trajectory

_PLAIN_LINE_SECONDS = 30.0
_PLAIN_LINE_SHARE = 0.1
_RESERVED = frozenset({"stage", "step", "spans_s", "num_nonfinite", "alarms"})


class MetricsWriter:
    """Writes metrics.jsonl, samples.jsonl and tensorboard/STAGE/ of one run folder.

    resume_from_step: last step that the checkpoint holds, None for a new run. Lines of `stage`
                      beyond it, and whatever follows them, are cut from both files.
    stage:            stage of that checkpoint; labels of stages are unique within a run.
    tensorboard:      also write event files (needs the package; warns once when it is missing).
    sinks:            further places for the metrics of each step; the writer closes them.

    One writer serves all stages of a run. Write everything of a step before its checkpoint. Raises
    ValueError when a new run finds the files of an old one, or when only one of `resume_from_step`
    and `stage` is given.
    """

    def __init__(
        self,
        folder: str | Path,
        resume_from_step: int | None = None,
        *,
        stage: str | None = None,
        tensorboard: bool = True,
        sinks: Sequence[Sink] = (),
    ) -> None:
        if (resume_from_step is None) != (stage is None):
            raise ValueError(
                "resume_from_step and stage go together: pass both to resume, neither to start"
            )
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        checkpoint = None if stage is None else (stage, int(resume_from_step or 0))
        self._metrics = _JsonLines(self._folder / "metrics.jsonl", checkpoint)
        self._samples = _JsonLines(self._folder / "samples.jsonl", checkpoint)
        self._sinks = list(sinks)
        if tensorboard:
            last_steps = {line["stage"]: line["step"] for line in self._metrics.kept}
            self._add_tensorboard(last_steps if checkpoint is not None else None)
        self.num_nonfinite = 0

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, report: StepReport) -> None:
        """Append one step: its metrics flat, next to "stage", "step" and "spans_s", and "alarms"
        where it has any.

        A NaN or infinite value becomes null (JSON has none) and is counted, in the line's
        "num_nonfinite" and in `num_nonfinite`. Raises ValueError for a metric named like a field.
        """
        clash = _RESERVED & report.metrics.keys()
        if clash:
            raise ValueError(f"metric {min(clash)!r} has the name of a field: rename the metric")
        metrics = {name: _finite(value) for name, value in report.metrics.items()}
        spans_s = {name: _finite(value) for name, value in report.spans_s.items()}
        num_nonfinite = [*metrics.values(), *spans_s.values()].count(None)
        line: dict[str, Any] = {"stage": report.stage, "step": report.step, **metrics}
        line["spans_s"] = spans_s
        if report.alarms:
            line["alarms"] = dict(report.alarms)
        if num_nonfinite:
            line["num_nonfinite"] = num_nonfinite
            self.num_nonfinite += num_nonfinite
        self._metrics.append(line)
        finite = {name: value for name, value in metrics.items() if value is not None}
        for sink in self._sinks:
            sink.write(report.stage, report.step, finite)

    def write_sample(self, sample: Mapping[str, Any]) -> None:
        """Append one line of samples.jsonl; `sample_record` makes it from a trajectory."""
        self._samples.append(sample)

    def earlier_steps(self, stage: str) -> list[dict[str, Any]]:
        """The lines of a stage that a resumed run found and kept."""
        return [line for line in self._metrics.kept if line["stage"] == stage]

    def digests(self) -> dict[str, str]:
        """SHA-256 of each growing file as it stands, by name."""
        return {file.path.name: file.digest() for file in (self._metrics, self._samples)}

    def sync(self) -> None:
        """Have the disk hold every line that was written: before a checkpoint counts on them."""
        for file in (self._metrics, self._samples):
            file.sync()

    def close(self) -> None:
        """Close the files and the sinks."""
        self._metrics.close()
        self._samples.close()
        for sink in self._sinks:
            sink.close()
        self._sinks.clear()

    def _add_tensorboard(self, last_steps: Mapping[str, int] | None) -> None:
        try:
            self._sinks.append(TensorBoardSink(self._folder / "tensorboard", last_steps))
        except ImportError:
            warnings.warn(
                "tensorboard is not installed, no event files are written: pip install tensorboard",
                stacklevel=3,
            )


class _JsonLines:
    """An append-only file of JSON objects with "stage" and "step", flushed line by line."""

    def __init__(self, path: Path, checkpoint: tuple[str, int] | None) -> None:
        self.path = path
        self.kept: list[dict[str, Any]] = []
        if checkpoint is None:
            if path.exists() and path.stat().st_size:
                raise ValueError(f"{path} holds an earlier run: resume it or choose another folder")
        elif path.exists():
            self.kept = _until_checkpoint(read_metrics(path), *checkpoint)
            # Replaced in one piece, so that a kill during the cut loses nothing.
            write_atomically(path, "".join(map(_dump, self.kept)))
        self._file = path.open("a", encoding="utf-8")
        self._digest = hashlib.sha256(path.read_bytes())

    def append(self, line: Mapping[str, Any]) -> None:
        text = _dump(line)
        self._file.write(text)
        self._file.flush()
        self._digest.update(text.encode())

    def digest(self) -> str:
        return self._digest.hexdigest()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl or samples.jsonl, oldest first.

    A last line torn by a kill is left out. Raises ValueError, with file and line number, for any
    other line that is not a JSON object.
    """
    raw = Path(path).read_bytes().split(b"\n")
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(raw, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:  # not JSON, or a UTF-8 character cut in half
            if number == len(raw):
                break
            raise ValueError(f"{path}:{number} is not JSON ({error}): remove the line") from error
        if not isinstance(line, dict):
            raise ValueError(f"{path}:{number} is not a JSON object: remove the line")
        lines.append(line)
    return lines


class SampleFormat(Protocol):
    """The format of responses (`data.formats`), as far as readers of samples see it."""

    @property
    def colours(self) -> Mapping[SegmentKind, str]:
        """CSS colour of each kind of segment."""
        ...

    def pieces(self, text: str) -> list[tuple[SegmentKind, str]]:
        """Cut a prefix into segments."""
        ...


def sample_record(
    stage: str,
    step: int,
    *,
    trajectory: Trajectory,
    format: SampleFormat,
    signal: SegmentSignal | None = None,
) -> dict[str, Any]:
    """One line of samples.jsonl: problem, prefix and response cut into their segments, and reward,
    if any.

    format: of the response; it names the colours of the report. "reward" holds each term under its
    name, "total", and "segments" where segments have rewards; "correct" is None where nothing
    graded the answer. signal: of a trajectory that was trained on: its segments then have "reward",
    "baseline", "advantage" and "weight".
    """

    def segment(kind: SegmentKind, text: str) -> dict[str, Any]:
        return {"kind": str(kind), "text": text, "colour": format.colours.get(kind)}

    problem, reward, prefix = trajectory.problem, trajectory.reward, trajectory.problem.prefix
    given = "" if prefix is None else prefix.text
    segments = [segment(s.kind, s.text) for s in trajectory.segments]
    for place, (record, own) in enumerate(zip(segments, trajectory.segments, strict=True)):
        if own.verdict is not None:
            record["verdict"] = own.verdict
        if signal is not None:
            record |= _signal_record(signal, place)
    rewards: dict[str, Any] = {}
    if reward is not None:
        rewards = {name: _finite(value) for name, value in reward.terms.items()}
        rewards["total"] = _finite(reward.total)
        if reward.segments is not None:
            rewards["segments"] = [_finite(value) for value in reward.segments]
    return {
        "stage": stage,
        "step": step,
        "problem_id": problem.problem_id,
        "question": problem.question,
        "answer": problem.answer,
        "prefix": None if prefix is None else prefix.text,
        "prefix_correct": None if prefix is None else prefix.correct,
        "prefix_segments": [segment(*piece) for piece in format.pieces(given)],
        "target": None if prefix is None else prefix.target,
        "segments": segments,
        "correct": None if reward is None else reward.correct,
        "reward": rewards,
        "finish": trajectory.finish,
    }


def _signal_record(signal: SegmentSignal, place: int) -> dict[str, float | None]:
    """The signal of one segment. Six digits: sums over ranks may differ in the last ones."""
    named = {
        "reward": signal.rewards,
        "baseline": signal.baselines,
        "advantage": signal.advantages,
        "weight": signal.weights,
    }
    return {name: _finite(float(f"{of_all[place]:.6g}")) for name, of_all in named.items()}


class ProgressReporter:
    """Bar that `progress` hands out: `advance` it after each step."""

    def __init__(self, advance: Callable[[int, str], None]) -> None:
        self._advance = advance

    def advance(self, amount: int = 1, values: Mapping[str, float] | None = None) -> None:
        """`amount` more units are done; `values` are shown beside the bar."""
        text = " ".join(f"{name}={_value_text(value)}" for name, value in (values or {}).items())
        self._advance(amount, text)


@contextmanager
def progress(
    stage: str,
    total: int,
    *,
    unit: str = "step",
    completed: int = 0,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[ProgressReporter]:
    """A progress bar of `stage` over `total` steps, with rate and time left.

    unit: what one step is to the reader. completed: steps done before (resume); they do not enter
    the rate. When the console is not a terminal, a plain line is printed instead, every 30 s or
    10 % and at the end.
    """
    if console is None:
        console = Console()
    if not console.is_terminal:
        plain = _PlainProgress(stage, total, completed, unit=unit, console=console, clock=clock)
        yield ProgressReporter(plain.advance)
        return
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}", markup=False),
    )
    with Progress(*columns, console=console, get_time=clock) as bar:
        task: TaskID = bar.add_task(stage, total=total, completed=completed, values="")
        yield ProgressReporter(lambda n, text: bar.update(task, advance=n, values=text))


class _RateColumn(ProgressColumn):
    """Steps per second, or seconds per step when slow."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(_rate_text(task.finished_speed or task.speed or 0.0, self._unit))


class _PlainProgress:
    """Progress as plain lines for log files."""

    def __init__(
        self,
        stage: str,
        total: int,
        completed: int,
        *,
        unit: str,
        console: Console,
        clock: Callable[[], float],
    ) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._console, self._clock = console, clock
        self._completed_before = self._completed = self._completed_at_line = completed
        self._start_s = self._line_s = clock()

    def advance(self, amount: int, text: str) -> None:
        self._completed += amount
        now_s = self._clock()
        num_new = self._completed - self._completed_at_line
        due = now_s - self._line_s >= _PLAIN_LINE_SECONDS
        due = due or num_new >= _PLAIN_LINE_SHARE * self._total or self._completed == self._total
        if not due:
            return
        elapsed_s = now_s - self._start_s
        rate = (self._completed - self._completed_before) / elapsed_s if elapsed_s > 0 else 0.0
        left = _clock_text((self._total - self._completed) / rate) if rate > 0 else "?"
        share = 100 * self._completed // max(self._total, 1)
        line = f"{self._stage} {self._completed}/{self._total} ({share} %)"
        line = f"{line} {_rate_text(rate, self._unit)}, {left} left {text}".rstrip()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._completed_at_line, self._line_s = self._completed, now_s


def _until_checkpoint(lines: list[dict[str, Any]], stage: str, step: int) -> list[dict[str, Any]]:
    """Lines that existed when checkpoint (`stage`, `step`) was written: a prefix of the file."""
    of_stage = [i for i, line in enumerate(lines) if line.get("stage") == stage]
    covered = [i for i in of_stage if lines[i]["step"] <= step]
    if covered:
        return lines[: covered[-1] + 1]
    return lines[: of_stage[0]] if of_stage else lines


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(line, sort_keys=True, allow_nan=False) + "\n"


def _finite(value: Any) -> float | int | None:
    """A plain number (tensors and numpy scalars included), None where it is NaN or infinite."""
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


def _value_text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _rate_text(steps_per_s: float, unit: str) -> str:
    if steps_per_s <= 0:
        return "-"
    return f"{steps_per_s:.1f} {unit}s/s" if steps_per_s >= 1 else f"{1 / steps_per_s:.1f} s/{unit}"


def _clock_text(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
