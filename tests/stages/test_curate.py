# SPDX-License-Identifier: Apache-2.0
"""The pool that curation leaves: what goes and why, who is asked, killed and resumed, and that the
stages after it work on what is kept."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from satori_fast.config import Config, ConfigError, load_config
from satori_fast.data.sources import load_problems
from satori_fast.stages import run_stages
from satori_fast.stages.dry_run import dry_run
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.run import build_run
from satori_fast.storage import read_sealed
from satori_fast.synthesis.chat import ChatError
from tests.stages.two_processes import run_on_two
from tests.synthesis.chat_server import Body, ChatServer, Fault, prompt_of

TINY = """
schema_version = 1
name = "pool"
stages = ["curate"]
[model]
hidden_size = 32
num_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 64
[tokenizer]
kind = "bpe"
vocab_size = 400
[data]
format = "plain"
template = "plain"
eval_source = "held.jsonl"
eval_mapping = "coat"
max_prompt_tokens = 200
[packing]
max_tokens_per_microbatch = 1024
[rollout]
max_seqlen = 256
max_new_tokens = 16
[reward]
num_workers = 0
[supervised]
batch_size = 4
num_epochs = 1.0
[curate]
num_concurrent = 2
[curate.labeller]
kind = "endpoint"
model = "m"
max_retries = 0
prompt_price = 1000000.0
[evaluation]
num_problems = 2
"""
SUM = "Anna has {0} apples and buys {1} more on the market. How many apples does she have now?"
SUMS = [(a, a + 1) for a in range(2, 18)]


def row(question: str, answer: object, name: str = "") -> dict[str, str]:
    made = {"question": question, "answer": str(answer), "response": f"\\boxed{{{answer}}}"}
    return made | ({"problem_id": name} if name else {})


def rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Two data sets: the second has repetitions, invalid questions and wrong answers too."""
    first = [row(SUM.format(a, b), a + b) for a, b in SUMS[:8]]
    second = [row(SUM.format(a, b), a + b + (a % 4 == 3)) for a, b in SUMS[8:]]
    second += [row(SUM.format(*SUMS[0]).upper(), sum(SUMS[0]))]  # the same question
    near = SUM.format(*SUMS[1]).replace("Anna", "Maria")
    second += [row(near, sum(SUMS[1]), "near")]
    second += [row("Prove that 2 and 3 are primes.", 2, "proof")]
    second += [row("What is 3 of 7?", "\\frac{3}{"), row("What is 3 of 8?", "")]
    second += [row("In the figure below, what is the length of the side?", 2, "figure")]
    return first, second


def config_of(folder: Path, *overrides: str) -> Config:
    folder.mkdir(exist_ok=True)
    held = [row(SUM.format(a, a), 2 * a) for a in (2, 3)]
    for name, made in zip(("first", "second", "held"), (*rows(), held), strict=True):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in made))
    path = folder / "pool.toml"
    listed = ", ".join(
        f'{{ source = "{folder}/{name}.jsonl", mapping = "coat", weight = {weight} }}'
        for name, weight in (("first", 1.0), ("second", 2.0))
    )
    text = TINY.replace("[data]", f"[data]\nsources = [{listed}]")
    path.write_text(text.replace('"held.jsonl"', f'"{folder}/held.jsonl"'))
    return load_config(path, ["--output_dir", f"'{folder}'", *overrides])


def labeller(body: Body) -> str:
    """Adds the two numbers; of one sum it says nothing."""
    numbers = [int(text) for text in re.findall(r"\d+", prompt_of(body))]
    return "I do not know." if numbers[0] == 12 else f"\\boxed{{{sum(numbers)}}}"


def report_of(folder: Path) -> str:
    """The report, with the names of its data sets as they are in any folder."""
    return json.dumps(read_sealed(folder / "pool/curation.json")).replace(str(folder), "")


def kept_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "pool/problems.jsonl").open()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Body], Any]:
    """The folder of a finished run, what was asked, and its summary."""
    folder = tmp_path_factory.mktemp("curating")
    with ChatServer(labeller) as server:
        summary = run_stages(config_of(folder, "--curate.labeller.url", server.url))
        return folder, server.completed, summary


