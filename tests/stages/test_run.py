# SPDX-License-Identifier: Apache-2.0
"""Whole runs, small: what they leave, what they refuse, and that resuming changes nothing."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from satori_fast.config import Config, ConfigError, load_config
from satori_fast.grading import GradingPool
from satori_fast.profiling.metrics import read_metrics
from satori_fast.profiling.spans import StepTimes
from satori_fast.stages import run_stages
from satori_fast.stages.explain import explain
from satori_fast.stages.export import export_stage
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.restarts import read_restarts
from satori_fast.stages.run import build_run
from satori_fast.stages.supervised import load_trajectories
from satori_fast.storage import read_sealed, write_sealed
from tests.evaluation.test_evaluate import evaluated_trials
from tests.profiling.test_trace_file import assert_in_order, loaded, of_track
from tests.stages.two_processes import run_on_two

TINY = """
schema_version = 1
name = "tiny"
stages = ["synthesize", "supervised", "reinforce"]
[model]
hidden_size = 32
num_layers = 2
intermediate_size = 64
num_attention_heads = 2
num_key_value_heads = 1
[tokenizer]
kind = "words"
[data]
levels = [1]
num_train = 40
template = "plain"
max_prompt_tokens = 90
[packing]
max_tokens_per_microbatch = 512
[rollout]
max_seqlen = 128
max_new_tokens = 24
max_slots = 16
[reward]
num_workers = 0
[synthesize]
num_problems = 40
num_solutions = 6
confirm_share = 0.5
[supervised]
num_epochs = 1.0
batch_size = 16
checkpoint_every = 3
optimizer = { learning_rate = 3e-3 }
[reinforce]
recipe = "ppo"
num_steps = 4
problems_per_step = 4
samples_per_problem = 4
checkpoint_every = 2
optimizer = { learning_rate = 1e-3 }
[solutions]
num_problems = 10
num_samples = 2
[evaluation]
num_problems = 20
"""


RESTARTS = Path("restarts") / "reinforce-0.jsonl"
SOLUTIONS = Path("solutions") / "supervised.jsonl"


def tiny_config(folder: Path, *overrides: str) -> Config:
    path = folder / "tiny.toml"
    path.write_text(TINY)
    return load_config(path, ["--output_dir", f"'{folder}'", *overrides])


# What a clock or the machine decides.
MEASURED = re.compile(
    r"spans_s|host/.*|sample/.*|.*(_per_s(_per_device)?|/seconds(_max|_mean)?|/mfu|/bandwidth_share)"
)


def timeless(path: Path) -> list[dict[str, Any]]:
    """Metrics without what is measured."""
    return [
        {k: v for k, v in line.items() if not MEASURED.fullmatch(k)} for line in read_metrics(path)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_stages(tiny_config(folder, "--profiling.trace", "true", "--reinforce.export_every", "2"))
    return folder / "tiny"


def test_what_verification_is_worth_is_in_the_summary(tmp_path: Path) -> None:
    options = ("--data.format", "trials", "--stages", "['reinforce']")
    with build_run(tiny_config(tmp_path, *options)) as run:
        evaluation = evaluated_trials(GradingPool(0))
        run.finish_stage("reinforce", StageOutcome({}, evaluation, StepTimes()))
        (entry,) = run.finished
    block = entry["verification"]
    assert (block["trials"], block["num_verifications"], entry["error_recall"]) == (1.5, 6, 0.5)
    assert [group["label"] for group in block["by_level"]] == ["1", "2"]


def test_a_run_leaves_its_folder(finished: Path) -> None:
    for name in ("config.toml", "metrics.jsonl", "samples.jsonl", "summary.json", "trace.json"):
        assert (finished / name).stat().st_size > 0, name
    assert (finished / "report.html").exists() and any((finished / "tensorboard").iterdir())
    summary = json.loads((finished / "summary.json").read_text())
    assert [s["stage"] for s in summary["stages"]] == ["synthesize", "supervised", "reinforce"]
    trained = summary["stages"][1:]
    assert all(0 <= s["accuracy"] <= 1 and s["num_problems"] == 20 for s in trained)
    assert {"rollout", "logprob", "update", "step"} <= set(trained[1]["tokens_per_s"])
    analyses = json.loads((finished / "analysis.json").read_text())["stages"]
    assert [a["stage"] for a in analyses] == ["supervised", "reinforce"]
    for analysis, stage in zip(analyses, trained, strict=True):
        assert np.mean(list(analysis["correct"].values())) == stage["accuracy"]
    steps = [line["step"] for line in read_metrics(finished / "metrics.jsonl")]
    assert steps == [0, *range(steps[-5] + 1), 0, 1, 2, 3]


def assert_trace(folder: Path, *, num_ranks: int) -> None:
    """Every stage's steps, and in the recorded ones operators inside the spans that ran them."""
    document = loaded(folder / "trace.json")
    assert not (folder / "trace_parts").exists()
    assert document["otherData"]["num_dropped_events"] == 0
    assert_in_order(document)
    lines = read_metrics(folder / "metrics.jsonl")
    for rank in range(num_ranks):
        spans = [e for e in of_track(document, rank, "spans") if e["ph"] == "X"]
        names = [e["name"] for e in spans]
        assert {f"{line['stage']} step {line['step']}" for line in lines} <= set(names)
        for name in ("synthesize", "rollout", "logprob", "update", "evaluate"):
            assert names.count(name) >= sum(name in line["spans_s"] for line in lines), name
        operators = [
            e for e in document["traceEvents"] if e["pid"] == rank and e.get("cat") == "cpu_op"
        ]
        # Two steps of supervised and of reinforce were recorded; each updates in backward passes.
        backward = [e for e in operators if e["name"] == "torch::autograd::AccumulateGrad"]
        updates = [e for e in spans if e["name"] == "update"]
        used = [
            any(u["ts"] - 100 <= e["ts"] and e["ts"] + e["dur"] <= u["ts"] + u["dur"] + 100
                for e in backward)
            for u in updates
        ]  # fmt: skip
        assert sum(used) == 4
        assert all(
            any(u["ts"] - 100 <= e["ts"] <= u["ts"] + u["dur"] + 100 for u in updates)
            for e in backward
        )


