# SPDX-License-Identifier: Apache-2.0
"""Spans against hand-worked numbers, from a clock that the test winds itself."""

import time

import pytest
import torch

from satori_fast.profiling.spans import (
    DEVICE_TRACK,
    SpanRecorder,
    StepTimes,
    throughput,
    token_rates,
)


class HandClock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s

    def pass_seconds(self, seconds):
        self.now_s += seconds


def record_two_rooms(recorder, clock):
    clock.pass_seconds(0.5)
    with recorder.span("rollout"):
        clock.pass_seconds(2.0)
        with recorder.span("reward"):
            clock.pass_seconds(1.0)
    with recorder.span("reward"):
        clock.pass_seconds(0.25)
    recorder.count("rollout", 300)
    recorder.count("rollout", 600)
    recorder.count("step", 1500)


def test_nested_spans_count_under_their_own_name_and_inside_the_parent():
    clock = HandClock()
    recorder = SpanRecorder(clock=clock)
    record_two_rooms(recorder, clock)
    times = recorder.end_step()
    assert times.spans_s == {"rollout": 3.0, "reward": 1.25}
    assert times.tokens == {"rollout": 900, "step": 1500}
    assert times.wall_s == 3.75


def test_a_span_inside_its_own_name_is_not_added_twice():
    clock = HandClock()
    recorder = SpanRecorder(clock=clock)
    with recorder.span("update"):
        clock.pass_seconds(1.0)
        with recorder.span("update"):
            clock.pass_seconds(2.0)
    assert recorder.end_step().spans_s == {"update": 3.0}


def test_the_next_step_starts_empty_where_the_last_one_ended():
    clock = HandClock()
    recorder = SpanRecorder(clock=clock)
    record_two_rooms(recorder, clock)
    recorder.end_step()
    clock.pass_seconds(0.75)
    assert recorder.end_step() == StepTimes({}, {}, 0.75)


def test_start_step_drops_set_up_time():
    clock = HandClock()
    recorder = SpanRecorder(clock=clock)
    record_two_rooms(recorder, clock)
    recorder.start_step()
    clock.pass_seconds(1.0)
    assert recorder.end_step() == StepTimes({}, {}, 1.0)


def test_an_exception_closes_its_spans():
    clock = HandClock()
    recorder = SpanRecorder(clock=clock)
    with pytest.raises(KeyError), recorder.span("rollout"), recorder.span("sample"):
        clock.pass_seconds(1.0)
        raise KeyError("boom")
    assert recorder.end_step().spans_s == {"sample": 1.0, "rollout": 1.0}


def test_ending_a_step_inside_a_span_names_the_span():
    recorder = SpanRecorder()
    with recorder.span("rollout"), pytest.raises(ValueError, match="'rollout' is still open"):
        recorder.end_step()


def test_the_name_of_the_whole_step_is_reserved():
    with pytest.raises(ValueError, match="reserved"):
        SpanRecorder().span("step")


def test_real_clock_spans_fit_into_the_step():
    recorder = SpanRecorder()
    for _ in range(50):
        with recorder.span("update"):
            torch.ones(8).sum()
    times = recorder.end_step()
    assert 0.0 < times.spans_s["update"] < times.wall_s


def test_throughput_by_hand():
    times = StepTimes(
        spans_s={"rollout": 4.0, "reward": 0.5, "logprob": 2.0, "update": 5.0, "sync": 0.25},
        tokens={"rollout": 1000, "logprob": 1500, "update": 1200, "step": 1500},
        wall_s=12.5,
    )
    assert throughput(times) == {
        "rollout/seconds": 4.0,
        "reward/seconds": 0.5,
        "logprob/seconds": 2.0,
        "update/seconds": 5.0,
        "sync/seconds": 0.25,
        "step/seconds": 12.5,
        "rollout/completion_tokens": 1000.0,
        "rollout/completion_tokens_per_s": 250.0,
        "logprob/tokens": 1500.0,
        "logprob/tokens_per_s": 750.0,
        "update/tokens": 1200.0,
        "update/tokens_per_s": 240.0,
        "step/tokens": 1500.0,
        "step/tokens_per_s": 120.0,
    }
    per_device = throughput(times, num_devices=4)
    assert per_device["rollout/completion_tokens_per_s_per_device"] == 62.5
    assert per_device["step/tokens_per_s_per_device"] == 30.0


