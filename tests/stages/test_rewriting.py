# SPDX-License-Identifier: Apache-2.0
"""Expert solutions rewritten by an agent inside a run: who is asked, killed and resumed, and what
another run makes of the result."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from satori_fast.config import Config, ConfigError, load_config
from satori_fast.data.chains import expert_steps, parse_chain, solution_text, step_titles
from satori_fast.data.domains import DOMAINS
from satori_fast.data.sources import load_demonstrations
from satori_fast.stages import run_stages
from satori_fast.stages.evaluate import evaluate_model
from satori_fast.storage import read_sealed
from satori_fast.synthesis.chat import ChatError
from tests.stages.two_processes import run_on_two
from tests.synthesis.chat_server import Body, ChatServer, Fault, prompt_of

NUM_SOLUTIONS = 24
TINY = """
schema_version = 1
name = "steps"
stages = ["srl"]
[model]
hidden_size = 32
num_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 64
[tokenizer]
kind = "words"
[data]
source = "chains"
format = "plain"
levels = [4]
num_train = 24
template = "plain"
max_prompt_tokens = 64
heldout_fraction = 0.3
[packing]
max_tokens_per_microbatch = 1024
[rollout]
max_seqlen = 128
max_new_tokens = 16
max_slots = 32
[reward]
num_workers = 0
[srl]
mapping = "coat"
parser = "rewrite"
num_steps = 1
problems_per_step = 4
samples_per_problem = 2
num_minibatches = 1
num_validation = 4
num_concurrent = 2
[srl.rewriter]
model = "m"
max_retries = 0
prompt_price = 1000000.0
[evaluation]
num_problems = 4
"""


def rows() -> list[dict[str, str]]:
    """Solutions of chains by their expert; every fourth of them ends wrong."""
    problems = DOMAINS["chains"].problems(NUM_SOLUTIONS, levels=(4,), split="train", seed=1)
    made: list[dict[str, str]] = []
    for number, problem in enumerate(problems):
        response = solution_text(parse_chain(problem.question))
        if number % 4 == 3:
            response += " \\boxed{ 100 }"
        row = {"question": problem.question, "answer": problem.answer or "", "response": response}
        made.append({"problem_id": str(number), **row})
    return made


def config_of(folder: Path, *overrides: str, expert: Path | None = None) -> Config:
    folder.mkdir(exist_ok=True)
    if expert is None:
        expert = folder / "expert.jsonl"
        expert.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    path = folder / "steps.toml"
    path.write_text(TINY)
    named = ("--output_dir", f"'{folder}'", "--srl.expert", f"'{expert}'")
    return load_config(path, [*named, *overrides])


def question_of(body: Body) -> str:
    return re.findall(r"^Problem: (.*)$", prompt_of(body), re.MULTILINE)[-1]


def rewriter(body: Body) -> str:
    """Writes chains as steps; some replies are no list, and some change the answer."""
    chain = parse_chain(question_of(body))
    steps = list(zip(step_titles(chain), expert_steps(chain), strict=True))
    kind = sum(map(ord, question_of(body))) % 5
    if kind == 0:
        return "I see."
    if kind == 1:
        steps[-1] = (steps[-1][0], "\\boxed{ 100 }")
    lines = (f"{n}. **{title}** {text}" for n, (title, text) in enumerate(steps, start=1))
    return "SOLUTION:\n" + "\n".join(lines)


def problems_of(folder: Path) -> dict[str, list[tuple[str, Any]]]:
    """Questions and prefixes of a run's step problems, without their ids."""
    return {
        name: [
            (row["question"], row["prefix"])
            for row in map(json.loads, (folder / "steps" / name).read_text().splitlines())
        ]
        for name in ("train.jsonl", "heldout.jsonl")
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Body], Any]:
    """The folder of a finished run, what was asked, and its summary."""
    folder = tmp_path_factory.mktemp("rewriting")
    with ChatServer(rewriter) as server:
        summary = run_stages(config_of(folder, "--srl.rewriter.url", server.url))
        return folder / "steps", server.completed, summary


def test_right_solutions_are_rewritten_and_losses_counted(
    undisturbed: tuple[Path, list[Body], Any],
) -> None:
    folder, asked, summary = undisturbed
    right = [row for row in rows() if not row["response"].endswith("{ 100 }")]
    assert sorted(map(question_of, asked)) == sorted(row["question"] for row in right)
    kinds = Counter(sum(map(ord, row["question"])) % 5 for row in right)
    assert kinds[0] and kinds[1]
    report = read_sealed(folder / "steps.json")
    assert report["num_solutions"] == NUM_SOLUTIONS
    assert report["discarded_wrong_answer"] == NUM_SOLUTIONS // 4
    assert report["discarded_rewriter_no_steps"] == kinds[0]
    assert report["discarded_rewriter_wrong_answer"] == kinds[1]
    assert report["num_used"] == len(right) - kinds[0] - kinds[1]
    assert report["rewriter_requests"] == len(right)
    assert report["rewriter_cost"] == report["rewriter_prompt_tokens"] > 0
    (entry,) = summary["stages"]
    assert entry["discarded_rewriter_no_steps"] == kinds[0]
    page = (folder / "srl.html").read_text(encoding="utf-8")
    assert "rewriter_wrong_answer" in page and "I see." in page and "1. " in page


