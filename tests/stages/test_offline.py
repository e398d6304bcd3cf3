# SPDX-License-Identifier: Apache-2.0
"""The stage offline on a tiny model: its numbers, what it refuses, and that resuming changes
nothing. Most rollouts are written by hand, with the log-probs that the model gives them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satori_fast.backbone.step import Learner, score
from satori_fast.config import Config, ConfigError, load_config
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.data.prompts import build_trajectory
from satori_fast.experience.stored import write_rollouts
from satori_fast.profiling.metrics import read_metrics
from satori_fast.rollout.weight_sync import weights_fingerprint
from satori_fast.stages import run_stages
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.mismatch import MismatchError
from satori_fast.stages.offline import offline_recipe
from satori_fast.stages.run import Run, build_run
from satori_fast.types import StoredRollouts, Trajectory
from tests.stages.test_run import take_back, timeless
from tests.stages.two_processes import run_on_two

TINY = """
schema_version = 1
name = "tiny"
stages = ["offline"]
[model]
hidden_size = 32
num_layers = 2
intermediate_size = 64
num_attention_heads = 2
num_key_value_heads = 1
[tokenizer]
kind = "words"
[data]
format = "trials"
levels = [1]
num_train = 12
template = "plain"
max_prompt_tokens = 90
[packing]
max_tokens_per_microbatch = 512
[rollout]
max_seqlen = 128
max_new_tokens = 24
max_slots = 16
temperature = 0.8
[reward]
num_workers = 0
[offline]
batch_size = 8
num_epochs = 2.0
baseline_min_count = 2
checkpoint_every = 3
optimizer = { learning_rate = 1e-2, warmup_fraction = 0.0 }
[evaluation]
num_problems = 4
"""
WEIGHTS = Path("tiny/models/offline/model.safetensors")
# Actions of the eight responses to each problem, by turns right and wrong.
RIGHT, WRONG = "\\boxed{{ {right} }}", "\\boxed{{ {wrong} }}"
RESPONSES = [
    f"{WRONG} wait wrong again {RIGHT} wait right",
    f"{RIGHT} wait right again {RIGHT} wait right",
    f"{WRONG} wait right",
    f"{WRONG} wait wrong again {WRONG} wait right",
    f"{RIGHT} wait wrong again {RIGHT} wait right",
    f"{WRONG} wait wait wrong",
    f"{RIGHT} wait right",
    f"{WRONG} wait wrong again {WRONG} wait wrong",
]


def tiny_config(folder: Path, *overrides: str) -> Config:
    path = folder / "tiny.toml"
    path.write_text(TINY)
    return load_config(path, ["--output_dir", f"'{folder}'", *overrides])


def with_logprobs(
    policy: Learner, trajectories: Sequence[Trajectory], *, temperature: float
) -> list[Trajectory]:
    """The trajectories with the log-probs that the policy gives them."""
    made: list[Trajectory] = []
    for trajectory in trajectories:
        (batch,) = pack([trajectory], None, PackingSpec(512, 1), "token")
        (logprobs,) = score(policy, [batch], temperature=temperature)
        made.append(replace(trajectory, logprobs=logprobs[batch.loss_mask].numpy()))
    return made


def rollouts_of(run: Run) -> StoredRollouts:
    """`RESPONSES` to every problem of a run; every third problem has right ones only."""
    context = run.context(plan_stages(run.config)[0])
    policy = context.model_folders.policy(context.policy_folder)
    groups: list[tuple[Trajectory, ...]] = []
    for number, problem in enumerate(run.problems):
        assert problem.answer is not None
        names = {"right": problem.answer, "wrong": f"{problem.answer} {problem.answer}"}
        texts = RESPONSES[6:7] * 8 if number % 3 == 2 else RESPONSES
        siblings = [
            build_trajectory(
                problem,
                np.array([*run.renderer.encode(text.format(**names)), run.renderer.eos_id]),
                renderer=run.renderer,
                group_id=number,
                finish="stop",
            )
            for text in texts
        ]
        groups.append(tuple(with_logprobs(policy, siblings, temperature=0.8)))
    return StoredRollouts(
        tuple(groups),
        0.8,
        run.renderer.format.name,
        fingerprint=weights_fingerprint(policy.served_weights()),
        tokenizer=run.renderer.fingerprint,
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StoredRollouts]:
    """A file of rollouts, and what is in it."""
    folder = tmp_path_factory.mktemp("stored")
    with build_run(tiny_config(folder)) as run:
        rollouts = rollouts_of(run)
    write_rollouts(folder / "rollouts.jsonl", rollouts)
    return folder / "rollouts.jsonl", rollouts


def from_file(path: Path, *options: str) -> tuple[str, ...]:
    return ("--offline.rollouts", f"'{path}'", *options)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "tiny" / "metrics.jsonl")


@pytest.mark.parametrize("level", ["process", "outcome"])
def test_a_set_is_learnt_from(
    level: str, stored: tuple[Path, StoredRollouts], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, *from_file(stored[0], "--offline.level", level))
    (entry,) = run_stages(config)["stages"]
    # Of 12 problems 8 are mixed, 4 of 8 responses right; one has two verifications in a row.
    assert (entry["num_problems_sampled"], entry["num_problems_kept"]) == (12, 8)
    assert entry["num_dropped_too_easy"] == 32 and entry["num_dropped_not_alternating"] == 8
    assert entry["num_dropped_unbalanced"] == 8
    assert (entry["num_responses_kept"], entry["num_responses_right"]) == (48, 24)
    assert "solutions" not in entry["seconds"]  # nothing is sampled but for the evaluation
    lines = lines_of(tmp_path)
    assert len(lines) == 12  # 48 responses twice, 8 in a step
    assert all(line["update/grad_norm"] > 0 for line in lines)
    assert not any("rollout/logprob_abs_diff" in line for line in lines)
    # The policy is its own reference until it has moved.
    assert abs(lines[0]["update/advantage_kl"]) < 1e-4
    assert abs(lines[0]["update/ratio_max"] - 1.0) < 1e-4
    assert abs(lines[1]["update/advantage_kl"]) > 1e-2
    assert lines[1]["update/ratio_max"] != pytest.approx(1.0, abs=1e-3)


def test_what_is_rewarded_becomes_likelier(
    stored: tuple[Path, StoredRollouts], tmp_path: Path
) -> None:
    """Right verifications against wrong ones, of the same solution, before and after."""
    options = ("--offline.num_epochs", "4.0", "--offline.optimizer.learning_rate", "3e-3")
    run_stages(tiny_config(tmp_path, *from_file(stored[0], *options)))
    model = ("--model.path", f"'{tmp_path / 'tiny' / 'models' / 'offline'}'", "--name", "after")
    with build_run(tiny_config(tmp_path, *model)) as run:
        context = run.context(plan_stages(run.config)[0])
        policy = context.model_folders.policy(context.policy_folder)
        gains: list[float] = []
        for group in stored[1].groups[:2]:
            now = with_logprobs(policy, group, temperature=0.8)
            gain = [float((a.logprobs - b.logprobs).sum()) for a, b in zip(now, group, strict=True)]
            gains.append(float(np.mean([gain[0], gain[6]]) - np.mean([gain[2], gain[3]])))
    assert min(gains) > 0.5


def test_a_killed_stage_resumes_to_the_same_bits(
    stored: tuple[Path, StoredRollouts], tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = from_file(stored[0], "--offline.checkpoint_every", "7")
    for folder in (whole, cut):
        folder.mkdir()
        run_stages(tiny_config(folder, *options))
    # Of twelve steps: back to the seventh, as a kill after it would have left the folder.
    shutil.rmtree(cut / "tiny" / "checkpoints" / "offline" / "step-12")
    take_back(cut / "tiny", num_finished=0, policy=str(cut / "tiny" / "models" / "initial"))
    run_stages(tiny_config(cut, *options), resume=True)
    assert timeless(cut / "tiny/metrics.jsonl") == timeless(whole / "tiny/metrics.jsonl")
    assert (cut / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


@pytest.mark.ranks
def test_two_processes_take_the_same_steps(
    stored: tuple[Path, StoredRollouts], tmp_path: Path
) -> None:
    options = from_file(stored[0], "--offline.optimizer.learning_rate", "1e-4")
    both, alone = tmp_path / "both", tmp_path / "alone"
    for folder in (both, alone):
        folder.mkdir()
    run_stages(tiny_config(alone, *options))
    tiny_config(both)
    run_on_two(both / "tiny.toml", *options)
    figures = [json.loads((f / "tiny/summary.json").read_text()) for f in (both, alone)]
    for name in ("num_responses_kept", "num_responses_cut", "num_dropped_unbalanced"):
        assert figures[0]["stages"][0][name] == figures[1]["stages"][0][name], name
    pairs = zip(*(timeless(f / "tiny/metrics.jsonl") for f in (both, alone)), strict=True)
    for ours, theirs in pairs:
        assert ours["update/loss"] == pytest.approx(theirs["update/loss"], abs=1e-4)


def test_it_samples_what_it_learns_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After imitation of trials; stopped after the samples, it goes on with them."""
    with build_run(tiny_config(tmp_path, "--name", "problems")) as run:
        texts = zip(run.problems, cycle(RESPONSES[:5]), strict=False)
        rows = [
            {
                "question": p.question,
                "answer": p.answer,
                "response": t.format(right=p.answer, wrong="p"),
            }
            for p, t in [*texts]
        ]
    demonstrations = tmp_path / "demonstrations.jsonl"
    demonstrations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--stages", "['supervised', 'offline']", "--supervised.num_epochs", "40.0")
    options += ("--supervised.source", f"'{demonstrations}'", "--supervised.batch_size", "12")
    options += ("--supervised.optimizer.learning_rate", "5e-3", "--offline.num_samples", "4")
    options += ("--offline.num_problems", "10", "--offline.balance", "false")
    options += ("--offline.min_accuracy", "0.0", "--offline.max_accuracy", "1.0")
    with caplog.at_level(logging.INFO, logger="satori_fast.stages.offline"):
        entry = run_stages(tiny_config(tmp_path, *options))["stages"][-1]
    assert entry["num_problems_sampled"] == 10 and entry["seconds"]["solutions"] > 0
    assert entry["num_responses_kept"] > 0
    (said,) = [r.getMessage() for r in caplog.records if "responses, " in r.getMessage()]
    assert said.startswith(f"offline: {entry['num_responses_kept']:.0f} responses, ")
    samples = tmp_path / "tiny" / "solutions" / "offline.jsonl"
    written = samples.read_bytes()
    weights, metrics = (tmp_path / WEIGHTS).read_bytes(), timeless(tmp_path / "tiny/metrics.jsonl")
    shutil.rmtree(tmp_path / "tiny" / "checkpoints" / "offline")
    take_back(
        tmp_path / "tiny", num_finished=1, policy=str(tmp_path / "tiny" / "models" / "supervised")
    )
    run_stages(tiny_config(tmp_path, *options), resume=True)
    assert samples.read_bytes() == written
    assert (tmp_path / WEIGHTS).read_bytes() == weights
    assert timeless(tmp_path / "tiny/metrics.jsonl") == metrics