def test_a_counter_without_time_has_no_rate():
    times = StepTimes(spans_s={"update": 0.0}, tokens={"update": 10, "prompt": 5}, wall_s=1.0)
    assert token_rates(times) == {}
    assert throughput(times)["prompt/tokens"] == 5.0


def test_a_counter_that_counted_nothing_has_no_rate():
    """A step that keeps no group has no update, and one of 0 tokens per second would be a lie."""
    times = StepTimes(spans_s={"update": 0.01}, tokens={"update": 0, "step": 8}, wall_s=2.0)
    assert token_rates(times) == {"step": 4.0}
    metrics = throughput(times)
    assert "update/tokens_per_s" not in metrics and metrics["update/tokens"] == 0.0


def test_rates_of_added_steps_are_total_tokens_over_total_seconds():
    first = StepTimes({"update": 1.0}, {"update": 100, "step": 100}, 2.0)
    second = StepTimes({"update": 3.0, "sync": 1.0}, {"update": 100, "step": 100}, 6.0)
    total = first + second
    assert total == StepTimes({"update": 4.0, "sync": 1.0}, {"update": 200, "step": 200}, 8.0)
    assert token_rates(total) == {"update": 50.0, "step": 25.0}
    assert first.spans_s == {"update": 1.0}


def test_added_steps_add_their_flops_and_bytes():
    first = StepTimes(flops={"update": 1.0}, bytes_read={"rollout": 2.0})
    second = StepTimes(flops={"update": 3.0, "logprob": 4.0})
    total = first + second
    assert total.flops == {"update": 4.0, "logprob": 4.0} and total.bytes_read == {"rollout": 2.0}


def test_flops_and_bytes_are_those_of_the_step():
    recorder = SpanRecorder()
    recorder.count_flops("update", 2.0)
    recorder.count_flops("update", 3.0)
    recorder.count_bytes("rollout", 7.0)
    times = recorder.end_step()
    assert times.flops == {"update": 5.0} and times.bytes_read == {"rollout": 7.0}
    assert recorder.end_step().flops == {}


def test_intervals_nest_and_a_sample_stands_at_the_end_of_the_step():
    clock = HandClock()
    recorder = SpanRecorder(clock=clock)
    record_two_rooms(recorder, clock)
    recorder.end_step()
    recorder.sample("host/rss_bytes", 5.0)
    reward, rollout, again, step = recorder.intervals
    names = [interval.name for interval in (reward, rollout, again, step)]
    assert names == ["reward", "rollout", "reward", "step 0"]
    assert (rollout.start_ns, rollout.stop_ns) == (100_500_000_000, 103_500_000_000)
    assert rollout.start_ns <= reward.start_ns and reward.stop_ns <= rollout.stop_ns
    assert step.values == {"rollout": 900, "step": 1500}
    (sample,) = recorder.samples
    assert (sample.at_ns, sample.value) == (step.stop_ns, 5.0)


def test_intervals_are_on_the_clock_of_the_day():
    before = time.time_ns()
    recorder = SpanRecorder()
    with recorder.span("update"):
        pass
    recorder.end_step()
    assert before - 10**6 <= recorder.intervals[0].start_ns <= time.time_ns()


def test_the_intervals_are_bounded_and_dropped_ones_counted():
    clock = HandClock()
    recorder = SpanRecorder(max_events=6, clock=clock)
    for _ in range(5):
        record_two_rooms(recorder, clock)
        recorder.end_step()
    assert len(recorder.intervals) == 6
    assert recorder.num_dropped == 5 * 4 - 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_spans_time_work_that_was_only_launched():
    x = torch.randn(4096, 4096, device="cuda")
    (x @ x).sum().item()
    recorder = SpanRecorder(device="cuda")
    with recorder.span("update"):
        for _ in range(50):
            y = x @ x
    with recorder.span("idle"):
        pass
    times = recorder.end_step()
    # 50 products are 6.9 TFLOP: at least a few ms on any GPU, while their launch takes under 1 ms.
    assert 2e-3 < times.spans_s["update"] <= times.wall_s
    assert times.spans_s["idle"] < 0.1 * times.spans_s["update"]
    on_device = [i.name for i in recorder.intervals if i.track == DEVICE_TRACK]
    assert on_device == ["update", "idle"]
    assert y.shape == x.shape
