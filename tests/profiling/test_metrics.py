# SPDX-License-Identifier: Apache-2.0
"""Run files: one line per step, cut on resume, readable after a kill; progress in log files."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from satori_fast.data.formats.coat import COAT
from satori_fast.profiling.metrics import MetricsWriter, progress, read_metrics, sample_record
from satori_fast.types import (
    Prefix,
    Problem,
    RewardBreakdown,
    Segment,
    SegmentKind,
    SegmentSignal,
    StepReport,
    Trajectory,
)


def report(stage, step, **metrics):
    return StepReport(stage, step, {"loss": step / 4, **metrics}, {"update": 0.5})


def sample(stage, step):
    return {"stage": stage, "step": step, "question": f"{stage} {step}"}


def write_run(folder, steps, resume=None):
    """Write `steps` ((stage, step) pairs); `resume` is the checkpoint to continue from."""
    stage, step = resume or (None, None)
    with MetricsWriter(folder, step, stage=stage, tensorboard=False) as writer:
        for name, number in steps:
            writer.write(report(name, number))
            if number % 2 == 0:
                writer.write_sample(sample(name, number))


def test_a_line_is_flat_sorted_and_on_disk_at_once(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(
        StepReport("format", 1, {"loss": torch.tensor(0.5), "b": np.float32(2), "a": 3}, {"z": 1.0})
    )
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == (
        '{"a": 3, "b": 2.0, "loss": 0.5, "spans_s": {"z": 1.0}, "stage": "format", "step": 1}\n'
    )
    writer.close()


def test_nan_and_infinity_become_null_and_are_counted(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(report("rl", 1, kl=float("nan"), ratio=float("inf")))
        writer.write(report("rl", 2, kl=0.0))
        assert writer.num_nonfinite == 2
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first["kl"] is None and first["ratio"] is None and first["num_nonfinite"] == 2
    assert second["kl"] == 0.0 and "num_nonfinite" not in second


def test_a_metric_may_not_take_the_name_of_a_field(tmp_path):
    with (
        MetricsWriter(tmp_path, tensorboard=False) as writer,
        pytest.raises(ValueError, match="metric 'step' has the name of a field"),
    ):
        writer.write(StepReport("rl", 1, {"step": 3.0}, {}))


FORMAT = [("format", step) for step in range(1, 5)]
RL = [("rl", step) for step in range(1, 7)]
JUDGE = [("judge", step) for step in range(1, 3)]


@pytest.mark.parametrize(
    ("written", "checkpoint", "remaining"),
    [
        # killed in the second stage, three steps after its checkpoint
        (FORMAT + RL[:5], ("rl", 2), RL[2:] + JUDGE),
        # killed in the second stage before its first checkpoint: it starts again
        (FORMAT + RL[:3], ("rl", 0), RL + JUDGE),
        # the second stage had not written a line
        (FORMAT, ("rl", 0), RL + JUDGE),
        # back to a checkpoint of an earlier stage: the later stages are written anew
        (FORMAT + RL + JUDGE[:1], ("format", 2), FORMAT[2:] + RL + JUDGE),
        # killed exactly at the checkpoint
        (FORMAT + RL[:4], ("rl", 4), RL[4:] + JUDGE),
    ],
)
def test_a_resumed_run_leaves_the_files_of_an_uninterrupted_one(
    tmp_path, written, checkpoint, remaining
):
    write_run(tmp_path / "whole", FORMAT + RL + JUDGE)
    write_run(tmp_path / "killed", written)
    write_run(tmp_path / "killed", remaining, resume=checkpoint)
    for name in ("metrics.jsonl", "samples.jsonl"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "killed" / name).read_bytes() == whole


def test_a_torn_last_line_is_left_out_and_replaced_on_resume(tmp_path):
    write_run(tmp_path, RL[:3])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    write_run(tmp_path, RL[2:3], resume=("rl", 2))
    assert path.read_bytes() == whole


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "rl", "step": 1}\n{"stage": "r\n{"stage": "rl", "step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is not JSON"):
        read_metrics(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1 is not a JSON object"):
        read_metrics(path)


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path):
    write_run(tmp_path, RL[:1])
    with pytest.raises(ValueError, match="holds an earlier run"):
        MetricsWriter(tmp_path)
    with pytest.raises(ValueError, match="go together"):
        MetricsWriter(tmp_path, 3)


def test_tensorboard_has_a_run_per_stage_and_forgets_the_lost_steps(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 5):
            writer.write(report("rl", step, kl=float("nan")))
    with MetricsWriter(tmp_path, 2, stage="rl") as writer:
        writer.write(StepReport("rl", 3, {"loss": 9.0}, {}))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "rl"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.25), (2, 0.5), (3, 9.0)]


def test_sample_record_of_a_restart_trajectory():
    trajectory = Trajectory(
        problem=Problem("p7", "2 + 2", "4", Prefix("5 <|reflect|>", "restart", correct=False)),
        group_id=0,
        tokens=np.arange(6, dtype=np.int32),
        prompt_len=3,
        logprobs=np.zeros(3, np.float32),
        policy_version=2,
        finish="stop",
        segments=(
            Segment(SegmentKind.CONTINUE, 0, 1, "no"),
            Segment(SegmentKind.EXPLORE, 1, 3, "<|explore|> 4"),
        ),
    )
    record = sample_record("rl", 5, trajectory=trajectory, format=COAT)
    assert record["correct"] is None and record["reward"] == {}
    reward = RewardBreakdown({"rule": 0.0, "reflection": 0.5}, correct=True)
    record = sample_record("rl", 5, trajectory=trajectory.with_reward(reward), format=COAT)
    assert json.loads(json.dumps(record)) == {
        "stage": "rl",
        "step": 5,
        "problem_id": "p7",
        "question": "2 + 2",
        "answer": "4",
        "prefix": "5 <|reflect|>",
        "prefix_correct": False,
        "prefix_segments": [
            {"kind": "continue", "text": "5 ", "colour": "#3f6fb5"},
            {"kind": "reflect", "text": "<|reflect|>", "colour": "#c9892f"},
        ],
        "target": None,
        "segments": [
            {"kind": "continue", "text": "no", "colour": "#3f6fb5"},
            {"kind": "explore", "text": "<|explore|> 4", "colour": "#3d9480"},
        ],
        "correct": True,
        "reward": {"rule": 0.0, "reflection": 0.5, "total": 0.5},
        "finish": "stop",
    }
    # Values of segments, no verdict, and a number that JSON does not know.
    process = RewardBreakdown({"shape": np.nan}, np.array([0.5, -1.0], np.float32))
    record = sample_record("rl", 5, trajectory=trajectory.with_reward(process), format=COAT)
    assert record["reward"] == {"shape": None, "total": None, "segments": [0.5, -1.0]}
    assert record["correct"] is None


def test_sample_record_of_a_trajectory_that_was_trained_on():
    segments = (
        Segment(SegmentKind.SOLVE, 0, 1, "5"),
        Segment(SegmentKind.VERIFY, 1, 3, "wrong", verdict=False),
    )
    trajectory = Trajectory(
        problem=Problem("p7", "2 + 2", "4"),
        group_id=0,
        tokens=np.arange(6, dtype=np.int32),
        prompt_len=3,
        logprobs=np.zeros(3, np.float32),
        policy_version=2,
        finish="stop",
        segments=segments,
    )
    signal = SegmentSignal(
        rewards=np.array([-1.0, 1.0]),
        baselines=np.array([0.0, 1 / 3]),
        advantages=np.array([-1.0, np.nan]),
        weights=np.array([2.0, 0.5]),
    )
    record = sample_record("rl", 5, trajectory=trajectory, format=COAT, signal=signal)
    shared = {"colour": None, "weight": 2.0}
    assert record["segments"] == [
        {"kind": "solve", "text": "5", "reward": -1.0, "baseline": 0.0, "advantage": -1.0} | shared,
        {"kind": "verify", "text": "wrong", "verdict": False, "reward": 1.0, "baseline": 0.333333}
        | {"advantage": None}
        | shared
        | {"weight": 0.5},
    ]


def run_progress(console, seconds_per_step, total=20, completed=0):
    now_s = [0.0]
    bar = progress("rl", total, completed=completed, console=console, clock=lambda: now_s[0])
    with bar as reporter:
        for step in range(completed, total):
            now_s[0] += seconds_per_step
            reporter.advance(values={"reward/total": step / 2})


def test_a_log_file_gets_a_line_every_tenth():
    console = Console(file=io.StringIO(), width=40)
    run_progress(console, seconds_per_step=0.5)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "rl 2/20 (10 %) 2.0 steps/s, 0:09 left reward/total=0.5"
    assert lines[-1] == "rl 20/20 (100 %) 2.0 steps/s, 0:00 left reward/total=9.5"


def test_a_slow_run_gets_a_line_every_half_minute_and_resumed_steps_do_not_count_as_speed():
    console = Console(file=io.StringIO(), width=40)
    run_progress(console, seconds_per_step=40.0, completed=17)
    lines = console.file.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "rl 18/20 (90 %) 40.0 s/step",
        "rl 19/20 (95 %) 40.0 s/step",
        "rl 20/20 (100 %) 40.0 s/step",
    ]


def test_a_terminal_gets_a_bar():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    run_progress(console, seconds_per_step=0.5)
    text = console.file.getvalue()
    assert "20/20" in text and "2.0 steps/s" in text and "reward/total=9.5" in text
