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
    given = [plan.name for plan in plan_stages(config) if plan.name != "curate"]
    assert given == names[len(names) - len(given) :]
    if config.data.format == "trials" or "srl" in config.stages:
        assert names[0] == "supervised" and small.data.source == "chains"
        assert (small.supervised.step_share is not None) is ("srl" in config.stages)
    else:
        made = names[1:] if names[0] == "curate" else names
        assert made[:2] in (["synthesize", "supervised"], ["synthesize"], [])
        assert ("curate" in names) is ("curate" in config.stages)
    assert small.model.path is None and small.parallel.tensor == 1
    assert small.reinforce.recipe == config.reinforce.recipe
    assert small.reward == config.reward and small.srl.granularity == config.srl.granularity


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


STEPS = ["--stages", '["srl", "reinforce"]', "--reinforce.recipe", "grpo"]


def test_a_dry_run_learns_from_steps() -> None:
    config = load_config("configs/srl/quickstart.toml", STEPS)
    entries = {entry["stage"]: entry for entry in dry_run(config)["stages"]}
    assert list(entries) == ["supervised", "srl", "reinforce"]
    assert entries["srl"]["num_validation"] == 8 and entries["srl"]["num_step_problems"] > 16
    assert all(entry["num_problems"] == 8 for entry in entries.values())


def test_steps_are_imitated_without_the_stage_that_asks_for_them(tmp_path: Path) -> None:
    options = ["--stages", '["supervised", "reinforce"]', "--supervised.step_share", "0.0"]
    small = shrunk(load_config("configs/srl/quickstart.toml", options), str(tmp_path))
    assert small.stages == ("supervised", "reinforce") and small.data.source == "chains"
    assert small.supervised.step_share == 0.5 and small.data.format == "plain"


@pytest.mark.parametrize("name", ["coat", "plain", "steps", "trials"])
def test_steps_of_any_expert_become_those_of_the_domains(name: str, tmp_path: Path) -> None:
    options = [*STEPS, "--data.format", name, "--data.source", "owner/name", "--data.template"]
    options += ["chat", "--tokenizer.kind", "model", "--model.path", "owner/model"]
    options += ["--srl.expert", "simplescaling/s1K-1.1", "--srl.mapping", "s1k_1_1"]
    options += ["--srl.parser", "rewrite", "--srl.rewriter.model", "m", "--srl.system", "hello"]
    options += ["--srl.template", "chat", "--srl.max_sampling_rounds", "9"]
    options += ["--srl.problems_per_step", "512", "--srl.num_solutions", "5000"]
    small = shrunk(load_config("configs/gsm8k.toml", options), str(tmp_path))
    kept = name if name in ("trials", "steps") else "plain"
    assert (small.data.source, small.data.levels, small.data.format) == ("chains", (4,), kept)
    assert small.stages == ("supervised", "srl", "reinforce") and not small.restarts_enabled
    srl = small.srl
    assert (srl.expert, srl.parser, srl.template, srl.system) == (None, "numbered", None, None)
    assert (srl.num_steps, srl.problems_per_step, srl.samples_per_problem) == (2, 4, 4)
    assert (srl.num_validation, srl.max_sampling_rounds, srl.rewriter.model) == (8, 2, None)
    assert (small.supervised.step_share, small.supervised.source) == (0.5, None)


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