def test_another_run_reads_the_rewritten_solutions(
    undisturbed: tuple[Path, list[Body], Any], tmp_path: Path
) -> None:
    made = undisturbed[0] / "demonstrations_srl.jsonl"
    written, _ = load_demonstrations(made, "coat")
    for demonstration in written:
        chain = parse_chain(demonstration.problem.question)
        first = f"1. **{step_titles(chain)[0]}** {expert_steps(chain)[0]}\n2. **"
        assert demonstration.response.startswith(first)
    run_stages(config_of(tmp_path, "--srl.parser", "numbered", expert=made))
    again = problems_of(tmp_path / "steps")
    assert again == problems_of(undisturbed[0])
    assert len(again["train.jsonl"]) > len(again["heldout.jsonl"]) > 0
    assert not (tmp_path / "steps" / "srl").exists()


def test_a_killed_run_asks_nothing_twice_and_ends_the_same(
    undisturbed: tuple[Path, list[Body], Any], tmp_path: Path
) -> None:
    with ChatServer(rewriter) as server:
        url = ("--srl.rewriter.url", server.url)

        def failing(body: Body) -> str:
            if len(server.completed) >= 7:
                server.faults.extend([Fault(status=500, text="gone")] * 9)
            return rewriter(body)

        server.answer = failing
        with pytest.raises(ChatError):
            run_stages(config_of(tmp_path, *url))
        server.answer, server.faults = rewriter, []
        assert 0 < len(server.completed) < len(undisturbed[1])
        finished = tmp_path / "steps/srl/finished.jsonl"
        assert 0 < finished.read_bytes().count(b"\n") < len(undisturbed[1])
        # The stage has begun: who writes stays who it was; where it is may change.
        with pytest.raises(ConfigError, match=r"srl\.rewriter\.model: .*; srl went by it"):
            run_stages(config_of(tmp_path, *url, "--srl.rewriter.model", "other"), resume=True)
        other = ("--srl.num_concurrent", "5", "--srl.rewriter.timeout_s", "60.0")
        run_stages(config_of(tmp_path, *url, *other), resume=True)
        asked = Counter(json.dumps(body, sort_keys=True) for body in server.completed)
    assert len(asked) == len(undisturbed[1]) and max(asked.values()) == 1
    for name in (
        "demonstrations_srl.jsonl",
        "srl.html",
        "srl/finished.jsonl",
        "steps.json",
        "steps/train.jsonl",
        "steps/heldout.jsonl",
        "models/srl/model.safetensors",
    ):
        whole, cut = undisturbed[0] / name, tmp_path / "steps" / name
        assert cut.read_bytes() == whole.read_bytes(), name


@pytest.mark.ranks
def test_two_processes_ask_once_and_have_the_same_steps(
    undisturbed: tuple[Path, list[Body], Any], tmp_path: Path
) -> None:
    with ChatServer(rewriter) as server:
        config_of(tmp_path)
        expert = ("--srl.expert", f"'{tmp_path / 'expert.jsonl'}'")
        run_on_two(tmp_path / "steps.toml", *expert, "--srl.rewriter.url", server.url)
        assert len(server.completed) == len(undisturbed[1])
    for name in ("demonstrations_srl.jsonl", "steps.json", "steps/train.jsonl"):
        alone, both = undisturbed[0] / name, tmp_path / "steps" / name
        assert both.read_bytes() == alone.read_bytes(), name


def test_an_agent_that_writes_no_steps_is_said_in_one_line(tmp_path: Path) -> None:
    with ChatServer(lambda body: "I see.") as server:
        config = config_of(tmp_path, "--srl.rewriter.url", server.url)
        with pytest.raises(
            ValueError, match=r"no step problem is left of 24 .* rewrite: "
        ) as caught:
            run_stages(config)
    message = str(caught.value)
    assert "18 x rewriter_no_steps (the first: " in message and ": I see.)" in message
    assert "6 x wrong_answer" in message and "\n" not in message


def test_measuring_a_model_does_not_ask_the_agent_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'srl.parser = "rewrite" would have every solution writ'):
        evaluate_model(config_of(tmp_path))
