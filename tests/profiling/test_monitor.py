# SPDX-License-Identifier: Apache-2.0
"""What a step's line of metrics gets beside its results: on one rank, and on two."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from satori_fast.profiling.device import NvmlSampler
from satori_fast.profiling.memory_growth import MachineMemory, MemoryGrowth
from satori_fast.profiling.monitor import StepMonitor, gathered, over_ranks
from satori_fast.profiling.peaks import DevicePeaks
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.profiling.step_tracer import StepTracer, TraceSettings
from tests.profiling.test_device import FakeNvml
from tests.profiling.test_spans import HandClock


def monitored_step(clock: HandClock, monitor: StepMonitor, spans: SpanRecorder) -> dict[str, float]:
    with spans.span("rollout"):
        clock.pass_seconds(4.0)
    with spans.span("update"):
        clock.pass_seconds(2.0)
    spans.count("step", 600)
    spans.count_flops("update", 3e12)
    spans.count_bytes("rollout", 2e9)
    times, metrics = monitor.end_step()
    assert times.spans_s == {"rollout": 4.0, "update": 2.0}
    return metrics


def test_rates_shares_and_memory_of_one_rank() -> None:
    clock = HandClock()
    spans = SpanRecorder(clock=clock)
    peaks = DevicePeaks(flops_per_s=10e12, bytes_per_s=1e9)
    monitor = StepMonitor(spans, NvmlSampler("cpu"), peaks=peaks)
    metrics = monitored_step(clock, monitor, spans)
    assert metrics["update/mfu"] == 0.15 and metrics["rollout/bandwidth_share"] == 0.5
    assert metrics["step/tokens_per_s"] == 100.0 and metrics["host/rss_bytes"] > 0
    assert "step/tokens_per_joule" not in metrics and "rollout/seconds_max" not in metrics
    assert [sample.name for sample in spans.samples] == ["host/rss_bytes"]
    monitor.close()


def test_tokens_per_joule_of_two_ranks_take_the_energy_of_both() -> None:
    clock, nvml = HandClock(), FakeNvml()
    spans = SpanRecorder(clock=clock)

    def gather(own: Sequence[float]) -> list[list[float]]:
        # The other rank measured the same names: twice the seconds, twice the energy.
        return [list(own), [own[0], *(2 * x for x in own[1:])]]

    sampler = NvmlSampler("cpu", interval_s=60.0, nvml=(nvml, "gpu 0"))
    monitor = StepMonitor(spans, sampler, num_ranks=2, gather=gather)
    monitor.start_steps(10)
    nvml.millijoules += 50_000
    metrics = monitored_step(clock, monitor, spans)
    assert metrics["device/energy_j"] == 150.0
    assert metrics["step/tokens_per_joule"] == 4.0
    assert metrics["rollout/seconds_max"] == 8.0 and metrics["rollout/seconds_mean"] == 6.0
    assert metrics["host/rss_bytes_max"] == 2 * metrics["host/rss_bytes"]
    monitor.close()


def test_ranks_that_measured_other_things_are_left_out() -> None:
    def gather(own: Sequence[float]) -> list[list[float]]:
        return [list(own), [1.0, *own[1:]]]

    rows = gathered({"update/seconds": 2.0, "sync/seconds": 1.0}, gather)
    assert rows == [{"sync/seconds": 1.0, "update/seconds": 2.0}, {}]
    assert over_ranks(rows)["update/seconds_max"] == 2.0


def test_ranks_always_tell_equally_many_figures() -> None:
    lengths = set()

    def gather(own: Sequence[float]) -> list[list[float]]:
        lengths.add(len(own))
        return [list(own)]

    for num in (0, 3, 100):
        gathered({f"{i}/seconds": 1.0 for i in range(num)}, gather)
    assert len(lengths) == 1


def test_growth_is_watched_step_by_step(caplog: pytest.LogCaptureFixture) -> None:
    class Full(MemoryGrowth):
        """On a machine with next to no memory left, whose use grows by a page a step."""

        rss = 0.0

        def add(self, rss_bytes: float, machine: MachineMemory | None = None) -> dict[str, float]:
            self.rss += 4096.0
            return super().add(self.rss, MachineMemory(1e9, 8192.0))

    spans = SpanRecorder()
    monitor = StepMonitor(spans, NvmlSampler("cpu"), growth=Full())
    monitor.start_steps(100)
    with caplog.at_level(logging.WARNING):
        lines = [monitor.end_step()[1] for _ in range(30)]
    assert lines[-1]["host/growth_bytes_per_step"] == 4096.0
    assert "host memory grows steadily" in caplog.text
    monitor.close()


def test_the_recorder_is_on_for_the_chosen_steps_and_its_start_is_no_steps_time(
    tmp_path: Path,
) -> None:
    clock = HandClock()

    class SlowTracer(StepTracer):
        """Takes a minute to start or stop."""

        def step_done(self) -> bool:
            changed = super().step_done()
            clock.pass_seconds(60.0 if changed else 0.0)
            return changed

    spans = SpanRecorder(clock=clock)
    tracer = SlowTracer(tmp_path / "parts", TraceSettings(first_step=1, num_steps=1))
    monitor = StepMonitor(spans, NvmlSampler("cpu"), tracer=tracer)
    monitor.start_steps(3)
    walls, recording = [], []
    for _ in range(3):
        recording.append(tracer.is_recording)
        clock.pass_seconds(1.0)
        walls.append(monitor.end_step()[0].wall_s)
    assert recording == [False, True, False]
    assert walls == [1.0, 1.0, 1.0]
    monitor.write_trace(tmp_path / "parts")
    assert len(list((tmp_path / "parts").iterdir())) == 2
    monitor.close()
