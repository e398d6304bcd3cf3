# SPDX-License-Identifier: Apache-2.0
"""Synthesis as a stage: killed with SIGKILL and resumed, it asks nothing twice, ends the same."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from satori_fast.cli import main
from satori_fast.config import Config, ConfigError, load_config
from satori_fast.data.chain_actions import standing_steps
from satori_fast.data.chains import expert_steps, parse_chain
from satori_fast.data.formats.coat import EXPLORE
from satori_fast.data.sources import load_demonstrations
from satori_fast.data.tokenizer import train_tokenizer
from satori_fast.grading import grade
from satori_fast.profiling.metrics import read_metrics
from satori_fast.rollout.server_process import ServerCommand, ServerProcess
from satori_fast.stages import run_stages
from tests.synthesis.chat_server import ChatServer, role_of, sum_problems, sums_model
from tests.synthesis.test_engine_chat import CHAT_TEMPLATE
from tests.tiny_models import tiny_model

ROOT = Path(__file__).parents[2]
NUM_PROBLEMS, NUM_SOLUTIONS = 12, 8

BASE = """
schema_version = 1
name = "sums"
stages = ["synthesize"]
[model]
hidden_size = 32
num_layers = 1
intermediate_size = 32
num_attention_heads = 2
num_key_value_heads = 1
[tokenizer]
kind = "bpe"
vocab_size = 320
[data]
source = "SOURCE"
mapping = "college_math"
max_prompt_tokens = 300
[packing]
max_tokens_per_microbatch = 512
[rollout]
max_seqlen = 400
[reward]
num_workers = 0
[synthesize]
num_problems = 12
num_solutions = 8
num_concurrent = 5
"""
ROLE = """
[synthesize.ROLE]
kind = "KIND"
model = "MODEL"
url = "URL"
max_concurrency = 6
prompt_price = 1000.0
completion_price = 2000.0
"""
ROLES = ("generator", "critic", "reward_model")


def config_file(folder: Path, url: str, *, kind: str = "endpoint", model: str = "sums") -> Path:
    """A run of three language agents over sums."""
    rows = sum_problems(2 * NUM_PROBLEMS)
    source = folder / "sums.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = BASE.replace("SOURCE", str(source))
    for role in ROLES:
        section = ROLE.replace("ROLE", role).replace("KIND", kind).replace("MODEL", model)
        text += section.replace("URL", url)
    path = folder / "sums.toml"
    path.write_text(text)
    return path


def config_of(path: Path, *overrides: str) -> Config:
    return load_config(path, ["--output_dir", f"'{path.parent}'", *overrides])


def metrics_of(folder: Path) -> dict[str, Any]:
    (line,) = read_metrics(folder / "metrics.jsonl")
    return {k: v for k, v in line.items() if k.startswith("synthesize/") and "seconds" not in k}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a finished run, and what its server was asked."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with ChatServer(sums_model) as server:
        run_stages(config_of(config_file(folder, server.url)))
    return folder / "sums", server.completed


# --- what a run leaves ---------------------------------------------------------------------------


def test_demonstrations_are_right_and_clean(
    undisturbed: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, _ = undisturbed
    demonstrations, report = load_demonstrations(folder / "demonstrations.jsonl", "coat")
    assert report.num_skipped == 0 and len(demonstrations) > NUM_PROBLEMS
    kinds = [json.loads(line) for line in (folder / "demonstrations.jsonl").open()]
    assert {line["trajectory_type"] for line in kinds} >= {"I", "II-I", "III-I"}
    for demonstration in demonstrations:
        assert demonstration.problem.answer is not None
        assert grade(demonstration.response, demonstration.problem.answer).correct
        assert demonstration.response.isascii()
        assert "ground truth" not in demonstration.response
        assert "Step:" not in demonstration.response


def test_every_reply_is_accounted_for(undisturbed: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, completed = undisturbed
    metrics = metrics_of(folder)
    asked = Counter(role_of(body) for body in completed)
    for role in ROLES:
        assert metrics[f"synthesize/{role}/requests"] == asked[role] > 0
        tokens = metrics[f"synthesize/{role}/prompt_tokens"]
        replied = metrics[f"synthesize/{role}/completion_tokens"]
        cost = (1000 * tokens + 2000 * replied) / 1e6
        assert metrics[f"synthesize/{role}/cost"] == pytest.approx(cost)
    # First attempts are right, wrong or dropped; a continuation can be dropped as well.
    dropped = {k: v for k, v in metrics.items() if "/dropped/" in k}
    for reason in ("leak", "not_english", "no_answer", "no_steps"):
        assert dropped[f"synthesize/dropped/generator_{reason}"] > 0
    assert dropped["synthesize/dropped/critic_no_verification"] > 0
    assert dropped["synthesize/dropped/reward_model_no_rating"] > 0
    first = metrics["synthesize/solutions/right"] + metrics["synthesize/solutions/wrong"]
    of_generator = sum(v for k, v in dropped.items() if "/generator_" in k)
    assert first <= NUM_PROBLEMS * NUM_SOLUTIONS <= first + of_generator


def test_page_is_written(undisturbed: tuple[Path, list[dict[str, Any]]]) -> None:
    text = (undisturbed[0] / "synthesis.html").read_text()
    assert "What is 11 + 7?" in text and "generator_leak" in text


# --- killed and resumed --------------------------------------------------------------------------


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(path: Path, *, num_replies: int) -> list[str]:
    """Start `satori-fast synthesize`, kill it with so many replies on disk; its arguments."""
    command = ["synthesize", str(path), "--output_dir", f"'{path.parent}'"]
    replies = path.parent / "sums" / "synthesis" / "replies.jsonl"
    deadline = time.monotonic() + 240
    with subprocess.Popen([sys.executable, "-m", "satori_fast", *command], cwd=ROOT) as process:
        while lines_of(replies) < num_replies:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    return command


def test_a_killed_run_asks_nothing_twice_and_ends_the_same(
    tmp_path: Path, undisturbed: tuple[Path, list[dict[str, Any]]]
) -> None:
    (folder, asked), num_replies = undisturbed, 150
    with ChatServer(sums_model, stop_after=num_replies) as server:
        path = config_file(tmp_path, server.url)
        command = killed(path, num_replies=num_replies)
        assert len(server.completed) == num_replies
        with (tmp_path / "sums" / "synthesis" / "replies.jsonl").open("ab") as torn:
            torn.write(b'{"key": "00')
        with pytest.raises(ConfigError, match="pass --resume"):
            run_stages(config_of(path))
        # Requests that wait at the server have lost their client: they were never answered.
        server.stop_after = None
        assert 0 < lines_of(tmp_path / "sums" / "synthesis" / "finished.jsonl") < NUM_PROBLEMS
        assert main([*command, "--resume"]) == 0
        completed = Counter(json.dumps(body, sort_keys=True) for body in server.completed)
    assert max(completed.values()) == 1
    assert completed == Counter(json.dumps(body, sort_keys=True) for body in asked)
    for name in ("demonstrations.jsonl", "synthesis/finished.jsonl", "synthesis.html"):
        assert (tmp_path / "sums" / name).read_bytes() == (folder / name).read_bytes(), name
    assert metrics_of(tmp_path / "sums") == metrics_of(folder)


@pytest.mark.ranks
def test_of_two_processes_one_asks(
    tmp_path: Path, undisturbed: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, asked = undisturbed
    with ChatServer(sums_model, delay_s=0.1) as server:  # long enough for the other one to be told
        path = config_file(tmp_path, server.url)
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        arguments = ["-m", "satori_fast", "synthesize", str(path), "--output_dir", f"'{tmp_path}'"]
        subprocess.run([sys.executable, "-m", *launcher, *arguments], cwd=ROOT, check=True)
    assert len(server.completed) == len(asked)
    name = "demonstrations.jsonl"
    assert (tmp_path / "sums" / name).read_bytes() == (folder / name).read_bytes()


# --- models of ours ------------------------------------------------------------------------------


def model_folder(folder: Path) -> Path:
    """A random model that can chat; what it says means nothing."""
    tokenizer = train_tokenizer([row["question"] for row in sum_problems(50)], 320)
    tokenizer.chat_template = CHAT_TEMPLATE
    # vLLM's CPU attention wants heads of 32 numbers or more.
    model = tiny_model(
        "qwen2",
        vocab_size=len(tokenizer),
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small(*more: str) -> list[str]:
    """Overrides for a model whose every reply is dropped."""
    sizes = {"num_problems": "3", "num_solutions": "8", "generator.max_new_tokens": "24"}
    return [*(word for k, v in sizes.items() for word in (f"--synthesize.{k}", v)), *more]


def check_all_dropped(folder: Path) -> None:
    metrics = metrics_of(folder)
    assert metrics["synthesize/generator/requests"] == 24
    assert sum(v for k, v in metrics.items() if "/dropped/generator_" in k) == 24
    assert (
        metrics["synthesize/demonstrations"] == 0 and lines_of(folder / "demonstrations.jsonl") == 0
    )
    keys = [json.loads(line)["key"] for line in (folder / "synthesis" / "replies.jsonl").open()]
    assert len(set(keys)) == len(keys) == 24


def test_embedded_engine_talks_in_its_chat_template(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    path = config_file(tmp_path, "", kind="embedded", model=str(model))
    overrides = small(*(w for r in ROLES for w in (f"--synthesize.{r}.max_seqlen", "2048")))
    overrides += [w for r in ROLES for w in (f"--synthesize.{r}.dtype", "float32")]
    run_stages(config_of(path, *overrides))
    check_all_dropped(tmp_path / "sums")
    # The same prompt, and other seeds: replies differ.
    lines = (tmp_path / "sums" / "synthesis" / "replies.jsonl").read_text().splitlines()
    assert len({json.loads(line)["text"] for line in lines}) > 12


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make setup-vllm"
)
def test_killed_and_resumed_against_a_vllm_server(tmp_path: Path) -> None:
    flags = ("--load-format", "auto", "--no-skip-tokenizer-init", "--served-model-name", "sums")
    flags += ("--dtype", "float32", "--max-model-len", "2048", "--enforce-eager")
    log = tmp_path / "server.log"
    server = ServerProcess(ServerCommand(model_folder(tmp_path / "model"), log, flags))
    server.start()
    try:
        path = config_file(tmp_path, f"{server.url}/v1")
        path.write_text(path.read_text().replace("max_concurrency = 6", "max_concurrency = 2"))
        text = path.read_text()
        for name, value in (("num_problems", 3), ("num_solutions", 8)):
            text = re.sub(rf"^{name} = \d+$", f"{name} = {value}", text, flags=re.MULTILINE)
        path.write_text(
            text.replace("[synthesize.generator]", "[synthesize.generator]\nmax_new_tokens = 24")
        )
        command = killed(path, num_replies=5)
        num_kept = lines_of(tmp_path / "sums" / "synthesis" / "replies.jsonl")
        assert main([*command, "--resume"]) == 0
        page = httpx.get(f"{server.url}/metrics", trust_env=False).text
    finally:
        server.close()
    check_all_dropped(tmp_path / "sums")
    succeeded = re.findall(r"^vllm:request_success_total\{.*\} ([\d.e+]+)$", page, re.MULTILINE)
    # What was in flight at the kill, two requests at most, may have been answered twice.
    assert 24 <= sum(map(float, succeeded)) <= 24 + 2
    assert 5 <= num_kept < 24


# --- scripted agents -----------------------------------------------------------------------------


def test_chains_are_demonstrated_by_their_own_agents(tmp_path: Path) -> None:
    options = ["--stages", '["synthesize"]', "--synthesize.num_problems", "20"]
    options += ["--output_dir", f"'{tmp_path}'", "--data.num_train", "20"]
    run_stages(load_config("configs/satori/chains.toml", options))
    made, _ = load_demonstrations(str(tmp_path / "satori-chains" / "demonstrations.jsonl"), "coat")
    assert {d.response.count(EXPLORE) for d in made} == {0, 1, 2}
    for demonstration in made:
        chain, answer = parse_chain(demonstration.problem.question), demonstration.problem.answer
        assert answer is not None and grade(demonstration.response, answer).correct
        assert len(chain.operations) == 8
        assert standing_steps(demonstration.response) == expert_steps(chain)


# --- settings ------------------------------------------------------------------------------------


def test_scripted_agents_know_the_built_in_domains_only(tmp_path: Path) -> None:
    path = config_file(tmp_path, "http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match=r'synthesize.critic.kind = "scripted" knows the'):
        run_stages(config_of(path, "--synthesize.critic.kind", "scripted"))


@pytest.mark.parametrize("check", ["bare", "mixed"])
def test_bare_checks_are_demonstrated(tmp_path: Path, check: str) -> None:
    options = ["--stages", '["synthesize"]', "--synthesize.num_problems", "8"]
    options += ["--synthesize.check", check, "--output_dir", str(tmp_path)]
    run_stages(load_config("configs/satori/gullible.toml", options))
    path = tmp_path / "gullible" / "demonstrations.jsonl"
    responses = [json.loads(line)["response"] for line in path.open()]
    said = {text for r in responses for text in re.findall(r"<\|reflect\|> ([^<]+)", r)}
    assert {"right", "over", "under"} <= said
    worked = {text for text in said if " + " in text}
    others = said - worked
    assert all(text in ("right", "over", "under") or text.startswith("left ") for text in others)
    assert bool(worked) is (check == "mixed")


def test_bare_checks_are_of_the_arithmetic_domain(tmp_path: Path) -> None:
    path = config_file(tmp_path, "http://127.0.0.1:9/v1")
    options = ["--synthesize.critic.kind", "scripted", "--synthesize.check", "bare"]
    with pytest.raises(ConfigError, match=r'synthesize.check = "bare" is for data.source'):
        run_stages(config_of(path, *options))


def test_a_language_model_needs_a_name(tmp_path: Path) -> None:
    path = config_file(tmp_path, "http://127.0.0.1:9/v1")
    path.write_text(path.read_text().replace('model = "sums"\n', "", 1))
    with pytest.raises(ConfigError, match=r"synthesize.generator.model is missing"):
        run_stages(config_of(path))


def test_a_scalar_model_cannot_write(tmp_path: Path) -> None:
    path = config_file(tmp_path, "http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match=r'synthesize.critic.kind = "scalar" only rates'):
        run_stages(config_of(path, "--synthesize.critic.kind", "scalar"))
