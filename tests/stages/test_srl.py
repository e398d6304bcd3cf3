# SPDX-License-Identifier: Apache-2.0
"""Format tuning, steps, answers: one run of the three stages, small; what it leaves and records,
and that neither a kill nor a second process changes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satori_fast.config import Config, ConfigError, load_config
from satori_fast.data.agent_steps import load_agent_steps
from satori_fast.data.chains import parse_chain
from satori_fast.data.formats.steps import PAPER
from satori_fast.data.prompts import build_trajectory
from satori_fast.evaluation.repairs import expert_trajectories
from satori_fast.profiling.metrics import read_metrics
from satori_fast.rewards.terms import score
from satori_fast.stages import run_stages
from satori_fast.stages.alarms import TrainingStopped
from satori_fast.stages.evaluate import evaluate_model
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.rewards import build_step_rewards
from satori_fast.stages.run import build_run
from satori_fast.stages.srl import validation_metrics
from satori_fast.stages.step_data import load_step_data
from satori_fast.stages.step_loop import StepLoop
from tests.stages.test_run import timeless
from tests.stages.two_processes import run_on_two

TINY = """
schema_version = 1
name = "tiny"
stages = ["supervised", "srl", "reinforce"]
[model]
hidden_size = 32
num_layers = 2
intermediate_size = 64
num_attention_heads = 2
num_key_value_heads = 1
[tokenizer]
kind = "words"
[data]
source = "chains"
levels = [4]
num_train = 400
template = "plain"
format = "plain"
max_prompt_tokens = 64
[packing]
max_tokens_per_microbatch = 2048
[rollout]
max_seqlen = 128
max_new_tokens = 48
max_slots = 32
[reward]
num_workers = 0
right = 1.0
wrong = 0.0
reflection_bonus = 0.0
[supervised]
num_demonstrations = 240
step_share = 0.5
num_epochs = 24.0
batch_size = 16
checkpoint_every = 0
optimizer = { learning_rate = 1e-2 }
[srl]
num_solutions = 30
last_step = "ask"
granularity = "words"
num_steps = 5
problems_per_step = 4
samples_per_problem = 4
num_minibatches = 1
max_sampling_rounds = 2
checkpoint_every = 4
evaluate_every = 1
export_every = 1
keep = "best"
num_validation = 12
optimizer = { learning_rate = 1e-3 }
[reinforce]
recipe = "grpo"
num_steps = 2
problems_per_step = 4
samples_per_problem = 4
num_minibatches = 1
max_sampling_rounds = 2
checkpoint_every = 1
evaluate_every = 1
optimizer = { learning_rate = 1e-3 }
[evaluation]
num_problems = 12
"""
WEIGHTS = "model.safetensors"
FAULTS = [
    "no_monologue",
    "unclosed_monologue",
    "several_monologues",
    "text_before_monologue",
    "broken_solution_tags",
    "no_solution_tags",
    "empty_action",
]


def tiny_config(folder: Path, *overrides: str) -> Config:
    path = folder / "tiny.toml"
    path.write_text(TINY)
    return load_config(path, ["--output_dir", f"'{folder}'", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of all three stages."""
    folder = tmp_path_factory.mktemp("srl")
    run_stages(tiny_config(folder))
    return folder / "tiny"


def from_tuned(finished: Path, *options: str) -> tuple[str, ...]:
    """The stage srl alone, from the model that knows the format."""
    model = f"'{finished / 'models' / 'supervised'}'"
    return ("--stages", "['srl']", "--model.path", model, *options)


def lines_of(folder: Path, stage: str = "srl") -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["stage"] == stage]


def entry_of(folder: Path, stage: str = "srl") -> dict[str, Any]:
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    return next(entry for entry in stages if entry["stage"] == stage)


def weights(folder: Path, name: str) -> bytes:
    return (folder / "models" / name / WEIGHTS).read_bytes()


# --- what is recorded ----------------------------------------------------------------------------