def refusal(folder: Path, *options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run_stages(tiny_config(folder, *options))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_rollouts_of_another_model_or_kind_are_refused(
    stored: tuple[Path, StoredRollouts], tmp_path: Path
) -> None:
    path, rollouts = stored
    said = refusal(tmp_path, *from_file(path, "--seed", "5", "--name", "a"))
    assert f"{path}, line 1: a model with fingerprint {rollouts.fingerprint} sampled it" in said
    said = refusal(tmp_path, *from_file(path, "--offline.temperature", "0.7", "--name", "b"))
    assert said.startswith(f"offline.rollouts: {path}, line 1: ") and "temperature 0.8" in said
    said = refusal(tmp_path, *from_file(path, "--data.dialect", "paper", "--name", "c"))
    assert said.startswith(f"offline.rollouts: {path}, line 1: its tokenizer")
    said = refusal(tmp_path, *from_file(tmp_path / "nowhere.jsonl", "--name", "d"))
    assert said.startswith("offline.rollouts: ") and "nowhere.jsonl" in said


def test_logprobs_that_are_not_the_models_stop_the_first_step(
    stored: tuple[Path, StoredRollouts], tmp_path: Path
) -> None:
    groups = tuple(
        tuple(replace(t, logprobs=t.logprobs - 1.0) for t in siblings)
        for siblings in stored[1].groups
    )
    path = tmp_path / "moved.jsonl"
    write_rollouts(path, replace(stored[1], groups=groups))
    with pytest.raises(MismatchError, match=r"differ by 1 nats per token"):
        run_stages(tiny_config(tmp_path, *from_file(path)))


def test_no_problem_left_is_one_line_with_all_accuracies(
    stored: tuple[Path, StoredRollouts], tmp_path: Path
) -> None:
    options = ("--offline.min_accuracy", "0.6", "--offline.max_accuracy", "0.9")
    said = refusal(tmp_path, *from_file(stored[0], *options))
    assert "offline.min_accuracy = 0.6 and max_accuracy = 0.9" in said
    assert "share of right responses: 8 of 1/2, 4 of 1;" in said
    assert said.endswith("left out: 64 too_hard, 32 too_easy")


@pytest.mark.parametrize("level", ["process", "outcome"])
def test_the_recipe_is_that_of_the_level_without_a_reference(level: str) -> None:
    config = Config.example().offline.with_set(level=level)
    recipe = offline_recipe(config, temperature=0.8)
    unit = {"process": "segment", "outcome": "sequence"}[level]
    assert (recipe.weighting, recipe.loss.ratio, recipe.loss.advantage_kl_unit) == (unit,) * 3
    assert recipe.needs == frozenset() and recipe.advantage.kl_coefficient == 0.0
    assert (recipe.loss.advantage_kl, recipe.loss.temperature) == (0.1, 0.8)
    assert (recipe.loss.terms.clip_low, recipe.loss.terms.clip_high) == (0.2, 0.2)
    other = config.with_set(clip_high=0.3, ratio="token", ratio_mean=False)
    changed = offline_recipe(other, temperature=0.8).loss
    assert (changed.terms.clip_high, changed.ratio, changed.ratio_mean) == (0.3, "token", False)