def test_the_trace_shows_operators_inside_spans_of_every_stage(finished: Path) -> None:
    assert_trace(finished, num_ranks=1)


def test_every_step_says_how_well_the_machine_was_used(finished: Path) -> None:
    lines = read_metrics(finished / "metrics.jsonl")
    for line in lines:
        assert line["host/rss_bytes"] > 2**20
        if line["stage"] != "synthesize":
            assert 0 < line["update/mfu"] < 2
        if line["stage"] == "reinforce":
            assert 0 < line["logprob/mfu"] < 2 and 0 < line["rollout/bandwidth_share"] < 2


def test_engine_and_trainer_agree_on_logprobs(finished: Path) -> None:
    lines = [m for m in read_metrics(finished / "metrics.jsonl") if m["stage"] == "reinforce"]
    assert all(line["rollout/logprob_abs_diff"] < 1e-5 for line in lines)
    assert all("critic/explained_variance" in line for line in lines)


def test_restarts_end_with_a_reflection_and_say_where_they_came_from(finished: Path) -> None:
    restarts = read_restarts(finished / RESTARTS)
    assert restarts
    for problem in restarts:
        assert problem.prefix is not None and problem.prefix.text.endswith("<|reflect|>")
        assert problem.prefix.correct in (True, False)


def test_samples_say_what_each_segment_was_taught(finished: Path) -> None:
    samples = [s for s in read_metrics(finished / "samples.jsonl") if s["stage"] == "reinforce"]
    segments = [segment for sample in samples for segment in sample["segments"]]
    taught = [segment for segment in segments if "advantage" in segment]
    assert taught  # PPO keeps every group; evaluations are not trained on
    for segment in taught:
        assert segment["baseline"] == 0.0 and segment["weight"] == 1.0
        assert math.isfinite(segment["advantage"])
    explained = explain(tiny_config(finished.parent), finished / "samples.jsonl")
    assert len(explained.rows) == len(read_metrics(finished / "samples.jsonl"))