def test_what_is_left_out_is_counted_with_an_example(
    undisturbed: tuple[Path, list[Body], Any],
) -> None:
    folder, asked, summary = undisturbed
    report = read_sealed(folder / "pool/curation.json")
    wrong = [a for a, _ in SUMS[8:] if a % 4 == 3]
    assert {reason: each["count"] for reason, each in report["left_out"].items()} == {
        "proof": 1,
        "missing_figure": 1,
        "labeller_disagrees": len(wrong),
        "labeller_no_answer": 1,
        "near_duplicate": 1,
    }
    assert report["left_out"]["proof"]["example"]["problem_id"] == "second/proof"
    skipped = report["rows_skipped"]
    assert {reason: each["count"] for reason, each in skipped.items()} == {
        "answer cannot be graded": 1,
        "empty field 'answer'": 1,
    }
    place = skipped["answer cannot be graded"]["example"]
    assert "second.jsonl, row 12: " in place and report["figures"]["rows_skipped"] == 2
    example = report["left_out"]["labeller_disagrees"]["example"]
    numbers = [int(text) for text in re.findall(r"\d+", example["question"])]
    assert example["detail"] == f"{sum(numbers)} instead of {example['answer']}"
    figures = report["figures"]
    # 16 sums and three others; the repeated question was read once.
    assert figures["num_problems"] == 19 and figures["num_kept"] == 19 - 4 - len(wrong)
    assert figures["labels_agree"] == 17 - len(wrong) - 1
    assert figures["left_out_proof"] == 1 and figures["labels_labeller_no_answer"] == 1
    assert figures["labeller_requests"] == 17
    assert figures["labeller_cost"] == figures["labeller_prompt_tokens"] > 0
    (entry,) = summary["stages"]
    assert {name: entry[name] for name in figures} == figures
    # Invalid questions are not paid for.
    assert len(asked) == 17 and not any("Prove" in prompt_of(body) for body in asked)


def test_what_is_kept_is_a_source_of_other_runs(
    undisturbed: tuple[Path, list[Body], Any],
) -> None:
    folder, _, _ = undisturbed
    problems, _ = load_problems(folder / "pool/problems.jsonl", "coat")
    kept = kept_of(folder)
    assert [(p.question, p.answer) for p in problems] == [
        (each["question"], each["answer"]) for each in kept
    ]
    right = {SUM.format(a, b) for a, b in SUMS if not (a >= 10 and a % 4 == 3) and a != 12}
    near = [each for each in kept if each["question"] not in right]
    # Of two that are nearly the same the first of the pool stays, whichever that is.
    assert {each["question"] for each in kept} - right == {each["question"] for each in near}
    assert len(near) <= 1 and len(kept) == len(right)
    sources = Counter(each["problem_id"].partition("/")[0] for each in kept)
    assert set(sources) == {"first", "second"}
    # Mixed, and not one after the other.
    order = [each["problem_id"].partition("/")[0] for each in kept]
    assert order != sorted(order) and order != sorted(order, reverse=True)


def test_a_killed_run_asks_nothing_twice_and_ends_the_same(
    undisturbed: tuple[Path, list[Body], Any], tmp_path: Path
) -> None:
    with ChatServer(labeller) as server:
        url = ("--curate.labeller.url", server.url)

        def failing(body: Body) -> str:
            if len(server.completed) >= 7:  # two are answered at once
                server.faults.extend([Fault(status=500, text="gone")] * 9)
            return labeller(body)

        server.answer = failing
        with pytest.raises(ChatError):
            run_stages(config_of(tmp_path, *url))
        assert not (tmp_path / "pool/problems.jsonl").exists()
        server.answer, server.faults = labeller, []
        with pytest.raises(ConfigError, match=r"curate\.near_duplicates: .*; curate went by it"):
            run_stages(config_of(tmp_path, *url, "--curate.near_duplicates", "0.0"), resume=True)
        other = ("--curate.num_concurrent", "5", "--curate.labeller.timeout_s", "60.0")
        run_stages(config_of(tmp_path, *url, *other), resume=True)
        asked = Counter(json.dumps(body, sort_keys=True) for body in server.completed)
    assert len(asked) == len(undisturbed[1]) and max(asked.values()) == 1
    for name in ("problems.jsonl", "curate/finished.jsonl"):
        whole, cut = undisturbed[0] / "pool" / name, tmp_path / "pool" / name
        assert cut.read_bytes() == whole.read_bytes(), name
    assert report_of(tmp_path) == report_of(undisturbed[0])


