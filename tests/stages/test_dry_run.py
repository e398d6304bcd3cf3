# SPDX-License-Identifier: Apache-2.0
"""Every shipped config tried out small: what is replaced, and that all of its stages run."""

from __future__ import annotations

from pathlib import Path

import pytest

from satori_fast.config import load_config
from satori_fast.stages.dry_run import dry_run, shrunk
from satori_fast.stages.iterate import plan_stages

CONFIGS = sorted(Path("configs").rglob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_config_shrinks_to_a_valid_one(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    small = shrunk(config, str(tmp_path))
    names = [plan.name for plan in plan_stages(small)]
    assert [plan.name for plan in plan_stages(config)] == names[-len(plan_stages(config)) :]
    if config.data.format == "trials":
        assert names[0] == "supervised" and small.data.source == "chains"
    else:
        assert names[:2] in (["synthesize", "supervised"], ["synthesize"])
    assert small.model.path is None and small.parallel.tensor == 1
    assert small.reinforce.recipe == config.reinforce.recipe
    assert small.reward == config.reward


def test_a_dry_run_goes_through_all_stages(tmp_path: Path) -> None:
    config = load_config("configs/quickstart.toml", ["--stages", '["reinforce", "iterate"]'])
    summary = dry_run(config)
    names = [entry["stage"] for entry in summary["stages"]]
    assert names == ["synthesize", "supervised", "reinforce", "distill_2", "reinforce_2"]
    assert all(entry["num_problems"] == 8 for entry in summary["stages"][1:])


def test_a_dry_run_writes_trials(tmp_path: Path) -> None:
    options = ["--stages", '["initialise", "reinforce"]', "--data.format", "trials"]
    options += ["--initialise.verifier.kind", "endpoint", "--initialise.verifier.model", "m"]
    summary = dry_run(load_config("configs/quickstart.toml", options))
    entries = {entry["stage"]: entry for entry in summary["stages"]}
    assert list(entries) == ["supervised", "initialise", "reinforce"]
    assert entries["initialise"]["num_demonstrations"] > 0


def test_a_dry_run_learns_offline() -> None:
    config = load_config(
        "configs/s2r/qwen2.5-math-7b.toml", ["--stages", '["initialise", "offline"]']
    )
    entries = {entry["stage"]: entry for entry in dry_run(config)["stages"]}
    assert list(entries) == ["supervised", "initialise", "offline"]
    assert entries["offline"]["num_responses_kept"] > 0


def test_a_reward_model_from_elsewhere_is_replaced_by_a_tiny_one(tmp_path: Path) -> None:
    options = ["--stages", '["reinforce"]', "--reinforce.num_steps", "1"]
    options += ["--reward.model", "owner/model", "--reward.preference_weight", "1.0"]
    summary = dry_run(load_config("configs/quickstart.toml", options))
    names = [entry["stage"] for entry in summary["stages"]]
    assert names == ["synthesize", "supervised", "preference", "reinforce"]


def test_prompts_and_format_are_those_of_the_scripted_agents(tmp_path: Path) -> None:
    options = ["--stages", '["reinforce"]', "--data.format", "plain", "--data.template", "chat"]
    options += ["--data.system", "hello", "--rollout.stop_tokens", '["<|im_end|>"]']
    options += ["--tokenizer.kind", "model", "--model.path", "owner/model"]
    config = load_config("configs/quickstart.toml", options)
    small = shrunk(config, str(tmp_path))
    assert (small.data.format, small.data.template, small.data.system) == ("coat", "plain", None)
    assert small.rollout.stop_tokens == () and not small.restarts_enabled
