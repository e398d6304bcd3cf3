# SPDX-License-Identifier: Apache-2.0
"""Measurement of every step of a run, in one place: rates, shares of the peaks, the device,
memory and its growth, the other ranks, and the trace of chosen steps.

A run ends each step with `StepMonitor.end_step` on every rank and writes what it returns. Not for:
writing (`metrics`, `sinks`) or what a step computed.
"""

from __future__ import annotations

import platform
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from satori_fast.profiling.device import NvmlSampler
from satori_fast.profiling.flops import utilisation
from satori_fast.profiling.memory_growth import MemoryGrowth
from satori_fast.profiling.peaks import DevicePeaks
from satori_fast.profiling.spans import SpanRecorder, StepTimes, throughput
from satori_fast.profiling.step_tracer import StepTracer
from satori_fast.profiling.trace_file import write_span_part

Gather = Callable[[Sequence[float]], list[list[float]]]

# Figures that a rank tells the others each step: a fixed number, so that ranks that measured
# different things still take part in the same collective.
_NUM_SLOTS = 32
_CURVES = ("host/rss_bytes", "device/memory_bytes")


class StepMonitor:
    """Measures the steps that `spans` records.

    gather: (equally many figures of every rank) -> rows by rank; one small collective.
    peaks:  of this rank's device, for MFU and bandwidth.
    growth: watches host memory, None: nobody does. tracer: records chosen steps, None: none.
    """

    def __init__(
        self,
        spans: SpanRecorder,
        sampler: NvmlSampler,
        *,
        num_ranks: int = 1,
        gather: Gather | None = None,
        peaks: DevicePeaks | None = None,
        growth: MemoryGrowth | None = None,
        tracer: StepTracer | None = None,
    ) -> None:
        self._spans = spans
        self._sampler = sampler.__enter__()
        self._num_ranks = num_ranks
        self._gather = gather
        self._peaks = peaks or DevicePeaks()
        self._growth = growth
        self._tracer = tracer

    def start_steps(self, num_steps: int) -> None:
        """The steps of a stage begin now, `num_steps` of them."""
        if self._growth is not None:
            self._growth.start(num_steps)
        if self._tracer is not None:
            self._tracer.begin(num_steps)
        self.reset_clock()

    def end_step(self, label: str | None = None) -> tuple[StepTimes, dict[str, float]]:
        """Close the step: its times, and its metrics under full names. Every rank must call it.

        Beside those of `spans.throughput`, `flops.utilisation`, `device.NvmlSampler.take` and
        `memory_growth`: step/tokens_per_joule, and with several ranks those of `over_ranks`.
        """
        times = self._spans.end_step(label)
        sampled = self._sampler.take()
        for name in _CURVES:
            if name in sampled:
                self._spans.sample(name, sampled[name])
        metrics = throughput(times, num_devices=self._num_ranks) | sampled
        metrics |= utilisation(times, self._peaks, num_devices=self._num_ranks)
        rss_bytes = sampled["host/rss_bytes"]
        if self._num_ranks > 1 and self._gather is not None:
            machine = float(zlib.crc32(platform.node().encode()))
            rows = gathered({**_own_figures(times, sampled), "machine": machine}, self._gather)
            metrics |= over_ranks(rows)
            rss_bytes = sum(row["host/rss_bytes"] for row in rows if row.get("machine") == machine)
        joules = metrics.get("device/energy_j", 0.0)
        if joules > 0.0 and "step" in times.tokens:
            metrics["step/tokens_per_joule"] = times.tokens["step"] / joules
        if self._growth is not None:
            metrics |= self._growth.add(rss_bytes)
        if self._tracer is not None and self._tracer.step_done():
            self._spans.start_step()
        return times, metrics

    @property
    def alarm(self) -> str | None:
        """The alarm of this stage's host memory, which it has logged already; None: all is well."""
        return None if self._growth is None else self._growth.alarm

    def reset_clock(self) -> None:
        """Exclude the time since the last step: a checkpoint, the set-up of a stage."""
        self._sampler.take()
        self._spans.start_step()

    def write_trace(self, folder: Path) -> None:
        """Leave this rank's part of the trace; see `trace_file.merge_trace`."""
        write_span_part(self._spans, folder)

    def close(self) -> None:
        """Stop what runs beside the steps."""
        self._sampler.__exit__(None, None, None)
        if self._tracer is not None:
            self._tracer.close()


def gathered(figures: Mapping[str, float], gather: Gather) -> list[dict[str, float]]:
    """The named figures of each rank, by rank; of a rank that has other names, nothing."""
    names = sorted(figures)[: _NUM_SLOTS - 1]
    checksum = float(zlib.crc32("\n".join(names).encode()))
    own = [checksum, *(figures[name] for name in names)]
    rows = gather(own + [0.0] * (_NUM_SLOTS - len(own)))
    return [dict(zip(names, row[1:], strict=False)) if row[0] == checksum else {} for row in rows]


def over_ranks(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of all ranks from `gathered` rows.

    NAME/seconds_max and NAME/seconds_mean of each span: how unequal ranks are. A span that ends in
    a collective lasts as long everywhere; "sample", a rank's own part of a rollout, does not.
    device/energy_j: the sum. host/rss_bytes_max: of the largest process.
    """
    metrics: dict[str, float] = {}
    for name in rows[0]:
        values = [row[name] for row in rows if name in row]
        if name.endswith("/seconds"):
            metrics[f"{name}_max"] = max(values)
            metrics[f"{name}_mean"] = sum(values) / len(values)
        elif name == "host/rss_bytes":
            metrics["host/rss_bytes_max"] = max(values)
        elif name == "device/energy_j":
            metrics[name] = sum(values)
    return metrics


def _own_figures(times: StepTimes, sampled: Mapping[str, float]) -> dict[str, float]:
    figures = {f"{name}/seconds": seconds for name, seconds in times.spans_s.items()}
    kept = ("host/rss_bytes", "device/energy_j")
    return figures | {name: sampled[name] for name in kept if name in sampled}
