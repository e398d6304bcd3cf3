# SPDX-License-Identifier: Apache-2.0
"""Which steps are recorded, and that their operators lie inside our spans, on one clock."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from satori_fast.profiling.spans import SpanRecorder
from satori_fast.profiling.step_tracer import StepTracer, TraceSettings
from satori_fast.profiling.trace_file import merge_trace, write_span_part
from tests.profiling.test_trace_file import assert_in_order, loaded, of_track


def recorded_steps(tracer: StepTracer, num_steps: int) -> list[int]:
    """Steps of a stage during which the recorder was on."""
    tracer.begin(num_steps)
    steps = []
    for step in range(num_steps):
        if tracer.is_recording:
            steps.append(step)
        tracer.step_done()
    assert not tracer.is_recording
    return steps


@pytest.mark.parametrize(
    ("num_steps", "expected"), [(9, [2, 3]), (4, [2, 3]), (3, [1, 2]), (2, [0, 1]), (1, [0])]
)
def test_warm_up_is_skipped_where_the_stage_is_long_enough(
    tmp_path: Path, num_steps: int, expected: list[int]
) -> None:
    tracer = StepTracer(tmp_path, TraceSettings(first_step=2, num_steps=2))
    assert recorded_steps(tracer, num_steps) == expected
    assert len(list(tmp_path.iterdir())) == 1


def test_a_stage_without_steps_is_not_recorded(tmp_path: Path) -> None:
    tracer = StepTracer(tmp_path / "parts", TraceSettings())
    assert not tracer.begin(0) and not (tmp_path / "parts").exists()


def test_operators_lie_inside_the_span_that_ran_them(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    recorder, x = SpanRecorder(), torch.randn(64, 64, requires_grad=True)
    tracer = StepTracer(parts, TraceSettings(first_step=1, num_steps=1, memory=True))
    tracer.begin(3)
    for _ in range(3):
        with recorder.span("logprob"):
            torch.mm(x, x)
        with recorder.span("update"):
            (x @ x).sum().backward()
        recorder.end_step()
        if tracer.step_done():
            recorder.start_step()
    tracer.close()
    write_span_part(recorder, parts)
    document = loaded(merge_trace(parts, tmp_path / "trace.json") or tmp_path)
    assert_in_order(document)
    spans = [e for e in of_track(document, 0, "spans") if e["ph"] == "X"]
    assert len(spans) == 3 * 3  # a step that was not recorded has its spans too
    logprob, update = (
        next(e for e in spans[3:] if e["name"] == name) for name in ("logprob", "update")
    )
    products = [e for e in document["traceEvents"] if e["name"] == "aten::mm"]
    assert len(products) == 4  # one forward; one forward and two backward
    clock_slack_us = 100
    for product, span in zip(products, [logprob, update, update, update], strict=True):
        assert span["ts"] - clock_slack_us <= product["ts"]
        assert product["ts"] + product["dur"] <= span["ts"] + span["dur"] + clock_slack_us
    assert any(e["name"] == "torch allocations, CPU" for e in document["traceEvents"])


def test_an_unfinished_recording_is_dropped(tmp_path: Path) -> None:
    tracer = StepTracer(tmp_path / "parts", TraceSettings(first_step=0, num_steps=5))
    assert tracer.begin(5)
    tracer.close()
    assert not tracer.is_recording and not (tmp_path / "parts").exists()
