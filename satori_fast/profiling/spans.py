# SPDX-License-Identifier: Apache-2.0
"""Named spans and token counters of one step: how long each part took and how fast it went.

On CPU a span is wall seconds. On CUDA it is the time between two events on the current stream, so
work that was only launched inside the span still counts, nothing waits inside the step, and
top-level spans add up to the step. Events are read once, in `end_step`.

Not for: operators and kernels (`step_tracer`), device load (`device`), shares of a peak (`flops`),
or writing metrics (`metrics`) and traces (`trace_file`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

HOST_TRACK, DEVICE_TRACK = "spans", "spans on the device"
_CLOCK_NOISE_NS = 1_000_000
_COMPLETION_SPANS = frozenset({"rollout", "evaluate"})


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Times and token counts of one step, or of several added together.

    spans_s: seconds per span name; spans of one name add up. A nested span counts under its own
             name and inside its parent, so only top-level spans sum to about `wall_s`.
    tokens:  tokens per counter name.
    wall_s:  seconds of the whole step, gaps between spans included.
    flops:   model FLOPs per span name, over all ranks.
    bytes_read: bytes per span name that this device had to read.
    """

    spans_s: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0
    flops: dict[str, float] = field(default_factory=dict)
    bytes_read: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: StepTimes) -> StepTimes:
        """Both steps as one: rates of a sum are total tokens over total seconds."""
        return StepTimes(
            _added(self.spans_s, other.spans_s),
            _added(self.tokens, other.tokens),
            self.wall_s + other.wall_s,
            _added(self.flops, other.flops),
            _added(self.bytes_read, other.bytes_read),
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """A finished stretch of one track of the trace; nanoseconds since 1970.

    values: tokens of a step, by counter.
    """

    name: str
    track: str
    start_ns: int
    stop_ns: int
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CounterSample:
    """The value that a curve of the trace takes at a moment, nanoseconds since 1970."""

    name: str
    at_ns: int
    value: float


class _Span:
    """One `with recorder.span(name)` block. A class, not a generator: it costs about 1 us."""

    __slots__ = (
        "is_outermost",
        "name",
        "recorder",
        "start_event",
        "start_s",
        "stop_event",
        "stop_s",
    )

    def __init__(self, recorder: SpanRecorder, name: str) -> None:
        self.recorder = recorder
        self.name = name
        self.start_event: torch.cuda.Event | None = None
        self.stop_event: torch.cuda.Event | None = None

    def __enter__(self) -> None:
        recorder = self.recorder
        # A span inside one of the same name must not be added twice to that name.
        self.is_outermost = self.name not in recorder._open
        recorder._open.append(self.name)
        self.start_event = recorder._record_event()
        self.start_s = recorder._clock()

    def __exit__(self, *_: object) -> None:
        recorder = self.recorder
        self.stop_s = recorder._clock()
        self.stop_event = recorder._record_event()
        closed = recorder._open.pop()
        assert closed == self.name, f"span {self.name!r} closed while {closed!r} was innermost"
        recorder._finished.append(self)


class SpanRecorder:
    """Spans and token counters of one process, from one thread.

    device:     where the timed work runs; "cuda" switches spans to CUDA events.
    rank:       process id shown in the trace.
    max_events: newest spans kept for the trace; older ones are dropped and counted.
    clock:      seconds, monotonic; a test passes its own, which then is that of the trace too.

    The first step starts with the recorder, each next one where the previous ended. Call
    `start_step` after set-up, evaluation or a checkpoint that no step should pay for.

        with recorder.span("rollout"):
            ...
        recorder.count("rollout", 4096)
        metrics = throughput(recorder.end_step())
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        rank: int = 0,
        max_events: int = 100_000,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._device = torch.device(device)
        self._on_cuda = self._device.type == "cuda"
        self.rank = rank
        self._clock = clock
        self._real_clock = clock is time.perf_counter
        self._open: list[str] = []
        self._finished: list[_Span] = []
        self._tokens: dict[str, int] = {}
        self._flops: dict[str, float] = {}
        self._bytes_read: dict[str, float] = {}
        self._intervals: deque[Interval] = deque(maxlen=max_events)
        self._samples: deque[CounterSample] = deque(maxlen=max_events)
        self._num_intervals = 0
        self._to_unix_ns = 0
        self._num_steps = 0
        self.start_step()

    def span(self, name: str) -> _Span:
        """A context manager that times its block. Spans may nest. An exception still closes it.

        Raises ValueError for the name "step", which is the whole step.
        """
        if name == "step":
            raise ValueError("span name 'step' is reserved for the whole step: use another name")
        return _Span(self, name)

    def count(self, name: str, num_tokens: int) -> None:
        """Add real tokens (no padding) to the counter `name`; see `throughput` for what to count.

        Count over all ranks. "step" is the counter of the whole step.
        """
        assert num_tokens >= 0, f"counter {name!r} cannot go down by {num_tokens}"
        self._tokens[name] = self._tokens.get(name, 0) + int(num_tokens)

    def count_flops(self, name: str, flops: float) -> None:
        """Add model FLOPs to span `name`, over all ranks; see `flops.utilisation`."""
        self._flops[name] = self._flops.get(name, 0.0) + flops

    def count_bytes(self, name: str, num_bytes: float) -> None:
        """Add bytes that this device had to read to span `name`; see `flops.utilisation`."""
        self._bytes_read[name] = self._bytes_read.get(name, 0.0) + num_bytes

    def sample(self, name: str, value: float) -> None:
        """A point of a curve of the trace, such as memory in use, at the end of the last step."""
        self._samples.append(CounterSample(name, self._unix_ns(self._step_start_s), value))

    @property
    def intervals(self) -> list[Interval]:
        """Spans and steps of the trace, oldest first."""
        return list(self._intervals)

    @property
    def samples(self) -> list[CounterSample]:
        """Points of the trace's curves, oldest first."""
        return list(self._samples)

    @property
    def num_dropped(self) -> int:
        """Spans and steps that the trace had no more room for."""
        return self._num_intervals - len(self._intervals)

    def start_step(self) -> None:
        """Forget what was recorded since the last step and start the clock now (waits for CUDA)."""
        self._require_closed("start_step")
        if self._on_cuda:
            # Earlier work still queued would otherwise be billed to the first span.
            torch.cuda.synchronize(self._device)
        self._forget()
        self._anchor_event = self._record_event()
        self._step_start_s = self._clock()
        self._align_clocks()

    def end_step(self, label: str | None = None) -> StepTimes:
        """Close the step, start the next one and return its times. The one wait for CUDA.

        label: what the trace calls the step. Raises ValueError inside an open span.
        """
        self._require_closed("end_step")
        end_event = self._record_event()
        if end_event is not None:
            end_event.synchronize()
        now_s = self._clock()
        spans_s: dict[str, float] = {}
        for span in self._finished:
            seconds = self._trace_span(span)
            if span.is_outermost:
                spans_s[span.name] = spans_s.get(span.name, 0.0) + seconds
        times = StepTimes(
            spans_s,
            dict(self._tokens),
            now_s - self._step_start_s,
            dict(self._flops),
            dict(self._bytes_read),
        )
        label = label or f"step {self._num_steps}"
        self._append(label, HOST_TRACK, self._step_start_s, now_s, values=times.tokens)
        self._num_steps += 1
        self._forget()
        self._anchor_event = end_event
        self._step_start_s = now_s
        return times

    def _forget(self) -> None:
        self._finished.clear()
        for counter in (self._tokens, self._flops, self._bytes_read):
            counter.clear()

    def _align_clocks(self) -> None:
        """Map our clock to that of torch's profiler, nanoseconds since 1970, which may be set.

        What is less is the noise of reading two clocks, and would let steps overlap.
        """
        offset_ns = time.time_ns() - time.perf_counter_ns() if self._real_clock else 0
        if abs(offset_ns - self._to_unix_ns) > _CLOCK_NOISE_NS:
            self._to_unix_ns = offset_ns

    def _unix_ns(self, at_s: float) -> int:
        return round(at_s * 1e9) + self._to_unix_ns

    def _record_event(self) -> torch.cuda.Event | None:
        if not self._on_cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _trace_span(self, span: _Span) -> float:
        """Put a finished span on its tracks; its seconds, those of the device if there is one."""
        self._append(span.name, HOST_TRACK, span.start_s, span.stop_s)
        start, stop, anchor = span.start_event, span.stop_event, self._anchor_event
        if start is None or stop is None or anchor is None:
            return span.stop_s - span.start_s
        stop.synchronize()  # already done, unless the span ran on another stream
        seconds = start.elapsed_time(stop) / 1e3
        device_start_s = self._step_start_s + anchor.elapsed_time(start) / 1e3
        device_stop_s = device_start_s + seconds
        self._append(span.name, DEVICE_TRACK, device_start_s, device_stop_s)
        return seconds

    def _append(
        self,
        name: str,
        track: str,
        start_s: float,
        stop_s: float,
        *,
        values: Mapping[str, float] | None = None,
    ) -> None:
        start_ns, stop_ns = self._unix_ns(start_s), self._unix_ns(stop_s)
        self._intervals.append(Interval(name, track, start_ns, stop_ns, values or {}))
        self._num_intervals += 1

    def _require_closed(self, caller: str) -> None:
        if self._open:
            raise ValueError(
                f"span {self._open[-1]!r} is still open: call {caller}() outside spans"
            )


def token_rates(times: StepTimes) -> dict[str, float]:
    """Tokens per second of each counter: tokens / seconds of the span of that name.

    "step" is divided by the wall time of the step. A counter without a span has no rate, and one
    that counted nothing has none either: a step that kept no group had no update. This is
    ``tokens_per_s`` of a stage in summary.json.
    """
    seconds = {**times.spans_s, "step": times.wall_s}
    return {
        name: num_tokens / seconds[name]
        for name, num_tokens in times.tokens.items()
        if num_tokens and seconds.get(name, 0.0) > 0.0
    }


def throughput(times: StepTimes, *, num_devices: int = 1) -> dict[str, float]:
    """Metrics of one step under full names; each rate says its numerator and denominator.

    rollout/completion_tokens_per_s:  sampled tokens, prompt excluded / seconds of span "rollout".
    evaluate/completion_tokens_per_s: the same for span "evaluate".
    logprob/tokens_per_s: prompt + completion tokens scored, each once however many models score
                          it / seconds of span "logprob".
    update/tokens_per_s:  prompt + completion tokens trained on / seconds of span "update", which
                          includes the optimizer.
    step/tokens_per_s:    prompt + completion tokens of the step's trajectories, dropped groups
                          included / wall seconds of the step, reward and sync included.

    Any other counter gets ``NAME/tokens_per_s``. Padding never counts. Also ``NAME/seconds`` of
    each span (``reward/seconds``, ``sync/seconds``), ``step/seconds`` (wall), and each numerator as
    ``NAME/tokens`` or ``NAME/completion_tokens``. Counters are over all ranks; with `num_devices`
    above 1 each rate is repeated as ``..._per_s_per_device``.
    """
    metrics = {f"{name}/seconds": seconds for name, seconds in times.spans_s.items()}
    metrics["step/seconds"] = times.wall_s
    rates = token_rates(times)
    for name, num_tokens in times.tokens.items():
        unit = "completion_tokens" if name in _COMPLETION_SPANS else "tokens"
        metrics[f"{name}/{unit}"] = float(num_tokens)
        if name in rates:
            metrics[f"{name}/{unit}_per_s"] = rates[name]
            if num_devices > 1:
                metrics[f"{name}/{unit}_per_s_per_device"] = rates[name] / num_devices
    return metrics


def _added(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    return {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}
