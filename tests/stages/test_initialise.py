# SPDX-License-Identifier: Apache-2.0
"""Behaviour initialisation as a stage: what it writes, killed and resumed, with language models."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from satori_fast.config import Config, ConfigError, load_config
from satori_fast.data.chains import confirming_text, parse_chain, resolving_text
from satori_fast.data.formats.trials import WORDS
from satori_fast.data.sources import load_demonstrations
from satori_fast.grading import extract_answer
from satori_fast.stages import run_stages
from satori_fast.storage import sealed_records
from satori_fast.synthesis.chat import ChatError
from satori_fast.synthesis.trial_agents import ChainVerifier
from satori_fast.types import Problem
from tests.stages.test_run import timeless
from tests.stages.two_processes import run_on_two
from tests.synthesis.chat_server import Body, ChatServer, Fault, prompt_of

# Learns its 32 chains half by heart, so that it has samples of both kinds.
TINY = """
schema_version = 1
name = "trials"
stages = ["supervised", "initialise"]
[model]
hidden_size = 64
num_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 128
[tokenizer]
kind = "words"
[data]
source = "chains"
format = "trials"
levels = [4]
num_train = 32
template = "plain"
max_prompt_tokens = 40
[packing]
max_tokens_per_microbatch = 1024
[rollout]
max_seqlen = 256
max_new_tokens = 60
max_slots = 32
[reward]
num_workers = 0
[supervised]
num_epochs = 30.0
batch_size = 8
optimizer = { learning_rate = 5e-3 }
[initialise]
num_problems = 32
num_epochs = 2.0
batch_size = 8
checkpoint_every = 2
keep = [0.5, 1.0, 1.0, 0.9]
verifier_skill = 0.7
confirming_share = 0.5
optimizer = { learning_rate = 1e-3 }
[evaluation]
num_problems = 8
"""


def config_of(folder: Path, *overrides: str) -> Config:
    path = folder / "trials.toml"
    path.write_text(TINY)
    return load_config(path, ["--output_dir", f"'{folder}'", *overrides])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished run, and its summary."""
    folder = tmp_path_factory.mktemp("undisturbed")
    summary = run_stages(config_of(folder))
    return folder / "trials", summary


def first_metrics(folder: Path) -> dict[str, float]:
    """Metrics of how the trajectories were made: those of the first step."""
    lines = [line for line in timeless(folder / "metrics.jsonl") if line["stage"] == "initialise"]
    made = [{k: v for k, v in line.items() if k.startswith("initialise/")} for line in lines]
    assert made[0] and not any(made[1:])
    return made[0]


# --- what a run leaves ---------------------------------------------------------------------------


