# SPDX-License-Identifier: Apache-2.0
"""Reinforcement from every source and by every row: it trains, refills, resumes, and is shared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from satori_fast.algorithms.recipe import RECIPES
from satori_fast.config import ConfigError
from satori_fast.experience.stored import read_rollouts, write_rollouts
from satori_fast.profiling.metrics import read_metrics
from satori_fast.stages import run_stages
from satori_fast.stages.evaluate import evaluate_model
from satori_fast.stages.evaluator import Evaluator, Validation
from satori_fast.stages.run import build_run
from tests.stages.test_run import take_back, timeless, tiny_config
from tests.stages.two_processes import run_on_two

WEIGHTS = Path("tiny/models/reinforce/model.safetensors")
ALONE = ("--stages", "['reinforce']", "--reinforce.critic_init", "policy")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model that knows the format, and its samples with their log-probs."""
    folder = tmp_path_factory.mktemp("tuned")
    options = ("--supervised.num_epochs", "20.0", "--supervised.optimizer.learning_rate", "5e-3")
    options += ("--reinforce.num_steps", "1", "--solutions.keep_logprobs", "true")
    options += ("--solutions.num_samples", "4", "--rollout.temperature", "1.0")
    run_stages(tiny_config(folder, *options))
    return folder / "tiny"


def from_tuned(tuned: Path, *options: str) -> tuple[str, ...]:
    if "trials" in options:  # the model of `tuned` knows COAT's tokens alone
        return (*FRESH, *options)
    return (*ALONE, "--model.path", f"'{tuned / 'models' / 'supervised'}'", *options)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "tiny" / "metrics.jsonl")


REFILL = ("--reinforce.recipe", "grpo", "--reinforce.max_sampling_rounds", "3")
PARTIAL = ("--reinforce.recipe", "grpo_no_std", "--rollout.max_step_tokens", "10")
# A fresh model writes words at random, verdicts and separators among them: every context comes up.
TRIALS = ("--data.format", "trials", "--reward.right", "1.0", "--reward.reflection_bonus", "0.0")
FRESH = ("--stages", "['reinforce']", "--reinforce.restarts.enabled", "false")
PROCESS = (*TRIALS, "--reinforce.recipe", "s2r_process", "--reinforce.baseline_min_count", "2")


