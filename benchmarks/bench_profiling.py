# SPDX-License-Identifier: Apache-2.0
"""What the recording costs: a span, a count and the end of a step in microseconds, and the share of
a step that goes into measuring and writing it.

The shares are of the quickstart's own steps, of format tuning (short: the hardest case) and of
reinforcement: everything of `Run.record` (end of the step, memory, rates, metrics.jsonl,
TensorBoard) and the spans and counts inside the step. The target is 1 %; nothing asserts on it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure
from satori_fast.config import load_config
from satori_fast.profiling.device import NvmlSampler
from satori_fast.profiling.metrics import MetricsWriter
from satori_fast.profiling.monitor import StepMonitor
from satori_fast.profiling.spans import SpanRecorder, StepTimes
from satori_fast.stages.books import Books
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.reinforce import reinforce
from satori_fast.stages.run import build_run
from satori_fast.stages.supervised import supervised
from satori_fast.stages.synthesize import synthesize_demonstrations
from satori_fast.types import StepReport

NUM_CALLS = 100
TARGET = 0.01
# The quickstart with fewer steps: what a step does is as there, but for restarts.
FEWER = {
    "synthesize.num_problems": "400",
    "supervised.num_epochs": "5",
    "reinforce.num_steps": "5",
    "reinforce.restarts.enabled": "false",
    "evaluation.num_problems": "20",
}


def spans(recorder: SpanRecorder) -> None:
    for _ in range(NUM_CALLS):
        with recorder.span("update"):
            pass
    recorder.start_step()


def nothing() -> None:
    for _ in range(NUM_CALLS):
        with nullcontext():
            pass


def counts(recorder: SpanRecorder) -> None:
    for _ in range(NUM_CALLS):
        recorder.count("update", 1000)
    recorder.start_step()


def steps(recorder: SpanRecorder) -> None:
    """Steps of eight spans and four counts, as a step of reinforcement has."""
    for _ in range(NUM_CALLS):
        for name in ("rollout", "sample", "reward", "pack", "logprob", "update", "sync", "x"):
            with recorder.span(name):
                pass
            recorder.count(name, 1000)
        recorder.end_step()


def monitored(monitor: StepMonitor) -> None:
    for _ in range(NUM_CALLS):
        monitor.end_step()


def writing(writer: MetricsWriter, metrics: dict[str, float]) -> Callable[[], None]:
    def write() -> None:
        for step in range(NUM_CALLS):
            writer.write(StepReport("rl", step, metrics, {"update": 1.0}))

    return write


def summary_writer(folder: Path, metrics: dict[str, float]) -> Callable[[], None]:
    """The usual way: an event for each scalar."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write() -> None:
        for step in range(NUM_CALLS):
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

    return write


@pytest.fixture
def report(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """report(key, figures, function): keep and print figures; pytest-benchmark times `function`."""

    def run(key: str, figures: Mapping[str, Any], function: measure.Function) -> None:
        measure.record("profiling", {key: dict(figures)})
        benchmark.extra_info.update(figures)
        with capsys.disabled():
            print(f"\nprofiling {key}: " + ", ".join(f"{k} {v}" for k, v in figures.items()))
        benchmark.pedantic(function, rounds=3, iterations=1)

    return run


def test_parts(report, one_thread, tmp_path: Path) -> None:
    recorder = SpanRecorder()
    metrics = {f"room/metric_{number}": number / 7 for number in range(50)}
    with (
        MetricsWriter(tmp_path / "plain", tensorboard=False) as plain,
        MetricsWriter(tmp_path / "events") as events,
    ):
        functions = {
            "empty with": nothing,
            "span": lambda: spans(recorder),
            "count": lambda: counts(recorder),
            "step of 8 spans": lambda: steps(recorder),
            "end of a step": lambda: monitored(StepMonitor(recorder, NvmlSampler("cpu"))),
            "metrics line of 50": writing(plain, metrics),
            "line and TensorBoard": writing(events, metrics),
            "TensorBoard by torch's SummaryWriter": summary_writer(tmp_path / "torch", metrics),
        }
        timings = measure.interleave(functions, repeats=5)
    figures = {
        f"{name}, us": measure.significant(1e6 * min(timing.wall) / NUM_CALLS, 3)
        for name, timing in timings.items()
    }
    report("parts", figures, functions["span"])


def timed_records(books: Books) -> list[tuple[str, float, StepTimes]]:
    """(stage, seconds of `Books.record`, times of the step) of what is recorded from now on."""
    record, taken = books.record, []

    def timed(step: int, metrics: Mapping[str, float]) -> StepTimes:
        begin = time.perf_counter()
        times = record(step, metrics)
        taken.append((books.stage, time.perf_counter() - begin, times))
        return times

    books.record = timed
    return taken


def test_share_of_a_step(report, one_thread, tmp_path: Path) -> None:
    overrides = [word for key, value in FEWER.items() for word in (f"--{key}", value)]
    config = load_config("configs/quickstart.toml", [*overrides, "--output_dir", f"'{tmp_path}'"])
    with build_run(config) as run:
        taken = timed_records(run.books)
        stages = (synthesize_demonstrations, supervised, reinforce)
        for plan, stage in zip(plan_stages(config), stages, strict=True):
            run.books.begin_stage(plan.name)
            run.finish_stage(plan.name, stage(run.context(plan), run.folder, run.books))
    recorder = SpanRecorder()
    span_s = measure.interleave({"span": lambda: spans(recorder)})["span"].median / NUM_CALLS
    for stage in ("supervised", "reinforce"):
        # The first step loads and compiles, the last one evaluates.
        rows = [(cost, times) for name, cost, times in taken if name == stage][1:-1]
        step_s = statistics.median(times.wall_s for _, times in rows)
        record_s = statistics.median(cost for cost, _ in rows)
        inside_s = span_s * max(2 * len(times.spans_s) for _, times in rows)
        share = (record_s + inside_s) / step_s
        figures = {
            "steps": len(rows),
            "step_ms": measure.significant(1e3 * step_s),
            "record_ms": measure.significant(1e3 * record_s, 3),
            "spans_ms": measure.significant(1e3 * inside_s, 2),
            "share": measure.significant(share, 2),
            "target": TARGET,
            "met": share < TARGET,
        }
        measure.record("profiling", {stage: figures})
        print(stage, figures)
    report("span", {"us": measure.significant(1e6 * span_s, 3)}, lambda: spans(recorder))