def test_one_config_runs_format_steps_and_answers(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert [entry["stage"] for entry in summary["stages"]] == ["supervised", "srl", "reinforce"]
    assert all(entry["num_problems"] == 12 for entry in summary["stages"])
    started = [weights(finished, name) for name in ("initial", "supervised", "srl")]
    assert len(set(started)) == 3
    entry = entry_of(finished)
    # Thirty solutions of four operations and an answer.
    assert (entry["num_solutions"], entry["num_step_problems"]) == (30, 150)
    assert entry["num_validation"] == 12


def test_metrics_of_steps_are_there_and_in_range(finished: Path) -> None:
    lines = lines_of(finished)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    shares = ["rollout/exact", "rollout/fault", "rollout/discard_rate", "validation/exact"]
    shares += ["validation/fault", *(f"rollout/fault/{fault}" for fault in FAULTS)]
    for line in lines:
        assert all(0 <= line[name] <= 1 for name in shares)
        assert -1 <= line["reward/similarity"] == line["reward/total"] <= 1
        assert -1 <= line["validation/similarity"] <= 1
        assert line["rollout/fault"] == pytest.approx(
            sum(line[f"rollout/fault/{fault}"] for fault in FAULTS)
        )
        rounds, sampled = line["rollout/num_rounds"], line["rollout/groups_sampled"]
        assert rounds in (1, 2) and sampled == 4 * rounds
        assert line["rollout/discard_rate"] == line["rollout/groups_uniform"] / sampled
        kept = sampled - line["rollout/groups_uniform"]
        assert rounds == 2 or kept >= 4
        if kept:
            assert 4 * line["rollout/kept_by_format"] in (0, 1, 2, 3, 4) or kept < 4
        else:
            assert "rollout/kept_by_format" not in line
    # A model that knows the format half: some steps are the expert's, some are none.
    assert any(line["rollout/exact"] > 0 for line in lines)
    assert any(line["rollout/fault"] > 0 for line in lines)


def test_nothing_says_that_steps_are_right_before_whole_problems_are_asked(finished: Path) -> None:
    *before, last = lines_of(finished)
    for line in before:
        assert not [key for key in line if "accuracy" in key or "right" in key or "wrong" in key]
    # Only the evaluation of whole problems after the last step has one.
    assert [key for key in last if "accuracy" in key] == ["eval/accuracy"]
    assert all("rollout/accuracy" in line for line in lines_of(finished, "reinforce"))
    samples = [s for s in read_metrics(finished / "samples.jsonl") if s["stage"] == "srl"]
    steps = [sample for sample in samples if sample["target"] is not None]
    assert steps and all(sample["correct"] is None for sample in steps)
    whole = [sample for sample in samples if sample["target"] is None]
    assert whole and all(sample["step"] == 4 for sample in whole)
    assert all(sample["correct"] in (True, False) for sample in whole)


def test_steps_of_heldout_problems_are_validated_on(finished: Path) -> None:
    rows = {
        name: read_metrics(finished / "steps" / f"{name}.jsonl") for name in ("train", "heldout")
    }
    assert not any(parse_chain(row["question"]).heldout for row in rows["train"])
    assert all(parse_chain(row["question"]).heldout for row in rows["heldout"])
    assert len(rows["heldout"]) == 12 == len({row["problem_id"] for row in rows["heldout"]})


def test_validation_means_are_those_of_its_responses(finished: Path) -> None:
    """Two exact steps, one fault, one step of three right words of five against five."""
    config = tiny_config(finished.parent, "--name", "other")
    with build_run(config) as run:
        context = run.context(plan_stages(run.config)[1])
        problems = load_step_data(context, run.folder).validation[:4]
        renderer = run.renderer
        targets = [p.prefix.target for p in problems if p.prefix and p.prefix.target]
        texts = [f"<think> swap </think> {target}" for target in targets[:2]]
        texts += [targets[2], f"<think> swap </think> {targets[3].split()[0]}"]
        answered = score(
            [
                build_trajectory(
                    problem,
                    np.asarray([*renderer.encode(text), renderer.eos_id]),
                    renderer=renderer,
                    group_id=number,
                    finish="stop",
                )
                for number, (problem, text) in enumerate(zip(problems, texts, strict=True))
            ],
            build_step_rewards(config.srl, renderer),
        )
        metrics = validation_metrics(answered, renderer)
    partial = 2 / (1 + len(targets[3].split()))
    assert metrics["validation/similarity"] == pytest.approx((1 + 1 - 1 + partial) / 4)
    assert metrics["validation/exact"] == 0.5
    assert metrics["validation/fault"] == metrics["validation/fault/no_monologue"] == 0.25


# --- the best model ------------------------------------------------------------------------------


def assert_best_is_left(folder: Path, stage: str, values: Mapping[int, float], last: int) -> None:
    """The stage's model is the export after the step with the best value, the earliest one."""
    best = max(values, key=lambda step: (values[step], -step))
    entry = entry_of(folder, stage)
    assert (entry["best_step"], entry["best_value"]) == (best, values[best])
    assert weights(folder, stage) == weights(folder, f"{stage}-best")
    if best < last:
        assert weights(folder, stage) == weights(folder, f"{stage}-step-{best + 1}")
    for step in set(values) - {last}:
        if values[step] != values[best]:  # so it has other weights
            assert weights(folder, stage) != weights(folder, f"{stage}-step-{step + 1}")


def test_the_best_steps_weights_are_left(finished: Path) -> None:
    lines = lines_of(finished)
    values = {line["step"]: line["validation/similarity"] for line in lines}
    assert len(set(values.values())) > 1
    assert_best_is_left(finished, "srl", values, last=4)
    # The next stage goes on with them.
    policy = json.loads((finished / "progress.json").read_text())["models"]["policy"]
    assert policy == "models/reinforce"


def test_what_is_said_of_a_stage_is_said_of_the_weights_that_it_leaves(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that ruins the model: the first step is the best, and the summary its."""
    options = ("--srl.optimizer.learning_rate", "0.1", "--srl.num_steps", "3")
    run_stages(tiny_config(tmp_path, *from_tuned(finished, *options)))
    folder = tmp_path / "tiny"
    entry = entry_of(folder)
    values = {line["step"]: line["validation/similarity"] for line in lines_of(folder)}
    assert_best_is_left(folder, "srl", values, last=2)
    assert entry["best_step"] < 2
    capsys.readouterr()
    model = ("--model.path", f"'{folder / 'models' / 'srl'}'", "--name", "other")
    evaluate_model(tiny_config(tmp_path, "--stages", "['srl']", *model), as_json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["validation/similarity"] == entry["best_value"]
    for name in ("accuracy", "truncated", "mean_response_tokens"):
        assert told[f"eval/{name}"] == entry[name], name


def test_a_stage_may_keep_its_last_weights(finished: Path, tmp_path: Path) -> None:
    options = ("--srl.keep", "last", "--srl.evaluate_every", "0")
    run_stages(tiny_config(tmp_path, *from_tuned(finished, *options)))
    folder = tmp_path / "tiny"
    assert not (folder / "models" / "srl-best").exists() and "best_step" not in entry_of(folder)
    validated = [line["step"] for line in lines_of(folder) if "validation/similarity" in line]
    assert validated == [4]
    # The same steps were taken: what is kept changes nothing before.
    for step in range(1, 5):
        name = f"srl-step-{step}"
        assert weights(folder, name) == weights(finished, name)


# --- resuming ------------------------------------------------------------------------------------


class Killed(BaseException):
    """What ends a run where it stands."""


def run_until(
    config: Config, monkeypatch: pytest.MonkeyPatch, *, stage: str, step: int, resume: bool = False
) -> None:
    """Run until a step has done all but be recorded and checkpointed."""
    finish_step = StepLoop.finish_step

    def finish(loop: StepLoop, *arguments: Any, **named: Any) -> None:
        if (loop.stage, loop.done.step) == (stage, step):
            raise Killed
        finish_step(loop, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(StepLoop, "finish_step", finish)
        with pytest.raises(Killed):
            run_stages(config, resume=resume)


def assert_same_run(folder: Path, whole: Path, *models: str) -> None:
    assert timeless(folder / "metrics.jsonl") == timeless(whole / "metrics.jsonl")
    for name in ("samples.jsonl", "analysis.json", "steps/train.jsonl", "steps/heldout.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    for name in models:
        assert weights(folder, name) == weights(whole, name), name


def test_a_run_killed_between_steps_resumes_to_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first step of srl, after its checkpoint, and in the middle of the next stage."""
    config = tiny_config(tmp_path)
    run_until(config, monkeypatch, stage="srl", step=0)
    run_until(config, monkeypatch, stage="srl", step=4, resume=True)
    run_until(config, monkeypatch, stage="reinforce", step=1, resume=True)
    run_stages(config, resume=True)
    assert_same_run(tmp_path / "tiny", finished, "supervised", "srl", "srl-best", "reinforce")
    told, expected = (
        [entry_of(folder, stage) for stage in ("srl", "reinforce")]
        for folder in (tmp_path / "tiny", finished)
    )
    for mine, other in zip(told, expected, strict=True):
        measured = {"wall_s", "seconds", "tokens_per_s"}
        assert {k: v for k, v in mine.items() if k not in measured} == {
            k: v for k, v in other.items() if k not in measured
        }


@pytest.mark.parametrize("killed_at", range(1, 4))
def test_a_kill_between_the_best_model_and_its_checkpoint_changes_nothing(
    killed_at: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best model of a step that no checkpoint knows lies in the folder already."""
    options = ("--srl.checkpoint_every", "0", "--srl.optimizer.learning_rate", "0.02")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    run_stages(tiny_config(whole, *from_tuned(finished, *options)))
    config = tiny_config(cut, *from_tuned(finished, *options))
    run_until(config, monkeypatch, stage="srl", step=killed_at)
    assert (cut / "tiny" / "models" / "srl-best").exists()
    run_stages(config, resume=True)
    assert_same_run(cut / "tiny", whole / "tiny", "srl", "srl-best")


def test_settings_of_srl_stay_once_it_has_begun(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = from_tuned(finished, "--srl.checkpoint_every", "1")
    run_until(tiny_config(tmp_path, *options), monkeypatch, stage="srl", step=2)
    for key, value in (("granularity", "characters"), ("last_step", "skip"), ("keep", "last")):
        with pytest.raises(ConfigError, match=rf"srl\.{key}: .*; srl went by it"):
            run_stages(tiny_config(tmp_path, *options, f"--srl.{key}", value), resume=True)
    run_stages(tiny_config(tmp_path, *options, "--srl.max_uninformative_steps", "9"), resume=True)
    assert len(lines_of(tmp_path / "tiny")) == 5


# --- a batch that never fills --------------------------------------------------------------------


def test_rewards_that_never_differ_end_the_run_after_the_bound(
    finished: Path, tmp_path: Path
) -> None:
    """A fresh model writes no step: every response costs -1."""
    options = ("--stages", "['srl']", "--srl.max_uninformative_steps", "3")
    with pytest.raises(TrainingStopped) as caught:
        run_stages(tiny_config(tmp_path, *options))
    assert str(caught.value).startswith(
        "srl step 2: nothing to learn from in 3 steps in a row (srl.max_uninformative_steps): no "
        "group of 2 rounds of sampling has rewards with a standard deviation above "
        "srl.min_group_std = 0.01, all rewards are -1; likely causes: "
    )
    assert "\n" not in str(caught.value)
    assert [line["step"] for line in lines_of(tmp_path / "tiny")] == [0, 1]
    # RLVR has verdicts, and its own section; no whole problem is solved.
    options = ("--stages", "['reinforce']", "--reinforce.max_uninformative_steps", "1")
    options += ("--name", "rlvr", "--data.template", "plain")
    with pytest.raises(
        TrainingStopped, match=r"min_group_std = 1e-06, all .* are 0; \d of 32 answers have a "
    ):
        run_stages(tiny_config(tmp_path, *options))


# --- processes -----------------------------------------------------------------------------------


@pytest.mark.ranks
def test_two_processes_give_the_result_of_one(finished: Path, tmp_path: Path) -> None:
    options = from_tuned(finished, "--srl.num_steps", "3")
    both, alone = tmp_path / "both", tmp_path / "alone"
    for folder in (both, alone):
        folder.mkdir()
    run_stages(tiny_config(alone, *options))
    tiny_config(both)
    run_on_two(both / "tiny.toml", *options)
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (both / "tiny" / "steps" / name).read_bytes() == (
            alone / "tiny" / "steps" / name
        ).read_bytes()
    found, expected = (timeless(folder / "tiny/metrics.jsonl") for folder in (both, alone))
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [0, 1, 2]
    # What was sampled, scored and kept is the same; log-probs agree to rounding.
    same = {k for k in expected[0] if k.startswith(("reward/", "rollout/")) and "logprob" not in k}
    for name in same:
        assert found[0][name] == pytest.approx(expected[0][name], rel=1e-6), name
    assert found[0]["update/grad_norm"] == pytest.approx(expected[0]["update/grad_norm"], rel=1e-3)
    for name in (key for key in expected[0] if key.startswith("validation/")):
        assert found[0][name] == pytest.approx(expected[0][name], abs=0.05), name
    values = {line["step"]: line["validation/similarity"] for line in found}
    assert_best_is_left(both / "tiny", "srl", values, last=2)


# -- software agents --------------------------------------------------------------------------

AGENTS = """
schema_version = 1
name = "agents"
stages = ["supervised", "srl"]
[model]
hidden_size = 64
num_layers = 2
intermediate_size = 128
num_attention_heads = 4
num_key_value_heads = 2
[tokenizer]
kind = "bpe"
vocab_size = 700
[data]
source = "SOURCE"
mapping = "coat"
template = "plain"
format = "plain"
heldout_fraction = 0.3
max_prompt_tokens = 900
[packing]
max_tokens_per_microbatch = 4096
[rollout]
max_seqlen = 1000
max_new_tokens = 48
max_slots = 32
[reward]
num_workers = 0
reflection_bonus = 0.0
[supervised]
source = "SOURCE"
mapping = "coat"
num_epochs = 30.0
batch_size = 4
optimizer = { learning_rate = 4e-3, schedule = "cosine" }
[srl]
expert = "EXPERT"
parser = "agent"
num_steps = 3
problems_per_step = 8
samples_per_problem = 4
num_minibatches = 1
num_validation = 8
evaluate_every = 1
optimizer = { learning_rate = 1e-4 }
[evaluation]
num_problems = 4
"""


@pytest.mark.slow
def test_a_tiny_model_learns_from_the_actions_of_a_scripted_agent(tmp_path: Path) -> None:
    """The small repositories, repaired by a script whose patches were judged: its actions are
    instances, and a model that imitated them is reinforced on them."""
    rows = expert_trajectories("ticks")
    assert all(row["resolved"] for row in rows)
    expert = tmp_path / "expert.jsonl"
    rows = [*rows, rows[0] | {"instance_id": "failed", "resolved": False}]
    expert.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems, _ = load_agent_steps(expert)
    demonstrations = [
        {
            "question": PAPER.turn(problem.question, problem.prefix.text, None),
            "answer": "1",
            "response": f"<think> next </think>\n{problem.prefix.target}",
        }
        for problem in problems
        if problem.prefix is not None
    ]
    source = tmp_path / "demonstrations.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in demonstrations))
    text = AGENTS.replace("SOURCE", str(source)).replace("EXPERT", str(expert))
    path = tmp_path / "agents.toml"
    path.write_text(text)
    run_stages(load_config(path, ["--output_dir", f"'{tmp_path}'"]))
    steps = [
        line
        for line in read_metrics(tmp_path / "agents" / "metrics.jsonl")
        if line["stage"] == "srl"
    ]
    assert len(steps) == 3
    for line in steps:
        assert line["rollout/fault"] < 0.5 and line["rollout/kept"] > 0
        assert line["reward/similarity"] > 0 and line["update/grad_norm"] > 0
        assert "rollout/accuracy" not in line
    counted = json.loads((tmp_path / "agents" / "steps.json").read_text())
    assert counted["num_used"] == 10 and counted["num_validation"] == 8
    assert counted["num_solutions"] == 11 and counted["discarded_not_resolved"] == 1
    assert counted["num_actions"] >= counted["num_step_problems"] + 8