def sources(tuned: Path) -> dict[str, tuple[str, ...]]:
    rollouts = f"'{tuned / 'solutions' / 'supervised.jsonl'}'"
    stored = ("--reinforce.source", "stored", "--reinforce.rollouts", rollouts)
    return {
        "refilled": REFILL,
        "partial": PARTIAL,
        "stored": (*stored, "--reinforce.recipe", "rloo", "--reinforce.importance", "truncate"),
        "actions": PROCESS,
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_row_trains(name: str, tuned: Path, tmp_path: Path) -> None:
    options = ("--reinforce.recipe", name, "--reinforce.num_steps", "2")
    actions = RECIPES[name].credit().reads_actions
    start = from_tuned(tuned, *(TRIALS if actions else ()))
    run_stages(tiny_config(tmp_path, *start, *options))
    assert any(line["update/grad_norm"] > 0 for line in lines_of(tmp_path) if "update/loss" in line)
    base = (
        tmp_path / "tiny/models/initial/model.safetensors"
        if actions
        else tuned / "models/supervised/model.safetensors"
    ).read_bytes()
    assert (tmp_path / WEIGHTS).read_bytes() != base


@pytest.mark.parametrize("source", ["refilled", "partial", "stored", "actions"])
def test_every_source_resumes_to_the_same_bits(source: str, tuned: Path, tmp_path: Path) -> None:
    options = from_tuned(tuned, *sources(tuned)[source], "--reinforce.num_steps", "5")
    options += ("--reinforce.checkpoint_every", "3")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        run_stages(tiny_config(folder, *options))
    # Back to the third step, as a kill after the checkpoint would have left it.
    start = tuned / "models" / "supervised"
    if source == "actions":
        start = cut / "tiny" / "models" / "initial"
    take_back(cut / "tiny", num_finished=0, policy=str(start))
    run_stages(tiny_config(cut, *options), resume=True)
    assert timeless(cut / "tiny/metrics.jsonl") == timeless(whole / "tiny/metrics.jsonl")
    assert (cut / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


@pytest.mark.ranks
@pytest.mark.parametrize("source", ["refilled", "partial", "stored", "actions"])
def test_two_processes_take_the_same_first_step(source: str, tuned: Path, tmp_path: Path) -> None:
    options = from_tuned(tuned, *sources(tuned)[source], "--reinforce.num_steps", "2")
    both, alone = tmp_path / "both", tmp_path / "alone"
    for folder in (both, alone):
        folder.mkdir()
    run_stages(tiny_config(alone, *options))
    tiny_config(both)
    run_on_two(both / "tiny.toml", *options)
    first, second = (timeless(folder / "tiny/metrics.jsonl")[0] for folder in (both, alone))
    # What was sampled, graded and kept is the same; log-probs agree to rounding.
    same = {k for k in second if k.startswith(("reward/", "grading/", "rollout/"))}
    for name in same - {k for k in same if "logprob" in k}:
        assert first[name] == pytest.approx(second[name], rel=1e-6), name
    if "update/loss" in second:
        assert first["update/loss"] == pytest.approx(second["update/loss"], abs=1e-5)


def test_the_best_weights_are_left_and_evaluated(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are given, so that the second step is the best; a high learning rate moves weights."""
    given, validate = [0.2, 0.6, 0.6, 0.1], Evaluator.validate

    def validated(self: Evaluator, *arguments: Any, step: int) -> Validation:
        measured = validate(self, *arguments, step=step)
        assert measured.value == measured.metrics["eval/accuracy"]
        return replace(measured, value=given[step])

    monkeypatch.setattr(Evaluator, "validate", validated)
    options = ("--reinforce.keep", "best", "--reinforce.evaluate_every", "1")
    options += ("--reinforce.export_every", "1", "--reinforce.num_steps", "4")
    options += ("--reinforce.optimizer.learning_rate", "6e-3", "--evaluation.num_problems", "60")
    options += ("--reinforce.min_group_std", "-1.0")  # a step without groups would move nothing
    (entry,) = run_stages(tiny_config(tmp_path, *from_tuned(tuned, *REFILL, *options)))["stages"]
    assert (entry["best_step"], entry["best_value"]) == (1, 0.6)
    assert entry["accuracy"] == lines_of(tmp_path)[1]["eval/accuracy"]
    models = tmp_path / "tiny" / "models"
    names = [f"reinforce-step-{number}" for number in (1, 2, 3)]
    first, second, third = ((models / name / WEIGHTS.name).read_bytes() for name in names)
    left = (tmp_path / WEIGHTS).read_bytes()
    assert second == left == (models / "reinforce-best" / WEIGHTS.name).read_bytes()
    assert left not in (first, third)
    # The model, asked again by itself, answers so.
    model = ("--stages", "['reinforce']", "--model.path", f"'{models / 'reinforce'}'")
    model += ("--evaluation.num_problems", "60", "--name", "asked")
    assert evaluate_model(tiny_config(tmp_path, *model)).accuracy == entry["accuracy"]


def test_a_refilled_step_says_what_it_dropped(tuned: Path, tmp_path: Path) -> None:
    run_stages(tiny_config(tmp_path, *from_tuned(tuned, *REFILL)))
    for line in lines_of(tmp_path):
        rounds, sampled = line["rollout/num_rounds"], line["rollout/groups_sampled"]
        assert 1 <= rounds <= 3 and sampled == 4 * rounds
        kept = sampled - line["rollout/groups_uniform"]
        assert rounds == 3 or kept >= 4
        assert line["rollout/groups_surplus"] == max(0, kept - 4)
        assert line["rollout/kept"] == pytest.approx(kept / sampled)


def test_stored_rollouts_sample_nothing(tuned: Path, tmp_path: Path) -> None:
    options = from_tuned(tuned, *sources(tuned)["stored"], "--reinforce.num_steps", "3")
    run_stages(tiny_config(tmp_path, *options))
    for line in lines_of(tmp_path):
        assert "rollout/completion_tokens" not in line or not line["rollout/completion_tokens"]
        assert line["rollout/stale_tokens"] == 1.0
    # Until the first update the policy is the one that sampled them.
    updated = next(line for line in lines_of(tmp_path) if "update/loss" in line)
    assert updated["rollout/logprob_abs_diff"] < 1e-4


def test_stored_rollouts_of_another_kind_are_refused(tuned: Path, tmp_path: Path) -> None:
    options = sources(tuned)["stored"]
    config = tiny_config(tmp_path, *from_tuned(tuned, *options, "--rollout.temperature", "0.7"))
    with pytest.raises(
        ConfigError, match=r"reinforce\.rollouts: .* line 1: .* temperature 1, .* 0\.7"
    ):
        run_stages(config)
    with build_run(tiny_config(tmp_path, "--name", "other")) as run:
        path = tuned / "solutions" / "supervised.jsonl"
        stored = read_rollouts(path, run.renderer, temperature=1.0)
    path = tmp_path / "plain.jsonl"
    write_rollouts(path, replace(stored, format="plain"))
    options = ("--reinforce.source", "stored", "--reinforce.rollouts", f"'{path}'")
    with pytest.raises(ConfigError, match=r"responses of format 'plain', .*: set data.format"):
        run_stages(tiny_config(tmp_path, *from_tuned(tuned, *options, "--name", "third")))
    options = ("--reinforce.source", "stored", "--reinforce.rollouts", "'nowhere.jsonl'")
    with pytest.raises(ConfigError, match=r"reinforce\.rollouts: .*nowhere\.jsonl"):
        run_stages(tiny_config(tmp_path, *from_tuned(tuned, *options, "--name", "fourth")))
