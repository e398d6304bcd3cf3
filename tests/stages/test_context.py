# SPDX-License-Identifier: Apache-2.0
"""What a stage starts from: its settings as sampling and packing, and another tokenizer's data."""

from __future__ import annotations

from pathlib import Path

from satori_fast.data.problem_file import problem_to_row
from satori_fast.data.tokenizer import load_tokenizer
from satori_fast.stages.context import Context
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.run import Run, build_run
from satori_fast.stages.run_folder import CURATED
from satori_fast.storage import write_sealed_records
from tests.stages.test_run import tiny_config


def context_of(run: Run) -> Context:
    return run.context(plan_stages(run.config)[-1])


def test_sampling_and_packing_are_those_of_the_config(tmp_path: Path) -> None:
    options = ("--rollout.temperature", "0.7", "--rollout.top_k", "5", "--rollout.top_p", "0.9")
    with build_run(tiny_config(tmp_path, *options)) as run:
        context = context_of(run)
        sampling = context.sampling(num_samples=3, seed=11)
        assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 5, 0.9)
        assert (sampling.max_new_tokens, sampling.num_samples, sampling.seed) == (24, 3, 11)
        packing = context.packing(2, seed=5)
        assert (packing.max_tokens_per_microbatch, packing.max_seqlen) == (512, 128)
        assert (packing.num_minibatches, packing.seed) == (2, 5)
        # weighting = "fixed" divides by the response limit, unless a length is set.
        assert packing.fixed_length == 24
    fixed = ("--name", "fixed", "--reinforce.recipe", "grpo_no_std")
    with build_run(tiny_config(tmp_path, *fixed, "--reinforce.fixed_length", "17")) as run:
        assert context_of(run).packing().fixed_length == 17


def test_a_round_changes_the_settings_of_its_stage_alone(tmp_path: Path) -> None:
    rounds = "[{ temperature = 1.2, num_steps = 9 }]"
    options = ("--iterate.rounds", rounds)
    stages = '["synthesize", "supervised", "reinforce", "iterate"]'
    with build_run(tiny_config(tmp_path, "--stages", stages, *options)) as run:
        contexts = {plan.name: run.context(plan) for plan in plan_stages(run.config)}
    first, second = contexts["reinforce"], contexts["reinforce_2"]
    assert (first.sampling().temperature, second.sampling().temperature) == (1.0, 1.2)
    assert (first.config.reinforce.num_steps, second.config.reinforce.num_steps) == (4, 9)
    # Seeds have the names of their stages, and one root.
    assert first.seeds == second.seeds


def test_prompts_and_problems_follow_the_tokenizer(tmp_path: Path) -> None:
    with build_run(tiny_config(tmp_path)) as run:
        context = context_of(run)
        tokenizer = load_tokenizer(run.tokenizer)
        tokenizer.add_tokens(["<new>"])
        tokenizer.save_pretrained(tmp_path / "other")
        other = context.with_tokenizer(tmp_path / "other", folder=run.folder)
        assert len(other.renderer.tokenizer) == len(context.renderer.tokenizer) + 1
        assert other.models["tokenizer"] == tmp_path / "other"
        assert other.models["policy"] == context.models["policy"] == context.policy_folder
        assert list(other.problems) == list(context.problems)
        assert other.model_folders.tokenizer_folder == tmp_path / "other"
        assert context.models["tokenizer"] == run.tokenizer  # frozen: nothing changed here


def test_problems_are_those_that_curation_kept_under_any_tokenizer(tmp_path: Path) -> None:
    stages = ("--stages", '["curate", "synthesize", "supervised"]')
    with build_run(tiny_config(tmp_path, *stages)) as run:
        first, second, _ = plan_stages(run.config)
        given = list(run.context(second).problems)
        path = run.folder.path / CURATED
        write_sealed_records(path, map(problem_to_row, given[5:9]))
        assert list(run.context(second).problems) == given  # not yet known to be whole
        run.folder.keep(path)
        context = run.context(second)
        assert list(context.problems) == given[5:9] and context.heldout == run.heldout
        other = context.with_tokenizer(run.tokenizer, folder=run.folder)
        assert list(other.problems) == given[5:9]
        # Curation itself starts from all of them, as often as it is begun.
        assert list(run.context(first).problems) == given


def test_the_engine_serves_the_policy_under_its_version(tmp_path: Path) -> None:
    with build_run(tiny_config(tmp_path)) as run:
        context = context_of(run)
        policy = context.model_folders.policy(context.policy_folder)
        engine = context.engine(policy, version=3)
        assert engine.policy_version == 3 and engine.max_seqlen == 128
