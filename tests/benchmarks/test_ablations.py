# SPDX-License-Identifier: Apache-2.0
"""The tables of accuracy, from run folders that are finished already."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest

from benchmarks.ablations import frontier, gullible, s2r, satori
from benchmarks.ablations.runs import FIELDS, noise_of_a_run
from satori_fast.config import load_config
from satori_fast.data.arithmetic import check_text, domain_words, name_answer, parse_puzzle
from satori_fast.data.formats.coat import CONTINUE, EXPLORE, REFLECT
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.storage import write_sealed, write_sealed_records
from satori_fast.types import Prefix, Problem

VERIFYING = ("verification_accuracy", "accuracy_on_right", "error_recall", "correct_precision")


def _verifying(stage: str) -> float | None:
    """Plain solutions have no verification."""
    return None if stage == "supervised" else 0.75


def finish(folder: Path, name: str, names: Sequence[str] = FIELDS, /, **accuracies: float) -> None:
    """A run folder whose stages ended with these accuracies; its other figures, `names`, are 1."""
    fields = dict.fromkeys({*names, "wall_s"}, 1.0)
    stages = [
        {"stage": stage, "num_problems": 40, **fields, "accuracy": accuracy}
        | {"verification": {"trials": 2.0, **dict.fromkeys(VERIFYING, _verifying(stage))}}
        for stage, accuracy in accuracies.items()
    ]
    (folder / name).mkdir(parents=True)
    (folder / name / "summary.json").write_text(json.dumps({"stages": stages}))


def test_finished_runs_are_not_repeated_and_arms_are_paired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, (full, again, round_2) in enumerate([(0.5, 0.7, 0.8), (0.6, 0.8, 0.9)]):
        finish(tmp_path, f"full-{seed}", supervised=0.2, reinforce=full, reinforce_2=round_2)
        finish(tmp_path, f"full-{seed}-1", reinforce=again)
        finish(tmp_path, f"no_bonus-{seed}", reinforce=full + 0.1)
        finish(tmp_path, f"no_bonus-{seed}-1", reinforce=again - 0.3)
    output = tmp_path / "table.json"
    command = ["satori", "--seeds", "0", "1", "--repeats", "2", "--arms", "full", "no_bonus"]
    places = ["--folder", str(tmp_path), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [*command, *places])
    satori.main()
    table = json.loads(output.read_text())["arms"]
    assert list(table) == ["no_rl", "round_2", "full", "no_bonus"]
    assert table["full"]["accuracy"]["values"] == [0.5, 0.7, 0.6, 0.8]
    assert table["full"]["accuracy"]["mean"] == pytest.approx(0.65)
    assert table["round_2"]["accuracy"]["standard_error"] == pytest.approx(0.05)
    over = table["no_bonus"]["over_full"]
    assert over["values"] == pytest.approx([0.1, -0.3, 0.1, -0.3])
    # The standard deviation of four numbers at +-0.2 is 0.4 / sqrt 3, over sqrt 4.
    assert (over["mean"], over["standard_error"]) == pytest.approx((-0.1, 0.2 / 3**0.5))
    # One run of each seed has no pair in two runs of each.
    assert "over_full" not in table["round_2"] and "over_full" not in table["full"]


def test_the_arms_of_s2r_start_from_one_model_and_show_their_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, runs in enumerate([(0.5, 0.7), (0.6, 0.6)]):
        finish(tmp_path, f"imitated-{seed}", supervised=0.4, initialise=0.45)
        for repeat, accuracy in enumerate(runs):
            finish(tmp_path, f"outcome-{seed}-{repeat}", reinforce=accuracy + 0.1)
            finish(tmp_path, f"process-{seed}-{repeat}", reinforce=accuracy)
            finish(tmp_path, f"offline-{seed}-{repeat}", offline=0.5)
    output = tmp_path / "table.json"
    places = ["--folder", str(tmp_path), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["s2r", "--seeds", "0", "1", "--repeats", "2", *places])
    s2r.main()
    result = json.loads(output.read_text())
    table, noise = result["arms"], result["standard_deviation_of_a_run"]
    assert list(table) == ["base", "imitation", "outcome", "process", "offline"]
    assert table["base"]["error_recall"] == {
        "mean": None,
        "standard_error": None,
        "values": [None, None],
    }
    assert table["imitation"]["error_recall"]["mean"] == 0.75
    assert table["outcome"]["over_process"]["mean"] == pytest.approx(0.1)
    assert list(noise) == ["outcome", "process", "offline"]
    # Of one model's runs the variance is 0.02, of the other's 0: models differ by more than runs.
    assert noise["process"]["accuracy"] == pytest.approx(0.1)
    assert noise["outcome"]["over_process"] == pytest.approx(0.0)


def finish_frontier(folder: Path, name: str, stage: str, *accuracies: float) -> None:
    """As `finish`, with the accuracy after each attempt, two steps, and a buffer of 7 tokens."""
    finish(folder, name, **{stage: accuracies[-1]})
    rows = [{"attempts": k, "accuracy": a} for k, a in enumerate(accuracies, start=1)]
    entries = [{"stage": "other", "by_attempts": []}, {"stage": stage, "by_attempts": rows}]
    write_sealed(folder / name / "analysis.json", {"stages": entries})
    steps = [{"stage": stage, "rollout/completion_tokens": 100.0} for _ in range(12)]
    for step in steps[:4]:
        step["rollout/accuracy_restart_incorrect"] = 0.25
    steps[3]["rollout/accuracy_restart_incorrect"] = 0.75
    lines = [{"stage": "supervised", "update/tokens": 3.0}, *steps]
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / name / "solutions").mkdir()
    solutions = [{"response_ids": [1, 2, 3]}, {"response_ids": [4, 5, 6, 7]}]
    write_sealed_records(folder / name / "solutions" / "model.jsonl", solutions)


def test_the_frontier_is_read_off_one_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_frontier(tmp_path, "tuned-0", "supervised", 0.1, 0.2)
    for repeat in range(2):
        for arm in frontier.ARMS:
            finish_frontier(tmp_path, f"{arm}-0-{repeat}", "reinforce", 0.1, 0.2, 0.3, 0.35)
    output = tmp_path / "table.json"
    places = ["--folder", str(tmp_path), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["frontier", "--seeds", "0", "--repeats", "2", *places])
    frontier.main()
    result = json.loads(output.read_text())
    table = result["arms"]
    assert list(table) == ["format tuning", "no_restart", "once", "refreshed", "whole_long"]
    means = {name: cell["mean"] for name, cell in table["refreshed"].items()}
    assert (means["accuracy_3"], means["accuracy_6"], means["accuracy_20"]) == (0.3, 0.35, 0.35)
    # Of the last ten steps two have D- restarts; twelve steps and one buffer.
    assert (means["accuracy_restart_incorrect"], means["generated_tokens"]) == (0.5, 1207.0)
    assert table["format tuning"]["accuracy_12"]["mean"] == 0.2
    assert table["format tuning"]["generated_tokens"]["mean"] is None
    assert "over_no_restart" in table["once"] and "once" in result["standard_deviation_of_a_run"]


def test_nothing_attempted_is_nothing_right(tmp_path: Path) -> None:
    write_sealed(tmp_path / "analysis.json", {"stages": [{"stage": "x", "by_attempts": []}]})
    assert set(frontier.by_attempts(tmp_path, "x").values()) == {0.0}


def test_the_frontier_has_room_for_the_attempts_that_it_speaks_of() -> None:
    config = load_config(frontier.CONFIG)
    tokenizer = build_word_tokenizer(domain_words())
    puzzle = parse_puzzle("p 1 q 2 r 3 s 4 t 6 u 9 pick 3 sum 6")
    answered: list[str] = []  # responses of 1, 2, ... attempts, the last one not yet checked
    text = ""
    for choice in combinations(range(6), 3):
        answered.append(
            f"{text}{name_answer(choice[:2])}{CONTINUE} \\boxed{{ {name_answer(choice)} }}"
        )
        text = f"{answered[-1]}{REFLECT} {check_text(choice, puzzle)}{EXPLORE} less{CONTINUE} "
    lengths = [len(tokenizer(response)["input_ids"]) for response in answered]
    check = len(tokenizer(REFLECT + check_text((0, 1, 2), puzzle))["input_ids"])
    assert lengths[2] + check < config.rollout.max_new_tokens < lengths[3]
    assert len(answered) == 20 == frontier.ATTEMPTS[-1]
    room = config.evaluation.max_new_tokens
    assert room is not None and lengths[-1] + check < room == config.solutions.max_new_tokens
    renderer = PromptRenderer(tokenizer, PLAIN_TEMPLATE, config.data.max_prompt_tokens)
    restart = Prefix(answered[-1] + REFLECT, "restart", correct=False)
    assert renderer.fits(Problem("p", puzzle.question, puzzle.answer, prefix=restart))
    # The arm of long rollouts has what the evaluation has.
    assert frontier.ARMS["whole_long"][-1] == str(room)


def test_verdicts_are_told_apart_by_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(tmp_path, "tuned-0", gullible.FIELDS, supervised=0.4)
    for arm, accuracy in zip(gullible.ARMS, (0.4, 0.3, 0.2, 0.6), strict=True):
        finish(tmp_path, f"{arm}-0-0", gullible.FIELDS, reinforce=accuracy)
    output = tmp_path / "table.json"
    places = ["--folder", str(tmp_path), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["gullible", "--seeds", "0", "--repeats", "1", *places])
    gullible.main()
    table = json.loads(output.read_text())["arms"]
    assert list(table) == ["format tuning", "none", "right_only", "wrong_only", "both"]
    assert table["both"]["over_none"]["mean"] == pytest.approx(0.2)
    assert set(gullible.FIELDS) <= set(table["right_only"])


def test_the_arms_of_the_gullible_have_the_buffers_that_they_are_named_after() -> None:
    shares: dict[str, tuple[float, ...] | None] = {}
    for arm, overrides in gullible.ARMS.items():
        config = load_config(gullible.CONFIG, overrides)
        own = config.reinforce.restarts
        weights = (own.original_weight, own.correct_weight, own.incorrect_weight)
        shares[arm] = weights if config.restarts_enabled else None
    assert shares == {
        "none": None, "right_only": (0, 1, 0), "wrong_only": (0, 0, 1), "both": (0, 1, 1),
    }  # fmt: skip


def test_the_noise_of_runs_without_a_figure_is_not_known() -> None:
    assert noise_of_a_run([None, 0.5], 2) is None
