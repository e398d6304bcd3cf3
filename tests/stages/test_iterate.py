# SPDX-License-Identifier: Apache-2.0
"""Rounds become stages: their names, which keys differ in them, and the models they leave."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from satori_fast.config import Config, ConfigError, to_toml
from satori_fast.data.prompts import PLAIN_TEMPLATE
from satori_fast.profiling.metrics import read_metrics
from satori_fast.stages import run_stages
from satori_fast.stages.iterate import plan_stages, reinforcing_plan
from tests.stages.test_run import take_back, timeless, tiny_config

ROUNDS = (
    "[{ num_steps = 3, temperature = 1.2, samples_per_problem = 6, learning_rate = 2e-4 },"
    " { restarts = true }]"
)


def iterating(folder: Path, *overrides: str) -> Config:
    stages = '["synthesize", "supervised", "reinforce", "iterate"]'
    return tiny_config(folder, "--stages", stages, *overrides)


def test_rounds_are_unrolled_in_order(tmp_path: Path) -> None:
    config = iterating(tmp_path, "--iterate.rounds", ROUNDS)
    plans = plan_stages(config)
    assert [(plan.name, plan.kind) for plan in plans] == [
        ("synthesize", "synthesize"),
        ("supervised", "supervised"),
        ("reinforce", "reinforce"),
        ("distill_2", "distill"),
        ("reinforce_2", "reinforce"),
        ("distill_3", "distill"),
        ("reinforce_3", "reinforce"),
    ]


def test_a_round_changes_what_it_sets_and_nothing_else(tmp_path: Path) -> None:
    config = iterating(tmp_path, "--iterate.rounds", ROUNDS, "--distill.num_kept", "7")
    by_name = {plan.name: plan.config for plan in plan_stages(config)}
    second, third = by_name["reinforce_2"], by_name["reinforce_3"]
    assert (second.reinforce.num_steps, second.rollout.temperature) == (3, 1.2)
    assert second.reinforce.samples_per_problem == 6
    assert second.reinforce.optimizer.learning_rate == 2e-4
    assert second.reinforce.critic_optimizer == config.reinforce.critic_optimizer
    assert second.reinforce.restarts.enabled is False and not second.restarts_enabled
    assert third.reinforce.restarts.enabled is True and third.restarts_enabled
    assert third.with_set(reinforce=config.reinforce) == config
    assert by_name["distill_2"].distill.num_kept == 7
    assert by_name["reinforce"] is config


def test_the_first_stage_that_reinforces(tmp_path: Path) -> None:
    steps = ("--data.source", "chains", "--data.levels", "[4]", "--data.format", "plain")
    for stages, name in (
        ("['supervised', 'srl', 'reinforce']", "srl"),
        ("['reinforce', 'srl']", "reinforce"),
        ("['supervised']", "reinforce"),
    ):
        config = tiny_config(tmp_path, *steps, "--stages", stages, "--srl.num_steps", "7")
        plan = reinforcing_plan(config)
        assert plan.name == plan.kind == name
        assert plan.config.reinforce.num_steps == (7 if name == "srl" else 4)
    assert reinforcing_plan(iterating(tmp_path, "--stages", "['iterate']")).name == "reinforce_2"


def test_rounds_survive_the_written_config(tmp_path: Path) -> None:
    from satori_fast.config import load_config

    config = iterating(tmp_path, "--iterate.rounds", ROUNDS)
    (tmp_path / "written.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "written.toml") == config


def test_a_wrong_key_of_a_round_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"iterate\.rounds\.num_step; .* is iterate\.rounds\.num"):
        iterating(tmp_path, "--iterate.rounds", "[{ num_step = 3 }]")
    with pytest.raises(ConfigError, match=r"iterate\.rounds\.0\.num_steps = 0"):
        iterating(tmp_path, "--iterate.rounds", "[{ num_steps = 0 }]")


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any]]:
    """A finished run and its summary."""
    options = ("--iterate.rounds", "[{ num_steps = 2 }]", "--reinforce.num_steps", "1")
    options += ("--distill.num_problems", "40", "--distill.num_epochs", "1.0")
    options += ("--distill.optimizer.learning_rate", "3e-3", "--supervised.num_epochs", "8.0")
    config = iterating(tmp_path_factory.mktemp("rounds"), *options)
    return config, run_stages(config)


@pytest.mark.parametrize("stage", ["supervised", "reinforce", "distill_2", "reinforce_2"])
def test_transformers_generates_the_greedy_text_of_each_stage(
    two_rounds: tuple[Config, dict[str, Any]], stage: str
) -> None:
    """The text that the stage's own engine gave at its end, from the exported folder."""
    config, _ = two_rounds
    run = Path(config.output_dir) / config.name
    model = AutoModelForCausalLM.from_pretrained(run / "models" / stage)
    # AutoTokenizer would split this tokenizer's words the way of Qwen2's own.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run / "models" / stage)
    logged = [s for s in read_metrics(run / "samples.jsonl") if s["stage"] == stage]
    # The evaluation is what a stage logs last.
    for sample in logged[-config.evaluation.num_logged_samples :]:
        prompt = PLAIN_TEMPLATE.format(question=sample["question"])
        turns = [{"role": "user", "content": sample["question"]}]
        assert tokenizer.apply_chat_template(turns, tokenize=False) == prompt
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        whole = model.generate(ids, do_sample=False, max_new_tokens=config.rollout.max_new_tokens)[
            0, ids.shape[1] :
        ]
        text = tokenizer.decode(whole).removesuffix(tokenizer.eos_token)
        logged_text = "".join(segment["text"] for segment in sample["segments"])
        assert "".join(text.split()) == "".join(logged_text.split())
        assert sample["finish"] == ("stop" if whole[-1] == tokenizer.eos_token_id else "length")


def test_a_run_of_two_rounds_resumes_in_the_second(
    two_rounds: tuple[Config, dict[str, Any]],
) -> None:
    config, summary = two_rounds
    entries = {entry["stage"]: entry for entry in summary["stages"]}
    assert list(entries)[-2:] == ["distill_2", "reinforce_2"]
    assert 0 < entries["distill_2"]["teacher_accuracy"] < 1
    assert entries["distill_2"]["num_demonstrations"] <= config.distill.num_kept
    assert entries["distill_2"]["tokens_per_s"]["solutions"] > 0
    run = Path(config.output_dir) / config.name
    before = timeless(run / "metrics.jsonl")
    assert [m["step"] for m in before if m["stage"] == "reinforce_2"] == [0, 1]
    weights = [run / "models" / s / "model.safetensors" for s in ("distill_2", "reinforce_2")]
    trained = [path.read_bytes() for path in weights]
    # As a kill inside the distillation would have left it: sampled, not imitated.
    take_back(run, num_finished=3, policy="models/reinforce")
    for stage in ("distill_2", "reinforce_2"):
        shutil.rmtree(run / "checkpoints" / stage)
    run_stages(config, resume=True)
    assert [path.read_bytes() for path in weights] == trained
    assert timeless(run / "metrics.jsonl") == before
    assert read_metrics(run / "metrics.jsonl")[-1]["stage"] == "reinforce_2"
