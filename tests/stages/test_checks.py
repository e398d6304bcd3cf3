# SPDX-License-Identifier: Apache-2.0
"""What a later stage could not start with is found before the first one starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
)

from satori_fast.config import ConfigError
from satori_fast.data.formats.coat import META_ACTION_TOKENS
from satori_fast.data.tokenizer import add_special_tokens, load_tokenizer
from satori_fast.stages import run_stages
from satori_fast.stages.checks import check_stages
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.run import Run, build_run
from satori_fast.stages.run_folder import RunFolder
from tests.data.agent_runs import bash, messages_of, submit
from tests.stages.test_run import tiny_config
from tests.tiny_models import tiny_model

PREFERRED = ("--reward.preference_weight", "1.0")
ENDPOINT = "{kind='endpoint',model='m',url='https://192.0.2.1/v1',api_key_variable='NO_SUCH_KEY'}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run that has not begun: tests give it other settings."""
    with build_run(tiny_config(tmp_path_factory.mktemp("checks"))) as built:
        yield built


def save_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_scalar: bool = True,
    **fields: float,
) -> str:
    """A tiny model without a thing to say; `fields` of its config.json."""
    config = tiny_model("qwen2_tied", vocab_size=len(tokenizer), num_hidden_layers=1).config
    config.num_labels, config.pad_token_id = 1, 0
    for name, number in fields.items():
        setattr(config, name, number)
    kind = AutoModelForSequenceClassification if is_scalar else AutoModelForCausalLM
    kind.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"'{folder}'"


def check(run: Run, folder: Path, *overrides: str) -> None:
    """`check_stages` of the run's folder and models with another config."""
    config = tiny_config(folder, *overrides)
    plans = plan_stages(config)[len(run.finished) :]
    check_stages(replace(run.context(plans[0]), config=config), run.folder, plans)


