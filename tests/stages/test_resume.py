# SPDX-License-Identifier: Apache-2.0
"""Which settings and files a resumed run may change: those that no begun stage has read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from satori_fast.config import Config, ConfigError, describe, load_config
from satori_fast.stages.resume import (
    EVERY_STAGE,
    READ_BY,
    SOLUTIONS,
    begun_kinds,
    check_inputs,
    check_settings,
    input_digests,
    lengthened,
    read_config,
    readers,
)

STAGES = ["synthesize", "supervised", "preference", "reinforce", "iterate"]


def config_with(folder: Path, *overrides: str) -> Config:
    path = folder / "config.toml"
    path.write_text(f"schema_version = 1\nstages = {STAGES}\n[data]\nnum_train = 9\n")
    return load_config(path, ["--tokenizer.kind", "words", *overrides])


def keys(config: Config) -> set[str]:
    return {key for key, _, _ in describe(config)} | set(type(config).model_fields)


def test_every_key_of_the_table_is_a_key_of_the_config() -> None:
    known = keys(Config.example())
    sections = {key.rpartition(".")[0] for key in known}
    assert set(READ_BY) - known - sections == set()


@pytest.mark.parametrize(
    ("key", "value", "begun"),
    [
        ("reward.model", "'right'", ["synthesize", "supervised"]),
        ("curate.labeller.model", "m", ["synthesize", "supervised"]),
        ("reward.preference_weight", "1.0", ["synthesize", "supervised", "preference"]),
        ("reinforce.recipe", "grpo", ["synthesize", "supervised"]),
        ("reinforce.optimizer.learning_rate", "1e-7", ["supervised", SOLUTIONS]),
        ("preference.margin", "1.0", ["synthesize", "supervised"]),
        ("reward.functions", "[{path='m:f'}]", ["synthesize", "supervised", "preference"]),
        ("reward.function_timeout_s", "60.0", STAGES),
        ("distill.student", "'other'", ["synthesize", "supervised", "reinforce"]),
        ("offline.max_accuracy", "0.9", ["synthesize", "supervised", "reinforce"]),
        ("rollout.temperature", "0.7", ["synthesize", "supervised"]),
        ("rollout.sync_bucket_mib", "64", ["supervised", "reinforce"]),
        ("synthesize.generator.url", "http://127.0.0.1:1/v1", ["synthesize"]),
        ("logging.wandb_project", "other", STAGES),
        ("srl.num_steps", "3", STAGES),
        ("srl.expert", "'other.jsonl'", STAGES),
        ("name", "other", STAGES),
        ("seed", "5", []),
        ("stages", '["synthesize", "supervised", "reinforce"]', ["synthesize", "supervised"]),
    ],
)
def test_what_no_begun_stage_reads_may_be_corrected(
    tmp_path: Path, key: str, value: str, begun: list[str]
) -> None:
    earlier, now = config_with(tmp_path), config_with(tmp_path, f"--{key}", value)
    differences = check_settings(earlier, now, begun)
    assert len(differences) == 1 and differences[0].startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("key", "value", "begun", "kind"),
    [
        ("seed", "5", ["synthesize"], "synthesize"),
        ("data.num_train", "5", ["supervised"], "supervised"),
        ("supervised.batch_size", "5", ["synthesize", "supervised"], "supervised"),
        ("rollout.temperature", "0.7", ["supervised", SOLUTIONS], "solutions"),
        ("solutions.num_samples", "3", ["supervised", SOLUTIONS], "solutions"),
        ("reinforce.restarts.max_backtrack", "1", [SOLUTIONS], "solutions"),
        ("reward.reflection_bonus", "0.1", ["reinforce"], "reinforce"),
        ("reward.functions", "[{path='m:f'}]", ["reinforce_2"], "reinforce"),
        ("reinforce.num_steps", "5", ["supervised", "reinforce_2"], "reinforce"),
        ("iterate.rounds", "[{ num_steps = 5 }]", ["distill_2"], "iterate"),
        ("model.hidden_size", "256", ["supervised"], "supervised"),
        ("packing.max_tokens_per_microbatch", "9999", ["supervised"], "supervised"),
    ],
)
def test_what_a_begun_stage_reads_stays(
    tmp_path: Path, key: str, value: str, begun: list[str], kind: str
) -> None:
    earlier, now = config_with(tmp_path), config_with(tmp_path, f"--{key}", value)
    with pytest.raises(ConfigError, match=f"in {key}: .* there, .* here; {kind} went by it"):
        check_settings(earlier, now, begun)


def test_all_differences_are_named_at_once(tmp_path: Path) -> None:
    few = ("--seed", "5", "--data.num_train", "5")
    earlier, now = config_with(tmp_path), config_with(tmp_path, *few)
    with pytest.raises(ConfigError) as caught:
        check_settings(earlier, now, ["supervised"])
    assert str(caught.value) == (
        "the run folder differs from this config in data.num_train: 9 there, 5 here; seed: 0 there,"
        " 5 here; supervised went by it: resume with the same values, or choose another --name"
    )
    more = ("--model.hidden_size", "256", "--model.num_layers", "2", "--data.levels", "[2]")
    now = config_with(tmp_path, *few, *more, "--data.max_prompt_tokens", "99")
    with pytest.raises(ConfigError, match=r"in data\.levels: .*256 here.* and 1 more; supervised"):
        check_settings(earlier, now, ["supervised"])


LONGER = ("--reinforce.num_steps", "150")


def test_the_last_stage_may_take_more_steps(tmp_path: Path) -> None:
    earlier, now = config_with(tmp_path), config_with(tmp_path, *LONGER)
    begun = ["synthesize", "supervised", "preference", "reinforce"]
    assert check_settings(earlier, now, begun) == ["reinforce.num_steps: 100 there, 150 here"]
    assert lengthened(earlier, now, begun) == "reinforce"
    assert lengthened(earlier, earlier, begun) is None
    assert lengthened(earlier, now, begun[:3]) is lengthened(earlier, now, []) is None


@pytest.mark.parametrize(
    ("before", "after", "begun"),
    [
        (LONGER, (), ["reinforce"]),  # fewer
        ((), LONGER, ["reinforce", "distill_2"]),  # something came after it
        (
            ("--reinforce.optimizer.schedule", "cosine"),
            (*LONGER, "--reinforce.optimizer.schedule", "cosine"),
            ["reinforce"],
        ),
    ],
)
def test_steps_that_what_was_computed_depends_on(
    tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...], begun: list[str]
) -> None:
    earlier, now = config_with(tmp_path, *before), config_with(tmp_path, *after)
    with pytest.raises(ConfigError, match=r"in reinforce\.num_steps: .*reinforce went by it"):
        check_settings(earlier, now, begun)


def test_the_evaluation_at_the_start_is_there_from_the_start(tmp_path: Path) -> None:
    earlier, now = config_with(tmp_path), config_with(tmp_path, "--evaluation.at_start", "true")
    assert check_settings(earlier, now, []) == ["evaluation.at_start: False there, True here"]
    with pytest.raises(ConfigError, match=r"evaluation\.at_start = true: this run has begun"):
        check_settings(earlier, now, ["synthesize"])


def test_what_the_stage_offline_reads(tmp_path: Path) -> None:
    alone = ("--stages", "['offline']", "--data.format", "trials")
    earlier = config_with(tmp_path, *alone)
    for key, value in (
        ("offline.balance", "false"),
        ("offline.rollouts", "'other'"),
        ("rollout.temperature", "0.7"),
    ):
        now = config_with(tmp_path, *alone, f"--{key}", value)
        with pytest.raises(ConfigError, match=f"in {key}: .*; offline went by it"):
            check_settings(earlier, now, ["offline"])
    for key, value in (
        ("reward.rule_weight", "2.0"),
        ("reinforce.num_steps", "3"),
        ("offline.optimizer.max_skipped_updates", "3"),
    ):
        now = config_with(tmp_path, *alone, f"--{key}", value)
        assert len(check_settings(earlier, now, ["offline"])) == 1


def test_what_the_stage_srl_reads(tmp_path: Path) -> None:
    alone = ("--stages", "['srl']", "--data.format", "plain", "--data.source", "chains")
    earlier = config_with(tmp_path, *alone, "--srl.expert", "'a.jsonl'")

    def changed(key: str, value: str) -> Config:
        return config_with(tmp_path, *alone, "--srl.expert", "'a.jsonl'", f"--{key}", value)

    for key, value in (
        ("srl.granularity", '"words"'),
        ("srl.expert", "'other'"),
        ("srl.num_steps", "3"),
        ("srl.rewriter.model", "'other'"),
        ("srl.rewriter.temperature", "0.5"),
        ("srl.optimizer.learning_rate", "1e-3"),
        ("rollout.temperature", "0.7"),
        ("rollout.max_logprob_diff", "0.7"),
        ("rollout.max_step_tokens", "9"),
        ("data.dialect", '"paper"'),
    ):
        with pytest.raises(ConfigError, match=f"in {key}: .*; srl went by it"):
            check_settings(earlier, changed(key, value), ["srl"])
    for key, value in (
        ("srl.rewriter.url", "'http://127.0.0.1:1/v1'"),
        ("srl.rewriter.api_key_variable", "KEY"),
        ("srl.rewriter.max_concurrency", "3"),
        ("srl.rewriter.completion_price", "3.0"),
        ("srl.num_concurrent", "3"),
        ("srl.optimizer.max_skipped_updates", "3"),
        ("srl.max_uninformative_steps", "3"),
        ("reinforce.num_steps", "3"),
        ("reward.rule_weight", "2.0"),
        ("solutions.num_samples", "3"),
    ):
        assert len(check_settings(earlier, changed(key, value), ["srl"])) == 1
    assert not readers("srl.critic_optimizer.max_skipped_updates")
    # Format tuning imitates steps as they are asked for.
    with pytest.raises(ConfigError, match=r"in srl\.tell_title: .*; supervised went by it"):
        both = ("--stages", "['supervised', 'srl']", *alone[2:])
        titled = config_with(tmp_path, *both, "--srl.tell_title", "true")
        check_settings(config_with(tmp_path, *both), titled, ["supervised"])


def test_a_tokenizer_of_words_knows_those_of_steps_from_the_start(tmp_path: Path) -> None:
    plain = ("--data.source", "chains", "--data.format", "plain")
    earlier, now = (
        config_with(tmp_path, *plain, "--stages", stages)
        for stages in ("['supervised']", "['supervised', 'srl']")
    )
    with pytest.raises(
        ConfigError, match=r"stages = \['supervised', 'srl'\]: step problems have w"
    ):
        check_settings(earlier, now, ["supervised"])
    assert len(check_settings(now, earlier, ["supervised"])) == 1
    own = ("--tokenizer.kind", "model", "--model.path", "m")
    earlier, now = (
        config_with(tmp_path, *plain, *own, "--stages", stages)
        for stages in ("['supervised']", "['supervised', 'srl']")
    )
    assert len(check_settings(earlier, now, ["supervised"])) == 1


def test_the_experts_and_their_rewriter_are_inputs(tmp_path: Path) -> None:
    expert, model = tmp_path / "expert.jsonl", tmp_path / "rewriter"
    expert.write_text("one\n")
    model.mkdir()
    (model / "config.json").write_text("{}")
    options = ("--srl.expert", f"'{expert}'", "--srl.rewriter.model", f"'{model}'")
    earlier = input_digests(config_with(tmp_path, *options))
    assert set(earlier) == {"srl.expert"}  # the name of a model on a server is no folder
    options += ("--srl.rewriter.kind", "embedded")
    earlier = input_digests(config_with(tmp_path, *options))
    assert set(earlier) == {"srl.expert", "srl.rewriter.model"}
    expert.write_text("two\n")
    now = input_digests(config_with(tmp_path, *options))
    check_inputs(earlier, now, {"supervised", "reinforce"})
    with pytest.raises(ConfigError, match=r"srl\.expert: .*expert\.jsonl is not what it was"):
        check_inputs(earlier, now, {"srl"})


def test_every_source_of_a_pool_is_an_input(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for path in (first, second):
        path.write_text("one\n")
    listed = f'[{{ source = "{first}" }}, {{ source = "{second}" }}, {{ source = "gsm8k" }}]'
    options = ("--data.sources", listed, "--tokenizer.kind", "bpe")
    options += ("--stages", "['supervised']")
    earlier = input_digests(config_with(tmp_path, *options))
    assert set(earlier) == {"data.sources.0", "data.sources.1"}
    second.write_text("two\n")
    now = input_digests(config_with(tmp_path, *options))
    with pytest.raises(ConfigError, match=r"data\.sources\.1: .*second\.jsonl is not what it was"):
        check_inputs(earlier, now, {"supervised"})


def test_stages_that_have_begun_keep_their_places(tmp_path: Path) -> None:
    earlier = config_with(tmp_path)
    now = config_with(tmp_path, "--stages", '["supervised", "reinforce"]')
    with pytest.raises(ConfigError, match="keep synthesize in its place"):
        check_settings(earlier, now, ["synthesize"])


def test_an_unknown_key_is_read_by_all() -> None:
    assert readers("data.source") == EVERY_STAGE | {SOLUTIONS, "iterate"}
    assert readers("reward.model") == {"reinforce"} and readers("profiling.trace") == set()
    assert begun_kinds(Config.example(), ["supervised"]) == {"supervised"}


def test_a_file_that_changed_is_named_where_a_begun_stage_read_it(tmp_path: Path) -> None:
    data, model = tmp_path / "sums.jsonl", tmp_path / "reward"
    data.write_text("one\n")
    model.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (model / name).write_text(name)
    overrides = ("--data.source", f"'{data}'", "--reward.model", f"'{model}'")
    config = config_with(tmp_path, *overrides)
    earlier = input_digests(config)
    assert set(earlier) == {"data.source", "reward.model"}
    assert set(earlier["reward.model"]["files"]) == {"config.json", "model.safetensors"}

    def check(*kinds: str) -> None:
        check_inputs(earlier, input_digests(config), kinds)

    check("supervised", "reinforce")
    (model / "model.safetensors").write_text("other")
    check("supervised")
    with pytest.raises(
        ConfigError, match=r"reward\.model: .*model\.safetensors is not what it was"
    ):
        check("supervised", "reinforce")
    data.write_text("two\n")
    with pytest.raises(ConfigError, match=r"data\.source: .*sums\.jsonl is not what it was"):
        check("supervised")
    data.unlink()
    with pytest.raises(ConfigError, match=r"data\.source: .*sums\.jsonl is gone"):
        check("supervised")


def test_the_file_of_a_reward_function_is_compared(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def f(trajectories): ...\n")
    functions = f"[{{ path = '{mine}:f', name = 'short' }}, {{ path = 'math:sqrt' }}]"
    config = config_with(tmp_path, "--reward.functions", functions)
    earlier = input_digests(config)
    assert set(earlier) == {"reward.functions.short"}
    mine.write_text("def f(trajectories): return 1\n")
    check_inputs(earlier, input_digests(config), {"supervised", "preference"})
    with pytest.raises(ConfigError, match=r"reward\.functions\.short: .*mine\.py is not what it w"):
        check_inputs(earlier, input_digests(config), {"reinforce"})
    mine.unlink()
    with pytest.raises(ConfigError, match=r"reward\.functions\.short: .*mine\.py is gone since"):
        check_inputs(earlier, input_digests(config), {"reinforce"})


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    contents: list[Any] = ["name = ", "unknown_key = 1\n", "seed = 'x'\n"]
    for content in contents:
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"config\.toml is damaged"):
            read_config(path)
