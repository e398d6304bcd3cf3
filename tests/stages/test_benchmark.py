# SPDX-License-Identifier: Apache-2.0
"""eval MODEL --benchmarks on a tiny random model: whole, killed, resumed, and refused."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satori_fast.config import ConfigError
from satori_fast.data.tokenizer import train_tokenizer
from satori_fast.evaluation.benchmark_sets import load_benchmark
from satori_fast.evaluation.benchmarks import BENCHMARKS
from satori_fast.evaluation.responses import ResponseFile
from satori_fast.stages.benchmark import BenchmarkOptions, evaluate_benchmarks
from satori_fast.storage import read_sealed
from tests.tiny_models import tiny_model

QUESTIONS = [f"What is {n} + {n}?" for n in range(6)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and two benchmarks of six and two rows."""
    folder = tmp_path_factory.mktemp("eval")
    tokenizer = train_tokenizer(QUESTIONS, 300, special_tokens=("<|im_start|>", "<|im_end|>"))
    model = tiny_model(
        "qwen2", vocab_size=len(tokenizer) + 8, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"question": q, "answer": f"#### {2 * n}"} for n, q in enumerate(QUESTIONS)]
    (folder / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    yes_no = [{"qid": f"q{n}", "question": f"Is {n} odd?", "answer": n % 2 == 1} for n in range(2)]
    (folder / "strategyqa.json").write_text(json.dumps(yes_no))
    return folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def options(place: Path, output: Path, **changes: Any) -> BenchmarkOptions:
    asked = BenchmarkOptions(
        model=str(place / "model"),
        benchmarks=("gsm8k", "strategyqa"),
        data_dir=place,
        output=output,
        max_new_tokens=12,
    )
    return replace(asked, **changes)


def lines(output: Path) -> list[bytes]:
    return (output / "responses.jsonl").read_bytes().splitlines(keepends=True)


def test_every_problem_is_in_the_result(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate_benchmarks(options(place, tmp_path / "out"))
    assert {name: r["num_problems"] for name, r in result["benchmarks"].items()} == {
        "gsm8k": 6,
        "strategyqa": 2,
    }
    assert result["protocol"]["max_new_tokens"] == 12
    assert list(result["model"]) == sorted(result["model"])
    assert "model.safetensors" in result["model"]
    assert result["benchmarks"]["gsm8k"]["partial"]
    assert (
        "is partial: 6 questions, 1319 are published" in result["benchmarks"]["gsm8k"]["faults"][0]
    )
    assert read_sealed(tmp_path / "out" / "evaluation.json") == result
    assert len(lines(tmp_path / "out")) == 1 + 8
    assert "GSM8K" in capsys.readouterr().out


def test_killed_at_any_moment_it_ends_the_same_and_asks_for_nothing_twice(
    place: Path, tmp_path: Path
) -> None:
    sampled = {"num_samples": 2, "temperature": 1.0}
    evaluate_benchmarks(options(place, tmp_path / "whole", **sampled))
    evaluation = (tmp_path / "whole" / "evaluation.json").read_bytes()
    written = b"".join(lines(tmp_path / "whole"))
    rng = np.random.default_rng([20])
    for number, cut in enumerate(rng.integers(len(lines(tmp_path / "whole")[0]), len(written), 3)):
        output = tmp_path / f"killed-{number}"
        output.mkdir()
        (output / "responses.jsonl").write_bytes(written[:cut])
        evaluate_benchmarks(options(place, output, **sampled))
        assert (output / "evaluation.json").read_bytes() == evaluation
        assert sorted(lines(output)) == sorted(written.splitlines(keepends=True))
        assert b"".join(lines(output)).startswith(written[: written.rfind(b"\n", 0, cut) + 1])


def test_grading_again_and_more_samples_ask_only_for_what_is_missing(
    place: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    sampled = {"temperature": 1.0, "benchmarks": ("gsm8k",)}
    evaluate_benchmarks(options(place, output, **sampled))
    first = lines(output)
    (output / "evaluation.json").unlink()
    evaluate_benchmarks(options(place, output, **sampled))
    assert lines(output) == first
    result = evaluate_benchmarks(options(place, output, num_samples=3, **sampled))
    assert lines(output)[: len(first)] == first
    assert len(lines(output)) == 1 + 18
    assert list(result["benchmarks"]["gsm8k"]["pass_at_k"]) == ["1", "2", "3"]


def test_another_protocol_or_model_is_not_continued(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    evaluate_benchmarks(options(place, output, limit=1, benchmarks=("gsm8k",)))
    with pytest.raises(ConfigError, match="of another evaluation: its protocol is"):
        evaluate_benchmarks(options(place, output, max_new_tokens=13))
    with pytest.raises(ConfigError, match="its seed is 0, not 1"):
        evaluate_benchmarks(options(place, output, seed=1))
    changed = tmp_path / "changed"
    changed.mkdir()
    row = {"question": "What is 0 plus 0?", "answer": "#### 0"}
    (changed / "gsm8k.jsonl").write_text(json.dumps(row))
    with pytest.raises(ConfigError, match="gsm8k/1 was asked in other words before"):
        evaluate_benchmarks(options(place, output, data_dir=changed, benchmarks=("gsm8k",)))


def test_what_cannot_be_asked_is_one_line(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    for changes, message in [
        ({"benchmarks": ("aime25",)}, "no benchmark is there: benchmark aime25: .* holds no"),
        ({"benchmarks": ("aime",)}, "--benchmarks: 'aime' is no benchmark"),
        ({"protocol": "chat"}, 'protocol "chat" asks in the chat template'),
        ({"protocol": "mine"}, "--protocol: 'mine' is no protocol"),
        ({"protocol": "config"}, "needs a config"),
        ({"strict": True}, r"gsm8k \(--strict\): .* is partial"),
        ({"model": str(place)}, "holds no model"),
        ({"benchmarks": ("heldout",)}, "held-out problems of a built-in domain"),
    ]:
        with pytest.raises(ConfigError, match=message):
            evaluate_benchmarks(options(place, output, **changes))
    with pytest.raises(ConfigError, match="--samples 4 with --temperature 0"):
        options(place, output, num_samples=4)
    assert not output.exists()
    result = evaluate_benchmarks(options(place, output, benchmarks=("aime25", "strategyqa")))
    assert list(result["benchmarks"]) == ["strategyqa"]
    assert "holds no aime25.jsonl" in result["missing"]["aime25"]
    assert "holds no aime25.jsonl" in caplog.text


def test_a_prompt_beyond_the_context_counts_as_wrong_and_the_others_run(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": QUESTIONS[0] * n, "answer": "#### 0"} for n in (1, 100)]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = options(place, tmp_path / "out", data_dir=tmp_path, benchmarks=("gsm8k",))
    result = evaluate_benchmarks(asked)["benchmarks"]["gsm8k"]
    assert (result["num_problems"], result["not_asked"]) == (2, ["gsm8k/2"])
    assert result["scores"]["gsm8k/2"] == 0
    assert "1 prompts leave no room for a response: gsm8k/2" in caplog.text


def test_questions_in_training_files_are_told(place: Path, tmp_path: Path) -> None:
    words = " ".join(f"word{n}" for n in range(20))
    rows = [{"question": f"{words} {n}", "answer": f"#### {n}"} for n in range(2)]
    rows += [{"question": "Another one, much shorter?", "answer": "#### 1"}]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": f"so {words} 0 and more"}))
    asked = options(place, tmp_path / "out", data_dir=tmp_path, benchmarks=("gsm8k",))
    training = (tmp_path / "train.jsonl",)
    found = evaluate_benchmarks(replace(asked, contamination=training))["benchmarks"]["gsm8k"]
    overlaps = {each["problem_id"]: each["text"] for each in found["contamination"]["overlaps"]}
    assert overlaps == {"gsm8k/1": f"{words} 0", "gsm8k/2": words}
    assert found["contamination"]["too_short"] == ["gsm8k/3"]
    assert found["contamination"]["accuracy_without"]["n"] == 1
    assert "In training files" in (tmp_path / "out" / "gsm8k.html").read_text()


def test_functions_are_not_run_without_isolation(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"code": "def f(x):\n    return x", "input": "1", "output": "1", "id": "s"}
    (tmp_path / "cruxeval.jsonl").write_text(json.dumps(row))
    monkeypatch.setattr("satori_fast.evaluation.sandbox.isolation_fault", lambda: "no namespaces")
    names = ("cruxeval_output", "cruxeval_input")
    asked = options(place, tmp_path / "out", data_dir=tmp_path, benchmarks=names)
    result = evaluate_benchmarks(asked)
    assert list(result["benchmarks"]) == ["cruxeval_output"]
    assert "cannot isolate here (no namespaces)" in result["missing"]["cruxeval_input"]
    trusted = replace(asked, output=tmp_path / "trusted", trusted=True)
    assert list(evaluate_benchmarks(trusted)["benchmarks"]) == list(names)


def test_responses_are_there_before_they_are_graded(place: Path, tmp_path: Path) -> None:
    result = evaluate_benchmarks(options(place, tmp_path / "out", benchmarks=("gsm8k",)))
    identity = {key: result[key] for key in ("model", "protocol", "temperature", "seed")}
    identity |= {"engine": "embedded", "dtype": "float32"}
    file = ResponseFile(tmp_path / "out" / "responses.jsonl", identity)
    file.close()
    assert all(r.prompt.endswith("assistant\n") for r in file.responses.values())
    assert {r.num_tokens for r in file.responses.values()} <= set(range(1, 13))


def test_the_built_in_problems_by_a_configs_own_protocol(place: Path, tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text(
        'schema_version = 1\n[data]\nnum_train = 9\ntemplate = "plain"\nformat = "plain"\n'
        "[evaluation]\nnum_problems = 5\nmax_new_tokens = 7\n"
        "[reinforce.restarts]\nenabled = false\n"
    )
    asked = options(place, tmp_path / "out", benchmarks=("heldout",), protocol="config")
    result = evaluate_benchmarks(replace(asked, config=config, max_new_tokens=None))
    assert result["benchmarks"]["heldout"]["num_problems"] == 5
    assert result["protocol"]["template"] == "{question}\n"
    assert result["protocol"]["max_new_tokens"] == 7


# The rows of the table whose data is published as files that a session can hold; CRUXEval is two.
PUBLISHED = tuple(
    name for name in BENCHMARKS if name not in ("mmlu_pro_stem", "boardgameqa", "tablebench")
)
ENGINES = [
    pytest.param("embedded", marks=pytest.mark.slow),
    pytest.param(
        "vllm",
        marks=[
            pytest.mark.slow,
            pytest.mark.vllm,
            pytest.mark.skipif(
                importlib.util.find_spec("vllm") is None,
                reason="vLLM is not installed: make setup-vllm",
            ),
        ],
    ),
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A tiny random model with a tokenizer of the real questions and room for the longest."""
    folder = tmp_path_factory.mktemp("reader")
    sets = [load_benchmark(BENCHMARKS[name], data_dir / "benchmarks") for name in PUBLISHED]
    questions = [item.problem.question for each in sets for item in each.items[:100]]
    tokenizer = train_tokenizer(questions, 1500, special_tokens=("<|im_start|>", "<|im_end|>"))
    model = tiny_model(
        "qwen2",
        vocab_size=len(tokenizer) + 7,
        num_hidden_layers=2,
        num_attention_heads=2,  # vLLM's CPU attention wants heads of 32 numbers or more
        num_key_value_heads=2,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def eval_command(model: Path, data_dir: Path, output: Path, engine: str) -> list[str]:
    command = f"-m satori_fast eval {model} --benchmarks {' '.join(PUBLISHED)} --limit 12"
    command += f" --data-dir {data_dir / 'benchmarks'} --output {output} --max-new-tokens 8"
    return [sys.executable, *command.split(), f"--rollout.engine={engine}"]


def run_eval(command: Sequence[str], *, kill_after_lines: int | None = None) -> None:
    """Run to the end, or until so many responses are on disk and a while longer."""
    output = Path(command[command.index("--output") + 1])
    process = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    if kill_after_lines is None:
        assert process.wait(timeout=900) == 0
        return
    file = output / "responses.jsonl"
    while process.poll() is None:
        if file.exists() and file.read_bytes().count(b"\n") > kill_after_lines:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def embedded(reader: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of all published sets by the embedded engine, never killed."""
    output = tmp_path_factory.mktemp("embedded")
    run_eval(eval_command(reader, data_dir, output, "embedded"))
    return output


@pytest.mark.parametrize("engine", ENGINES)
def test_all_sets_by_either_engine_survive_kills_and_give_the_same_answers(
    engine: str, reader: Path, embedded: Path, data_dir: Path, tmp_path: Path
) -> None:
    command = eval_command(reader, data_dir, tmp_path, engine)
    total = 12 * len(PUBLISHED)
    for lines_before in np.random.default_rng([20]).integers(0, total, 2):
        run_eval(command, kill_after_lines=int(lines_before))
    there = lines(tmp_path)[:-1]  # the last may be torn
    run_eval(command)
    assert lines(tmp_path)[: len(there)] == there
    assert len(lines(tmp_path)) == 1 + total
    of_engine = {"engine", "sha256"}
    ours, theirs = (read_sealed(folder / "evaluation.json") for folder in (tmp_path, embedded))
    assert ours["engine"] == engine
    assert {k: v for k, v in ours.items() if k not in of_engine} == {
        k: v for k, v in theirs.items() if k not in of_engine
    }
    responses = [set(lines(folder)[1:]) for folder in (tmp_path, embedded)]
    assert responses[0] == responses[1]
    if engine == "embedded":
        files = [(folder / "evaluation.json").read_bytes() for folder in (tmp_path, embedded)]
        assert files[0] == files[1]