def test_every_stage_opens_in_plain_transformers(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for stage in ("initial", "supervised", "reinforce-step-2", "reinforce"):
        model = AutoModelForCausalLM.from_pretrained(finished / "models" / stage)
        tokenizer = AutoTokenizer.from_pretrained(finished / "models" / stage)
        ids = tokenizer("p 7 q 1 pick 2 sum 8", return_tensors="pt").input_ids
        assert torch.isfinite(model(ids).logits).all()
    before = AutoModelForCausalLM.from_pretrained(finished / "models" / "supervised")
    after = AutoModelForCausalLM.from_pretrained(finished / "models" / "reinforce")
    moved = [
        name
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert moved, "reinforcement learning changed no weight"


def test_a_killed_run_resumes_to_the_same_bits(finished: Path, tmp_path: Path) -> None:
    tiny_config(tmp_path)
    command = [sys.executable, "-m", "satori_fast", "run", str(tmp_path / "tiny.toml")]
    command += ["--output_dir", str(tmp_path)]
    metrics = tmp_path / "tiny" / "metrics.jsonl"
    for num_lines in (5, len(read_metrics(finished / "metrics.jsonl")) - 3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None:
            if metrics.exists() and len(metrics.read_bytes().splitlines()) >= num_lines:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read().decode()
        command = [*command[:5], "--resume", "--output_dir", str(tmp_path)]
    run_stages(load_config(tmp_path / "tiny.toml", command[6:]), resume=True)
    for stage in ("supervised", "reinforce"):
        weights = Path("models") / stage / "model.safetensors"
        assert (tmp_path / "tiny" / weights).read_bytes() == (finished / weights).read_bytes()
    assert timeless(metrics) == timeless(finished / "metrics.jsonl")
    for name in ("samples.jsonl", RESTARTS, SOLUTIONS, "demonstrations.jsonl", "analysis.json"):
        assert (tmp_path / "tiny" / name).read_bytes() == (finished / name).read_bytes()


def take_back(folder: Path, *, num_finished: int, policy: str) -> None:
    """Have progress.json of a run folder say what it said after `num_finished` stages."""
    state = read_sealed(folder / "progress.json")
    state["finished"] = state["finished"][:num_finished]
    state["models"]["policy"] = policy
    write_sealed(folder / "progress.json", state)


def reinforce_lines(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder / "tiny" / "metrics.jsonl")
    return [line for line in lines if line["stage"] == "reinforce"]


def test_partial_rollouts_resume_to_the_same_bits(tmp_path: Path) -> None:
    options = ("--rollout.max_step_tokens", "10", "--reinforce.num_steps", "6")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        run_stages(tiny_config(folder, *options, "--reinforce.checkpoint_every", "3"))
    lines = reinforce_lines(whole)
    # The first step can finish no response of more than ten tokens; later ones mix versions.
    assert any(line.get("rollout/stale_tokens", 0) > 0 for line in lines)
    assert all(line["rollout/completion_tokens"] <= 16 * 10 for line in lines)
    for line in lines:
        assert line.get("rollout/mean_response_tokens", 0) <= 24
    # Take the run back to its third step, as a kill after the checkpoint would have left it.
    take_back(cut / "tiny", num_finished=2, policy="models/supervised")
    run_stages(tiny_config(cut, *options, "--reinforce.checkpoint_every", "3"), resume=True)
    weights = Path("tiny/models/reinforce/model.safetensors")
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()


FRESH = ("--stages", "['reinforce']", "--reinforce.critic_init", "policy")


def test_a_finished_run_takes_more_steps_as_if_it_had_been_longer(tmp_path: Path) -> None:
    """And is evaluated before its first stage; without checkpoints it stays as it is."""
    options = (*FRESH, "--evaluation.at_start", "true", "--reinforce.num_steps")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    run_stages(tiny_config(whole, *options, "3"))
    first = run_stages(tiny_config(cut, *options, "2"))
    assert [stage["stage"] for stage in first["stages"]] == ["start", "reinforce"]
    assert first["stages"][0]["num_problems"] == 20 and not (cut / "tiny/models/start").exists()
    longer = run_stages(tiny_config(cut, *options, "3"), resume=True)
    assert [stage["stage"] for stage in longer["stages"]] == ["start", "reinforce"]
    model = "tiny/models/reinforce/model.safetensors"
    assert (cut / model).read_bytes() == (whole / model).read_bytes()
    lines, wanted = (timeless(folder / "tiny/metrics.jsonl") for folder in (cut, whole))
    assert [line["stage"] for line in lines] == ["start", *["reinforce"] * 3]
    # What was the end once was evaluated, and stays so.
    assert "eval/accuracy" in lines[2] and "eval/accuracy" not in wanted[2]
    rest = {name: value for name, value in lines[2].items() if "eval" not in name}
    assert [*lines[:2], rest, lines[3]] == wanted
    assert not {"restarts", "solutions"} & {path.name for path in (cut / "tiny").iterdir()}
    checkpoints = cut / "tiny" / "checkpoints" / "reinforce"
    assert any(checkpoints.iterdir())
    gone = (*options, "3", "--delete_checkpoints", "true")
    assert run_stages(tiny_config(cut, *gone), resume=True)["stages"] == longer["stages"]
    assert not checkpoints.exists()
    with pytest.raises(ConfigError, match=r"reinforce has finished and its checkpoint is gone"):
        run_stages(tiny_config(cut, *options, "4"), resume=True)


def test_critic_warm_up_trains_the_critic_alone(tmp_path: Path) -> None:
    options = ("--reinforce.critic_warmup_steps", "2", "--reinforce.num_steps", "3")
    run_stages(tiny_config(tmp_path, *options))
    lines = read_metrics(tmp_path / "tiny" / "metrics.jsonl")
    lines = [line for line in lines if line["stage"] == "reinforce"]
    assert ["update/loss" in line for line in lines] == [False, False, True]
    assert all(line["critic/grad_norm"] > 0 for line in lines)


def test_a_finished_run_is_not_overwritten(finished: Path) -> None:
    with pytest.raises(ConfigError, match="holds a run: pass --resume"):
        run_stages(tiny_config(finished.parent))


def test_resuming_with_other_settings_is_refused(finished: Path) -> None:
    config = tiny_config(finished.parent, "--reinforce.num_steps", "9")
    with pytest.raises(ConfigError, match="differs from this config"):
        run_stages(config, resume=True)


def test_export_copies_the_last_model(finished: Path, tmp_path: Path) -> None:
    export_stage(finished, tmp_path / "out", stage=None)
    name = "model.safetensors"
    exported = (tmp_path / "out" / name).read_bytes()
    assert exported == (finished / "models" / "reinforce" / name).read_bytes()
    # The model that was kept on the way is another one.
    export_stage(finished, tmp_path / "half", stage="reinforce-step-2")
    assert (tmp_path / "half" / name).read_bytes() != exported
    assert not (finished / "models" / "reinforce-step-4").exists()
    with pytest.raises(ConfigError, match="no model of stage 'x'; it has"):
        export_stage(finished, tmp_path / "other", stage="x")


def test_a_run_that_failed_at_the_start_can_be_started_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        run_stages(tiny_config(tmp_path, "--model.path", f"'{tmp_path / 'nowhere'}'"))
    summary = run_stages(tiny_config(tmp_path, "--stages", '["synthesize"]'))
    assert [s["stage"] for s in summary["stages"]] == ["synthesize"]


def test_supervised_without_demonstrations_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add synthesize to stages before it"):
        run_stages(tiny_config(tmp_path, "--stages", '["supervised"]'))


def test_a_missing_model_folder_is_one_clear_error(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(ValueError, match="nowhere"):
        run_stages(tiny_config(tmp_path, "--model.path", f"'{missing}'"))


GSM8K = """
schema_version = 1
name = "gsm8k"
stages = ["supervised", "reinforce"]
[model]
hidden_size = 32
num_layers = 2
intermediate_size = 64
num_attention_heads = 2
num_key_value_heads = 1
[tokenizer]
kind = "bpe"
vocab_size = 600
[data]
num_train = 200
max_prompt_tokens = 200
[rollout]
max_seqlen = 400
max_new_tokens = 32
[supervised]
num_epochs = 0.25
batch_size = 16
optimizer = { learning_rate = 1e-3 }
[reinforce]
recipe = "grpo"
num_steps = 2
problems_per_step = 4
samples_per_problem = 2
[solutions]
num_problems = 4
num_samples = 2
[evaluation]
num_problems = 8
"""


def test_no_demonstration_of_a_heldout_problem_is_imitated(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"}
        for n in range(300)
    ]
    source = tmp_path / "sums.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "gsm8k.toml"
    path.write_text(GSM8K)
    overrides = ["--output_dir", f"'{tmp_path}'", "--data.source", f"'{source}'"]
    config = load_config(path, [*overrides, "--data.mapping", "gsm8k", "--data.num_train", "150"])
    with build_run(config) as run:
        trajectories = load_trajectories(
            str(source),
            "gsm8k",
            run.renderer,
            problems=run.problems,
            heldout=run.heldout,
            max_seqlen=config.rollout.max_seqlen,
            own_data=True,
        )
        trained = {t.problem.question for t in trajectories}
        assert trained == {p.question for p in run.problems} and len(trained) == 150
        assert trained.isdisjoint({p.question for p in run.heldout})


def test_gsm8k_passes_through_every_room(data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.toml"
    path.write_text(GSM8K)
    source = data_dir / "train" / "gsm8k_train.jsonl"
    overrides = ["--output_dir", f"'{tmp_path}'", "--data.source", f"'{source}'"]
    summary = run_stages(load_config(path, overrides))
    assert [s["stage"] for s in summary["stages"]] == ["supervised", "reinforce"]
    samples = read_metrics(tmp_path / "gsm8k" / "samples.jsonl")
    assert samples and all(isinstance(s["answer"], str) for s in samples)
    losses = [m["update/loss"] for m in read_metrics(tmp_path / "gsm8k" / "metrics.jsonl")[:3]]
    assert losses[-1] < losses[0]


def assert_ranks_are_compared(folder: Path) -> None:
    """A rank's own part of a rollout is in the metrics, as the longest and the mean of all."""
    for line in read_metrics(folder / "metrics.jsonl"):
        assert line["step/seconds"] > 0 and line["host/rss_bytes_max"] > 0
        if line["stage"] == "reinforce":
            assert line["sample/seconds_max"] >= line["sample/seconds_mean"] > 0
            if "evaluate/seconds" not in line:  # which samples, too
                assert line["rollout/seconds_max"] >= line["sample/seconds_max"]


@pytest.mark.ranks
def test_two_processes_train_as_one(finished: Path, tmp_path: Path) -> None:
    tiny_config(tmp_path)
    run_on_two(tmp_path / "tiny.toml", "--profile")
    both = timeless(tmp_path / "tiny" / "metrics.jsonl")
    alone = timeless(finished / "metrics.jsonl")
    assert [(m["stage"], m["step"]) for m in both] == [(m["stage"], m["step"]) for m in alone]
    for a, b in zip(both, alone, strict=True):
        if a["stage"] == "supervised":
            assert a["update/loss"] == pytest.approx(b["update/loss"], rel=1e-4)
            assert a["update/grad_norm"] == pytest.approx(b["update/grad_norm"], rel=1e-3)
    # The first RL step samples from weights that agree to rounding: the same tokens, the same loss.
    first = [next(m for m in run if m["stage"] == "reinforce") for run in (both, alone)]
    for name in ("rollout/mean_response_tokens", "reward/total", "critic/loss"):
        assert first[0][name] == pytest.approx(first[1][name], rel=1e-3), name
    assert_trace(tmp_path / "tiny", num_ranks=2)
    assert_ranks_are_compared(tmp_path / "tiny")
    restarts = [folder / RESTARTS for folder in (tmp_path / "tiny", finished)]
    assert restarts[0].read_bytes() == restarts[1].read_bytes()