def refusal(run: Run, folder: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(run, folder, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


MISSING = [
    (("--reward.model", "nowhere", *PREFERRED), "reward.model = 'nowhere': model folder"),
    (("--stages", "['distill']", "--distill.student", "nowhere"), "distill.student = 'nowhere'"),
    (("--stages", "['supervised']"), "add synthesize to stages before it"),
    (("--stages", "['supervised','synthesize']"), "add synthesize to stages before it"),
    (
        ("--stages", "['supervised']", "--supervised.source", "nowhere.jsonl"),
        "supervised.source: data file nowhere.jsonl does not exist",
    ),
    (
        ("--stages", "['reinforce','iterate']", "--distill.student", "nowhere"),
        "distill.student = 'nowhere'",
    ),
    (
        ("--synthesize.critic", ENDPOINT),
        "synthesize.critic.api_key_variable: the environment has no NO_SUCH_KEY",
    ),
    (("--synthesize.critic", "{kind='endpoint'}"), "synthesize.critic.model is missing"),
    (
        ("--data.source", "chains", "--synthesize.check", "bare"),
        'synthesize.check = "bare" is for data.source = "arithmetic", and "chains" has no such',
    ),
    (
        ("--synthesize.slips", "carries"),
        'synthesize.slips = "carries" is for data.source = "chains", and "arithmetic" has no such',
    ),
    (
        ("--synthesize.critic", "{kind='embedded',model='nowhere'}"),
        "synthesize.critic.model = 'nowhere': model folder",
    ),
]


@pytest.mark.parametrize(("overrides", "text"), MISSING)
def test_what_is_missing(run: Run, tmp_path: Path, overrides: tuple[str, ...], text: str) -> None:
    assert text in refusal(run, tmp_path, *overrides)


def test_experts_of_a_domain_write_their_demonstrations(run: Run, tmp_path: Path) -> None:
    check(run, tmp_path, "--data.source", "chains", "--stages", "['supervised']")


def test_a_stage_that_is_done_needs_nothing_more(run: Run, tmp_path: Path) -> None:
    options = ("--synthesize.critic", ENDPOINT)
    assert "NO_SUCH_KEY" in refusal(run, tmp_path, *options)
    folder = RunFolder(run.folder.path)
    folder.progress["finished"] = [{"stage": "synthesize"}, {"stage": "supervised"}]
    check(replace(run, folder=folder), tmp_path, *options)


def test_nothing_has_begun_and_the_mended_config_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward\.model = 'nowhere'"):
        run_stages(tiny_config(tmp_path, "--reward.model", "nowhere"))
    assert not (tmp_path / "tiny" / "metrics.jsonl").read_text()
    summary = run_stages(tiny_config(tmp_path, "--stages", "['synthesize']"))
    assert len(summary["stages"]) == 1


def test_demonstrations_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "own.jsonl"
    options = ("--stages", "['supervised']", "--supervised.source", f"'{source}'")
    source.write_text(json.dumps({"question": "1 + 1", "answer": "2"}) + "\n")
    assert f"supervised.source: {source}" in refusal(run, tmp_path, *options)
    row = {"question": "1 + 1", "answer": "2", "response": "2", "problem_id": "0"}
    source.write_text(json.dumps(row) + "\n")
    check(run, tmp_path, *options)
    mapping = ("--supervised.mapping", "nothing")
    assert "no field mapping named 'nothing'" in refusal(run, tmp_path, *options, *mapping)


def test_reward_models_that_cannot_reward(run: Run, tmp_path: Path) -> None:
    tokenizer = run.renderer.tokenizer
    good = save_model(tmp_path / "good", tokenizer, mean=0.5, std=2.0)
    check(run, tmp_path, "--reward.model", good, *PREFERRED)
    plain = save_model(tmp_path / "plain", tokenizer)
    options = ("--reward.model", plain, *PREFERRED)
    message = refusal(run, tmp_path, *options)
    assert "reward.normalize_preference needs the mean and std of the scores" in message
    options += ("--reward.normalize_preference", "false")
    assert "reinforce.normalize_critic needs the mean" in refusal(run, tmp_path, *options)
    for unused in ("--reinforce.normalize_critic=false", "--reinforce.critic_init=policy"):
        check(run, tmp_path, *options, unused)
    # The critic reads the folder too, without the reward.
    assert "normalize_critic" in refusal(run, tmp_path, "--reward.model", plain)
    check(run, tmp_path, "--reward.model", plain, "--reinforce.recipe", "grpo")
    policy = save_model(tmp_path / "policy", tokenizer, is_scalar=False, mean=0.5, std=2.0)
    message = refusal(run, tmp_path, "--reward.model", policy, *PREFERRED)
    assert "Qwen2ForCausalLM is a language model: a reward model has a score head" in message
    short = save_model(tmp_path / "short", tokenizer, max_position_embeddings=64, mean=0.0, std=1.0)
    message = refusal(run, tmp_path, "--reward.model", short, *PREFERRED)
    assert "rollout.max_seqlen = 128 exceeds the model's context of 64 positions" in message


STEPS = ("--stages", "['srl']", "--data.source", "chains", "--data.levels", "[4]")
STEPS += ("--data.format", "plain")
REWRITER = "{kind='endpoint',model='m',url='https://192.0.2.1/v1',api_key_variable='NO_SUCH_KEY'}"


def expert_file(path: Path, *responses: str) -> tuple[str, ...]:
    rows = [{"question": "q", "answer": "9", "response": response} for response in responses]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "--srl.mapping", "coat", "--srl.expert", f"'{path}'"


def test_experts_whose_solutions_are_no_steps(run: Run, tmp_path: Path) -> None:
    path, good = tmp_path / "expert.jsonl", "1. **Add** a\n2. **Answer** b"
    check(run, tmp_path, *STEPS)  # the domain's own
    missing = refusal(run, tmp_path, *STEPS, "--srl.expert", "nowhere.jsonl")
    assert missing == "srl.expert: data file nowhere.jsonl does not exist"
    path.write_text("")
    assert "is empty" in refusal(run, tmp_path, *STEPS, "--srl.expert", f"'{path}'")
    expert = expert_file(path, "nine", "2. **Add** a")
    message = refusal(run, tmp_path, *STEPS, *expert)
    assert message.startswith("srl.expert: no step problem is left of 2 expert solutions read as")
    assert "1 x no_steps (the first: expert/1: nine), 1 x out_of_order" in message
    check(run, tmp_path, *STEPS, *expert_file(path, "nine", good))
    # One that can be read is enough, wherever it is.
    check(run, tmp_path, *STEPS, *expert_file(path, *["nine"] * 120, good))
    few = ("--srl.num_solutions", "110")
    assert "left of 110 expert solutions" in refusal(run, tmp_path, *STEPS, *expert, *few)
    assert "of 1 expert" in refusal(
        run, tmp_path, *STEPS, *expert_file(path, good), "--srl.parser", "paragraphs"
    )
    no_answers = refusal(run, tmp_path, *STEPS, *expert, "--srl.mapping", "math")
    assert "no row has the field 'problem'" in no_answers


def test_trajectories_without_a_step(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    row = {"instance_id": "a", "resolved": False, "messages": json.dumps([{"role": "user"}])}
    path.write_text(json.dumps(row) + "\n")
    options = (*STEPS, "--srl.parser", "agent", "--srl.expert", f"'{path}'")
    assert "no step in 1 rows: not resolved (row 1)" in refusal(run, tmp_path, *options)
    messages = messages_of("xml", "a", [bash("ls", "a.py"), submit()])
    path.write_text(json.dumps(row | {"resolved": True, "messages": json.dumps(messages)}) + "\n")
    check(run, tmp_path, *options)


def test_a_rewriter_that_cannot_write(run: Run, tmp_path: Path) -> None:
    expert = expert_file(tmp_path / "expert.jsonl", "nine")
    options = (*STEPS, *expert, "--srl.parser", "rewrite")
    assert "srl.rewriter.model is missing" in refusal(run, tmp_path, *options)
    message = refusal(run, tmp_path, *options, "--srl.rewriter", REWRITER)
    assert "srl.rewriter.api_key_variable: the environment has no NO_SUCH_KEY" in message
    options += ("--srl.rewriter.model", "nowhere")
    message = refusal(run, tmp_path, *options, "--srl.rewriter.kind", "embedded")
    assert message.startswith("srl.rewriter.model = 'nowhere': model folder")
    assert "srl.rewriter.url: 'h' is not of" in refusal(
        run, tmp_path, *options, "--srl.rewriter.url", "h"
    )
    check(run, tmp_path, *options)
    (tmp_path / "expert.jsonl").write_text('{"question": "q"}\n')
    assert "srl.expert: " in refusal(run, tmp_path, *options)


def other_tokenizer(run: Run) -> PreTrainedTokenizerBase:
    """The ids of the run's tokenizer, one place further."""
    saved = load_tokenizer(run.models["tokenizer"])
    words = json.loads(saved.backend_tokenizer.to_str())
    words["model"]["vocab"] = {w: n + 1 for w, n in words["model"]["vocab"].items()}
    words["added_tokens"] = []
    folder = run.folder.path / "shifted"
    saved.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(words))
    return load_tokenizer(folder)


def test_models_of_other_token_ids(run: Run, tmp_path: Path) -> None:
    other = other_tokenizer(run)
    reward = save_model(tmp_path / "reward", other, mean=0.5, std=2.0)
    message = refusal(run, tmp_path, "--reward.model", reward, *PREFERRED)
    assert "has another tokenizer than the policy" in message
    # A student's tokenizer is the policy's from there on.
    student = save_model(tmp_path / "student", other, is_scalar=False)
    add_special_tokens(other, META_ACTION_TOKENS)
    options = ("--distill.student", student, *PREFERRED)
    own = ("--stages", "['preference','distill','reinforce']", *options)
    assert "distill.student: reward model models/preference has another" in refusal(
        run, tmp_path, *own
    )
    again = ("--stages", "['distill','preference','reinforce']", *options)
    check(run, tmp_path, *again)
    # Without a reward model the critic starts from the student.
    check(run, tmp_path, "--stages", "['distill','reinforce']", "--distill.student", student)


def test_a_student_whose_tokenizer_does_not_go_with_the_prompts(run: Run, tmp_path: Path) -> None:
    student = save_model(tmp_path / "student", run.renderer.tokenizer, is_scalar=False)
    options = ("--stages", "['distill']", "--distill.student", student)
    message = refusal(run, tmp_path, *options, "--rollout.stop_tokens", "['no such']")
    assert "distill.student" in message and "rollout.stop_tokens: 'no such' is 2 tokens" in message
    model = ("--tokenizer.kind", "model", "--model.path", student, "--data.template", "chat")
    message = refusal(run, tmp_path, *options, *model)
    assert "distill.student" in message and "the tokenizer has no chat template" in message
    check(run, tmp_path, *options)


def test_a_policy_that_the_layout_does_not_divide(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "mistral"
    save_model(folder, run.renderer.tokenizer, is_scalar=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    broken = replace(run, models={**run.models, "policy": folder})
    message = refusal(broken, tmp_path)
    assert message.startswith(f"model {folder}: qwen2 with hidden_act 'gelu' is not supported")
    check(broken, tmp_path, "--stages", "['synthesize']")


def test_short_room_for_responses_is_said(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check(run, tmp_path, "--rollout.max_new_tokens", "39")
    assert "data.max_prompt_tokens = 90 and rollout.max_new_tokens = 39 exceed" in caplog.text
    caplog.clear()
    check(run, tmp_path)
    assert "exceed rollout.max_seqlen" not in caplog.text