def test_later_stages_and_a_resumed_run_work_on_what_is_kept(tmp_path: Path) -> None:
    options = ("--stages", "['curate', 'supervised']", "--curate.labeller.kind", "none")
    config = config_of(tmp_path, *options)
    summary = run_stages(config)
    kept = [each["problem_id"] for each in kept_of(tmp_path)]
    assert len(kept) == 19 - 3 and summary["stages"][0]["num_kept"] == len(kept)
    assert "labels_agree" not in summary["stages"][0]
    for _ in range(2):
        with build_run(config, resume=True) as run:
            first, second = (run.context(plan) for plan in plan_stages(config))
        assert len(first.problems) == 19
        assert [problem.problem_id for problem in second.problems] == kept
        assert len(second.heldout) == 2
    # Imitated is what the pool demonstrates for them: an epoch of 16 in batches of four.
    steps = [json.loads(line) for line in (tmp_path / "pool/metrics.jsonl").open()]
    assert [line["stage"] for line in steps].count("supervised") >= 4
    with pytest.raises(ConfigError, match=r"problems\.jsonl is not what this run wrote"):
        (tmp_path / "pool/problems.jsonl").write_text("")
        build_run(config, resume=True)


@pytest.mark.ranks
def test_two_processes_ask_once_and_keep_the_same(
    undisturbed: tuple[Path, list[Body], Any], tmp_path: Path
) -> None:
    with ChatServer(labeller) as server:
        config_of(tmp_path)
        run_on_two(tmp_path / "pool.toml", "--curate.labeller.url", server.url)
        assert len(server.completed) == len(undisturbed[1])
    alone, both = (place / "pool/problems.jsonl" for place in (undisturbed[0], tmp_path))
    assert both.read_bytes() == alone.read_bytes()
    assert report_of(tmp_path) == report_of(undisturbed[0])


def test_nothing_left_is_one_line(tmp_path: Path) -> None:
    with ChatServer(lambda body: "\\boxed{0}") as server:
        config = config_of(tmp_path, "--curate.labeller.url", server.url)
        with pytest.raises(ConfigError, match="curate leaves none of 19 problems: ") as caught:
            run_stages(config)
    message = str(caught.value)
    assert "17 x labeller_disagrees (" in message and "1 x proof (second/proof: Prove" in message
    assert "\n" not in message and not (tmp_path / "pool/problems.jsonl").exists()


def test_a_labeller_that_cannot_work_is_refused_first(tmp_path: Path) -> None:
    scripted = config_of(tmp_path, "--curate.labeller.kind", "scripted")
    with pytest.raises(ConfigError, match=r'kind = "scripted" knows .* not ".*first\.jsonl \+ '):
        run_stages(scripted)
    nobody = config_of(tmp_path, "--curate.labeller.kind", "vllm", "--name", "other")
    with pytest.raises(ConfigError, match=r"curate\.labeller"):
        run_stages(nobody)


def test_a_dry_run_curates_first() -> None:
    options = ["--stages", '["curate", "synthesize", "supervised"]']
    options += ["--curate.labeller.kind", "endpoint", "--curate.labeller.model", "m"]
    options += ["--data.sources", '[{ source = "gsm8k" }, { source = "math", weight = 2.0 }]']
    options += [
        "--curate.num_labels",
        "3",
        "--curate.labeller.temperature",
        "0.6",
    ]
    options += ["--tokenizer.kind", "model", "--model.path", "owner/model", "--curate.agreement"]
    summary = dry_run(load_config("configs/debug/grpo.toml", [*options, "2"]))
    entries = {entry["stage"]: entry for entry in summary["stages"]}
    assert list(entries) == ["curate", "synthesize", "supervised"]
    curated = entries["curate"]
    assert curated["num_kept"] == curated["num_problems"] == 16
    assert curated["labels_agree"] == 3 * 16