def test_trajectories_are_of_the_models_own_samples(
    undisturbed: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = undisturbed
    rows = [row for row in sealed_records(folder / "solutions/initialise.jsonl") if "group" in row]
    sampled = {(row["question"], row["response"].strip()): row["correct"] for row in rows}
    assert len(rows) == 32 * 5
    made, report = load_demonstrations(folder / "demonstrations_initialise.jsonl", "coat")
    assert report.num_skipped == 0 and len(made) > 5
    lengths = Counter[int]()
    for demonstration in made:
        question = demonstration.problem.question
        trials = WORDS.split_trials(demonstration.response)
        lengths[len(trials)] += 1
        *wrong, last = [sampled[question, trial.solution] for trial in trials]
        assert last and not any(wrong)
        answers = [extract_answer(trial.solution) for trial in trials]
        assert len(set(answers)) == len(answers) and answers[-1] == demonstration.problem.answer
        said = [WORDS.verdict(trial.verification) for trial in trials]
        assert said == [False] * len(wrong) + [True]
    metrics = first_metrics(folder)
    assert metrics["initialise/demonstrations"] == len(made)
    for number in (1, 2, 3, 4):
        assert metrics[f"initialise/type_{number}"] == lengths[number]
    assert sum(lengths[number] > 0 for number in (1, 2, 3, 4)) > 1
    assert metrics["initialise/samples/right"] == sum(row["correct"] for row in rows)
    assert metrics["initialise/dropped/verification_false"] > 0


def test_the_policy_goes_on_from_where_it_was(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = undisturbed
    entry = summary["stages"][-1]
    assert entry["stage"] == "initialise" and entry["num_demonstrations"] > 5
    assert 1 < entry["mean_trials"] < 4
    assert (folder / "models/initialise/model.safetensors").exists()
    lines = [line for line in timeless(folder / "metrics.jsonl") if "update/loss" in line]
    losses = [line["update/loss"] for line in lines if line["stage"] == "initialise"]
    assert losses[-1] < losses[0]


def test_a_page_shows_trials_and_what_was_dropped(
    undisturbed: tuple[Path, dict[str, Any]],
) -> None:
    page = (undisturbed[0] / "initialise.html").read_text(encoding="utf-8")
    assert '<div class="action solve">' in page and '<div class="action verify">wait' in page
    assert "verification_false" in page and "one wrong answer before the right one" in page


# --- killed and resumed --------------------------------------------------------------------------


def test_a_run_killed_while_it_verifies_ends_the_same(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    verify = ChainVerifier.verify

    async def dying(self: ChainVerifier, problem: Problem, *rest: Any, **more: Any) -> str:
        asked.append(problem.problem_id)
        if len(asked) == 12:
            raise KeyboardInterrupt
        return await verify(self, problem, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ChainVerifier, "verify", dying)
        with pytest.raises(KeyboardInterrupt):
            run_stages(config_of(tmp_path))
    finished = tmp_path / "trials/initialise/finished.jsonl"
    assert 0 < finished.read_bytes().count(b"\n") < 32
    # What the begun stage has read stays as it is.
    with pytest.raises(ConfigError, match=r"initialise\.keep: .* initialise went by it"):
        run_stages(config_of(tmp_path, "--initialise.keep", "[1.0, 1.0, 1.0, 1.0]"), resume=True)
    run_stages(config_of(tmp_path), resume=True)
    whole, cut = undisturbed[0], tmp_path / "trials"
    for name in (
        "solutions/initialise.jsonl",
        "initialise/finished.jsonl",
        "demonstrations_initialise.jsonl",
        "initialise.html",
        "models/initialise/model.safetensors",
    ):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert timeless(cut / "metrics.jsonl") == timeless(whole / "metrics.jsonl")


@pytest.mark.ranks
def test_two_processes_write_the_same_trials_and_learn_the_same(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    model = undisturbed[0] / "models" / "supervised"
    options = ("--stages", '["initialise"]', "--model.path", f"'{model}'")
    options += ("--tokenizer.kind", "model", "--data.dialect", "words")
    alone, both = tmp_path / "alone", tmp_path / "both"
    for folder in (alone, both):
        folder.mkdir()
    run_stages(config_of(alone, *options))
    config_of(both)
    run_on_two(both / "trials.toml", *options)
    name = "trials/demonstrations_initialise.jsonl"
    assert (both / name).read_bytes() == (alone / name).read_bytes()
    assert first_metrics(both / "trials") == first_metrics(alone / "trials")
    pairs = zip(*(timeless(f / "trials/metrics.jsonl") for f in (both, alone)), strict=True)
    for ours, theirs in pairs:
        assert ours["update/loss"] == pytest.approx(theirs["update/loss"], abs=1e-4)


# --- language models -----------------------------------------------------------------------------


def chain_model(body: Body) -> str:
    """A verifier that solves again now and then when it is to confirm, and a judge that sees it."""
    prompt = prompt_of(body)
    question = re.search(r"^Problem: (.*)$", prompt, re.MULTILINE)
    assert question is not None
    chain, answer = parse_chain(question[1]), extract_answer(prompt)
    if "Say whether it does" in prompt:
        confirms = "Verification:\nback" in prompt
        return f"Judgement: {'confirms' if confirms else 're-solves'}"
    if answer is None or not answer.isdecimal():
        return "I cannot tell."
    obeys = int(answer) % 3 > 0
    return (confirming_text if obeys else resolving_text)(chain, int(answer))


def asking(folder: Path, url: str) -> Config:
    text = "".join(
        f'[initialise.{role}]\nkind = "endpoint"\nmodel = "m"\nurl = "{url}"\nmax_retries = 0\n'
        for role in ("verifier", "judge")
    )
    path = folder / "asking.toml"
    path.write_text(TINY.replace("confirming_share = 0.5", "num_concurrent = 1") + text)
    return load_config(path, ["--output_dir", f"'{folder}'"])


def test_language_models_are_asked_nothing_twice(tmp_path: Path) -> None:
    with ChatServer(chain_model) as server:
        config = asking(tmp_path, server.url)
        answer = server.answer

        def failing(body: Body) -> str:
            if len(server.completed) == 20:
                server.faults.extend([Fault(status=500, text="gone")] * 9)
            return answer(body)

        server.answer = failing
        with pytest.raises(ChatError):
            run_stages(config)
        server.answer, server.faults = answer, []
        num_before = len(server.completed)
        run_stages(config, resume=True)
        asked = Counter(json.dumps(body, sort_keys=True) for body in server.completed)
    assert num_before >= 20 and len(server.completed) > num_before
    assert max(asked.values()) == 1
    metrics = first_metrics(tmp_path / "trials")
    assert metrics["initialise/verifier/requests"] >= metrics["initialise/judge/requests"] > 0
    total = metrics["initialise/verifier/requests"] + metrics["initialise/judge/requests"]
    assert total == len(server.completed)
    assert metrics["initialise/dropped/verification_solves_again"] > 0
    made, _ = load_demonstrations(tmp_path / "trials/demonstrations_initialise.jsonl", "coat")
    assert made and all("forward" not in demonstration.response for demonstration in made)


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("--data.format", "plain"), r'data.format = "plain" has no verifications'),
        (("--initialise.keep", "[0.5, 2.0, 1.0, 1.0]"), r"give four shares from 0 to 1"),
        (
            ("--data.dialect", "paper"),
            r'scripted" gives verdicts of data.dialect = "words", not "paper"',
        ),
        (("--initialise.judge.kind", "scalar", "--initialise.judge.model", "m"), r"only rates"),
        (("--initialise.verifier.kind", "endpoint"), r"initialise.verifier.model is missing"),
        (
            ("--data.source", "arithmetic", "--data.levels", "[1]", "--stages", '["initialise"]'),
            r'confirming_share = 0.5, but the scripted verifier of data.source = "arithmetic" only',
        ),
    ],
)
def test_settings_that_cannot_work(
    tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run_stages(config_of(tmp_path, *overrides))
    assert "\n" not in str(caught.value)


def test_scripted_agents_know_the_built_in_domains_only(tmp_path: Path) -> None:
    source = tmp_path / "sums.jsonl"
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(40)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ["--data.source", f"'{source}'", "--data.mapping", "college_math"]
    overrides += ["--tokenizer.kind", "bpe", "--tokenizer.vocab_size", "320"]
    overrides += ["--stages", '["initialise"]', "--data.max_prompt_tokens", "100"]
    with pytest.raises(ConfigError, match=r'initialise.verifier.kind = "scripted" knows the built'):
        run_stages(config_of(tmp_path, *overrides))


def test_a_model_that_solves_nothing_is_said_in_one_line(tmp_path: Path) -> None:
    config = config_of(tmp_path, "--stages", '["initialise"]', "--initialise.num_problems", "4")
    with pytest.raises(
        ConfigError, match=r"made no trajectory of 4 problems \(dropped: "
    ) as caught:
        run_stages(config)
    assert "\n" not in str(caught.value) and "problem_unsolved 4" in str(caught.value)
    assert "problem_unsolved" in (tmp_path / "trials/initialise.html").read_text(encoding="utf-8")
