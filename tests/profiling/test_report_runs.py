# SPDX-License-Identifier: Apache-2.0
"""Run folders as the pages read them: finished, unfinished, broken, empty."""

import json

import pytest

from satori_fast.profiling.metrics import MetricsWriter
from satori_fast.profiling.report_runs import flat_config, read_run, run_facts, stage_times
from satori_fast.profiling.summary import build_summary, write_summary
from satori_fast.types import StepReport

CONFIG = """name = "toy"
seed = 3
[model]
architecture = "qwen2"
hidden_size = 64
num_layers = 2
[rollout]
engine = "embedded"
[parallel]
tensor = 2
"""


def lines_of_rl(num_steps=2):
    return [
        {"stage": "rl", "step": i, "step/seconds": 2.0, "spans_s": {"rollout": 0.5, "update": 1.0}}
        for i in range(num_steps)
    ]


def test_times_come_from_the_summary_and_else_from_the_steps():
    entries = [
        {"stage": "sft", "wall_s": 10.0, "seconds": {"pack": 1.0, "update": 8.0, "sample": 4.0}},
        {"stage": "rl", "wall_s": None},
    ]
    sft, rl = stage_times(entries, lines_of_rl())
    assert (sft.stage, sft.start_s, sft.wall_s) == ("sft", 0.0, 10.0)
    # "sample" is a part of "rollout".
    assert list(sft.seconds.items()) == [("update", 8.0), ("pack", 1.0)] and sft.rest_s == 1.0
    assert (rl.start_s, rl.wall_s, rl.seconds) == (10.0, 4.0, {"update": 2.0, "rollout": 1.0})


def test_spans_that_overlap_leave_no_rest_and_steps_without_a_time_add_up_their_spans():
    lines = [{"stage": "rl", "step": 0, "spans_s": {"rollout": 2.0, "decode": None}}]
    (time,) = stage_times([], lines)
    assert time.wall_s == 2.0 and time.rest_s == 0.0
    (time,) = stage_times([{"stage": "rl", "wall_s": 1.0, "seconds": {"a": 0.9, "b": 0.8}}], [])
    assert time.rest_s == 0.0


def test_a_finished_run(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    device = {"kind": "cpu", "name": "Model 9000", "cores": 2, "torch": "2.13.0"}
    stages = [{"stage": "rl", "wall_s": 5.0}]
    summary = build_summary("toy", "0.1.0", device=device, wall_s=6.0, stages=stages)
    write_summary(summary, tmp_path / "summary.json")
    run = read_run(tmp_path)
    assert run.finished and run.name == "toy" and run.wall_s == 6.0
    assert run.summary == summary and run.lines == [] and run.analysis == []
    assert run.config["model"]["num_layers"] == 2 and run.config_text == CONFIG
    assert dict(run_facts(run)) == {
        "stages": "rl",
        "model": "qwen2, 2 layers, hidden size 64, from scratch",
        "rollout engine": "embedded",
        "device": "Model 9000, 2 cores",
        "parallel": "tensor 2",
        "seed": "3",
        "versions": "satori_fast 0.1.0, torch 2.13.0",
    }


def test_an_unfinished_run_is_read_as_far_as_it_came(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(StepReport("rl", 0, {"step/seconds": 2.0}, {"rollout": 1.0}))
    state = {"finished": [{"stage": "sft", "wall_s": 3.0, "accuracy": 0.5}], "wall_s": 3.5}
    (tmp_path / "progress.json").write_text(json.dumps(state))
    run = read_run(tmp_path)
    assert not run.finished and run.name == tmp_path.name
    assert run.summary["stages"][0]["num_problems"] is None
    assert [(time.stage, time.start_s) for time in run.times] == [("sft", 0.0), ("rl", 3.0)]
    assert run.wall_s == 5.0


def test_a_gpu_is_counted(tmp_path):
    device = {"kind": "cuda", "name": "H100", "count": 8, "cuda": "13.0"}
    summary = build_summary("toy", "0.1.0", device=device, wall_s=1.0, stages=[])
    write_summary(summary, tmp_path / "summary.json")
    assert dict(run_facts(read_run(tmp_path)))["device"] == "8 x H100"


def test_no_run_and_a_broken_file_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        read_run(tmp_path)
    (tmp_path / "summary.json").write_text('{"name": ')
    with pytest.raises(ValueError, match=r"summary\.json is not JSON"):
        read_run(tmp_path)


def test_similarity_is_read_where_a_stage_wrote_it(tmp_path):
    (tmp_path / "summary.json").write_text(
        json.dumps(build_summary("toy", "0.1.0", device={}, wall_s=1.0, stages=[]))
    )
    assert read_run(tmp_path).similarity == []
    for stage in ("srl_2", "srl"):
        content = {"stage": stage, "rows": [], "sha256": "of the content"}
        (tmp_path / f"similarity_{stage}.json").write_text(json.dumps(content))
    assert read_run(tmp_path).similarity == [
        {"stage": "srl", "rows": []},
        {"stage": "srl_2", "rows": []},
    ]
    (tmp_path / "similarity_srl.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match=r"similarity_srl\.json does not hold what a run writes"):
        read_run(tmp_path)


def test_flat_config_has_the_keys_of_the_command_line():
    nested = {"seed": 1, "model": {"path": "m", "optimizer": {"beta1": 0.9}}, "stages": ["a"]}
    assert flat_config(nested) == {
        "seed": 1,
        "model.path": "m",
        "model.optimizer.beta1": 0.9,
        "stages": ["a"],
    }
