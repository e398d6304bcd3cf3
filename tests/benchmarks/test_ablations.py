# SPDX-License-Identifier: Apache-2.0
"""The tables of accuracy, from run folders that are finished already."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.ablations import chains, frontier, gullible, rare, restarts, s2r, satori, srl
from benchmarks.ablations.runs import EVALUATED
from benchmarks.ablations.tables import FIELDS, first_difference
from satori_fast.config import load_config
from satori_fast.data.arithmetic import check_text, domain_words, name_answer, parse_puzzle
from satori_fast.data.formats.coat import CONTINUE, EXPLORE, REFLECT
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.profiling.statistics import NUM_LATE_EVALUATIONS
from satori_fast.storage import write_sealed, write_sealed_records
from satori_fast.types import Prefix, Problem

VERIFYING = ("verification_accuracy", "accuracy_on_right", "error_recall", "correct_precision")


def _verifying(stage: str) -> float | None:
    """Plain solutions have no verification."""
    return None if stage == "supervised" else 0.75


def finish(
    folder: Path,
    name: str,
    more: Sequence[str] = (),
    /,
    *,
    gradients: tuple[float, ...] = (1.0, 2.0),
    **accuracies: float,
) -> None:
    """A run folder whose stages ended with these accuracies; other figures, `more` too, are 1.

    Each stage has a line per gradient, and six evaluations: five are 0.1 below the last one, and
    the first is 0.
    """
    fields = dict.fromkeys({*FIELDS, *more, "wall_s"}, 1.0)
    stages = [
        {"stage": stage, "num_problems": 40, **fields, "accuracy": accuracy}
        | {"verification": {"trials": 2.0, **dict.fromkeys(VERIFYING, _verifying(stage))}}
        for stage, accuracy in accuracies.items()
    ]
    (folder / name).mkdir(parents=True)
    (folder / name / "summary.json").write_text(json.dumps({"stages": stages}))
    lines: list[dict[str, Any]] = []
    for stage, accuracy in accuracies.items():
        evaluated = [0.0, *[accuracy - 0.1] * 4, accuracy]
        lines += [
            {"stage": stage, "step": step, "update/grad_norm": norm}
            for step, norm in enumerate(gradients)
        ]
        lines += [
            {"stage": stage, "step": 10 + i, "eval/accuracy": share}
            for i, share in enumerate(evaluated)
        ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / name / "metrics.jsonl").write_text(text)


def table_of(
    driver: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str
) -> dict[str, Any]:
    output = folder / "table.json"
    places = ["--folder", str(folder), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["driver", *options, *places])
    (driver.STUDY if hasattr(driver, "STUDY") else driver).main()
    return json.loads(output.read_text())


def test_finished_runs_are_not_repeated_and_errors_are_over_tunings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, (full, again, round_2) in enumerate([(0.5, 0.7, 0.8), (0.6, 0.8, 0.9)]):
        finish(tmp_path, f"full-{seed}", supervised=0.2, reinforce=full, reinforce_2=round_2)
        finish(tmp_path, f"full-{seed}-1", reinforce=again)
        finish(tmp_path, f"no_bonus-{seed}", reinforce=full + 0.1)
        finish(tmp_path, f"no_bonus-{seed}-1", reinforce=again - 0.1 * (1 + seed))
    options = ["--seeds", "0", "1", "--repeats", "2", "--arms", "full", "no_bonus"]
    result = table_of(satori, tmp_path, monkeypatch, *options)
    table = result["arms"]
    assert list(table) == ["no_rl", "round_2", "full", "no_bonus"]
    accuracy = table["full"]["accuracy"]
    assert accuracy["values"] == [[0.5, 0.7], [0.6, 0.8]]
    # Two tunings at 0.6 and 0.7: the error is that of two values, not of four.
    assert (accuracy["n"], accuracy["mean"]) == (2, pytest.approx(0.65))
    assert accuracy["standard_error"] == pytest.approx(0.05)
    assert accuracy["interval"] == pytest.approx([0.65 - 12.706 * 0.05, 0.65 + 12.706 * 0.05])
    # Within a tuning two runs lie 0.2 apart.
    assert accuracy["noise_of_a_run"] == pytest.approx(0.2 / 2**0.5)
    late = table["full"]["late_accuracy"]
    assert late["mean"] == pytest.approx(0.65 - 4 * 0.1 / 5)
    assert table["full"]["late_evaluations"]["mean"] == 5
    # Over the tunings: (0.1 - 0.1) / 2 and (0.1 - 0.2) / 2.
    difference = table["no_bonus"]["difference"]["accuracy"]
    assert (difference["n"], difference["mean"]) == (2, pytest.approx(-0.025))
    assert difference["standard_error"] == pytest.approx(0.025)
    # Paired by seed with what is averaged over the runs of a tuning.
    assert table["round_2"]["difference"]["accuracy"]["mean"] == pytest.approx(0.2)
    printed = capsys.readouterr().out
    assert f"predicted: {satori.ARMS['no_bonus'].prediction}" in printed
    assert table["no_bonus"]["prediction"] == satori.ARMS["no_bonus"].prediction
    assert "standard deviation of a repeated run, accuracy: " in printed


def test_what_a_summary_leaves_out_comes_from_the_last_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path, "tuned-0", supervised=0.4)
    for arm, slips in (("no_restart", 0.2), ("middle", 0.6)):
        finish(tmp_path, f"{arm}-0-0", reinforce=0.5)
        last = {"stage": "reinforce", "step": 20, "eval/accuracy": 0.5, "eval/slips": slips}
        last |= {"eval/slips_mended": 0.0, "eval/wrong_to_right": 0.7}
        with (tmp_path / f"{arm}-0-0" / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(last) + "\n")
    options = ["--seeds", "0", "--repeats", "1", "--arms", "no_restart", "middle"]
    table = table_of(chains, tmp_path, monkeypatch, *options)["arms"]
    assert [table[arm]["slips"]["values"] for arm in ("no_restart", "middle")] == [[[0.2]], [[0.6]]]
    # A figure of both is the summary's.
    assert table["middle"]["wrong_to_right"]["values"] == [[1.0]]
    assert table["format_tuning"]["slips"]["values"] == [[None]]


def test_a_record_is_extended_by_seeds_and_arms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, full in enumerate((0.5, 0.6)):
        finish(tmp_path, f"full-{seed}", supervised=0.2, reinforce=full, reinforce_2=0.8)
        finish(tmp_path, f"no_bonus-{seed}", reinforce=full + 0.1 * seed)
    once = ["--repeats", "1", "--extend", "--seeds"]
    table_of(satori, tmp_path, monkeypatch, *once, "0", "--arms", "full")
    both = table_of(satori, tmp_path, monkeypatch, *once, "1", "--arms", "full", "no_bonus")
    arms = both["arms"]
    assert both["seeds"] == [0, 1] and arms["full"]["accuracy"]["values"] == [[0.5], [0.6]]
    assert (arms["no_bonus"]["seeds"], arms["no_bonus"]["accuracy"]["n"]) == ([1], 1)
    assert arms["no_bonus"]["difference"]["accuracy"]["mean"] == pytest.approx(0.1)
    whole = table_of(satori, tmp_path, monkeypatch, *once, "0", "--arms", "no_bonus")["arms"]
    assert whole["no_bonus"]["accuracy"]["values"] == [[0.5], [pytest.approx(0.7)]]
    assert whole["full"]["accuracy"] == arms["full"]["accuracy"]
    at_once = [*once[:-2], "--seeds", "0", "1", "--arms", "full", "no_bonus"]
    (tmp_path / "table.json").unlink()
    expected = table_of(satori, tmp_path, monkeypatch, *at_once)["arms"]
    for name, row in expected.items():
        for field in (*FIELDS, "difference"):
            assert row.get(field) == whole[name].get(field), (name, field)


def test_arms_that_change_the_tuning_are_paired_by_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        finish(tmp_path, f"full-{seed}", supervised=0.2, reinforce=0.8, reinforce_2=0.8)
        finish(tmp_path, f"full-{seed}-1", reinforce=0.6)
        finish(tmp_path, f"cot-{seed}", supervised=0.1, preference=0.1, reinforce=0.2)
        finish(tmp_path, f"cot-{seed}-1", reinforce=0.1 * seed)
        finish(tmp_path, f"more_tuning-{seed}", supervised=0.9)
        finish(tmp_path, f"tuned_small-{seed}", supervised=0.2)
        (tmp_path / f"tuned_small-{seed}" / "progress.json").write_text(
            json.dumps({"models": {"base": "models/initial"}})
        )
        finish(tmp_path, f"distilled_small-{seed}", distill=0.5)
    arms = ["full", *satori.TUNED]
    options = ["--seeds", "0", "1", "--repeats", "2", "--arms", *arms]
    table = table_of(satori, tmp_path, monkeypatch, *options)["arms"]
    assert table["cot"]["accuracy"]["values"] == [[0.2, 0.0], [0.2, 0.1]]
    assert table["cot"]["difference"]["accuracy"]["mean"] == pytest.approx(0.125 - 0.7)
    # Without reinforcement there is one run of a tuning, and no noise to be seen.
    assert table["more_tuning"]["accuracy"]["values"] == [[0.9], [0.9]]
    assert table["more_tuning"]["accuracy"]["noise_of_a_run"] is None
    assert "first_difference" not in table["more_tuning"]
    small = table["distilled_small"]
    assert (small["against"], small["difference"]["accuracy"]["mean"]) == (
        "tuned_small",
        pytest.approx(0.3),
    )


def test_arms_of_one_algorithm_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(tmp_path, "full-0", supervised=0.2, reinforce=0.5, reinforce_2=0.8)
    finish(tmp_path, "online-0", reinforce=0.6, gradients=(1.00001, 2.5))
    finish(tmp_path, "no_bonus-0", reinforce=0.6, gradients=(1.1, 2.0))
    finish(tmp_path, "no_restart-0", reinforce=0.6)
    options = ["--seeds", "0", "--repeats", "1", "--arms"]
    options += ["full", "online", "no_bonus", "no_restart"]
    table = table_of(satori, tmp_path, monkeypatch, *options)["arms"]
    assert table["online"]["first_difference"] == [1]
    assert table["no_bonus"]["first_difference"] == [0]
    assert table["no_restart"]["first_difference"] == [None]
    printed = capsys.readouterr().out
    assert "identical first step, and the same gradients up to step 1, as full" in printed
    assert printed.count("the same gradients in every step as full") == 1
    assert printed.count("same gradients") == 2


def test_steps_that_only_one_run_has_differ() -> None:
    ours = {"gradients": {0: {"update/grad_norm": 1.0}, 1: {"update/grad_norm": 1.0}}}
    theirs = {"gradients": {0: {"update/grad_norm": 1.0}}}
    critic = {"gradients": {0: {"critic/grad_norm": 1.0}}}
    assert first_difference(ours, theirs) == 1
    assert first_difference(theirs, critic) == 0
    assert first_difference(ours, ours) is None


def test_without_restarts_and_with_a_critic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any("bonus" in arm for arm in restarts.ARMS)
    finish(tmp_path, "tuned-0", supervised=0.2)
    for repeat in range(2):
        finish(tmp_path, f"grpo-0-{repeat}", reinforce=0.7 + 0.1 * repeat)
        finish(tmp_path, f"no_restart-0-{repeat}", reinforce=0.9)
        finish(tmp_path, f"ppo-0-{repeat}", reinforce=0.7)
    options = ["--seeds", "0", "--repeats", "2"]
    result = table_of(restarts, tmp_path, monkeypatch, *options)
    assert result["arms"]["no_restart"]["difference"]["accuracy"]["mean"] == pytest.approx(0.15)
    # Of three pairs one differs, by 0.1: variances 0.005, 0 and 0.
    assert result["noise_of_a_run"]["accuracy"] == pytest.approx((0.005 / 3) ** 0.5)


def test_the_arms_of_s2r_start_from_one_model_and_show_their_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, runs in enumerate([(0.5, 0.7), (0.6, 0.6)]):
        finish(tmp_path, f"tuned-{seed}", supervised=0.4, initialise=0.45)
        for repeat, accuracy in enumerate(runs):
            finish(tmp_path, f"outcome-{seed}-{repeat}", reinforce=accuracy + 0.1)
            finish(tmp_path, f"process-{seed}-{repeat}", reinforce=accuracy)
            finish(tmp_path, f"offline-{seed}-{repeat}", offline=0.5)
    result = table_of(s2r, tmp_path, monkeypatch, "--seeds", "0", "1", "--repeats", "2")
    table = result["arms"]
    assert list(table) == ["base", "imitation", "outcome", "process", "offline"]
    assert table["base"]["error_recall"]["mean"] is None
    assert table["base"]["error_recall"]["values"] == [[None], [None]]
    assert table["imitation"]["error_recall"]["mean"] == 0.75
    assert table["outcome"]["difference"]["accuracy"]["mean"] == pytest.approx(0.1)
    assert table["imitation"]["difference"]["accuracy"]["mean"] == pytest.approx(0.05)
    # Of one model's runs the variance is 0.02, of the other's 0: models differ by more than runs.
    assert table["process"]["accuracy"]["noise_of_a_run"] == pytest.approx(0.1)
    assert table["base"]["accuracy"]["noise_of_a_run"] is None


def test_a_row_of_srl_that_repeats_another_is_its_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = dict.fromkeys(("exact", "similarity", "fault", "mean_response_tokens"), 1.0)
    accuracies = {"warm-up": 0.0, "srl": 0.3, "srl_again": 0.5}
    for name, accuracy in accuracies.items():
        finish(tmp_path, f"{name}-0", **{"supervised" if name == "warm-up" else "srl": 0.0})
        (tmp_path / f"{name}-0" / "progress.json").write_text('{"models": {"policy": "models/p"}}')
        kept = {f"validation/{field}": value for field, value in figures.items()}
        kept |= {"eval/accuracy": accuracy, "num_problems": 40}
        (tmp_path / f"{name}-0" / "measured.json").write_text(json.dumps(kept))
    options = ["--seeds", "0", "--arms", "srl", "srl_again"]
    result = table_of(srl, tmp_path, monkeypatch, *options)
    assert result["noise_of_a_run"]["accuracy"] == pytest.approx(0.2 / 2**0.5)
    assert result["arms"]["srl_again"]["difference"]["accuracy"]["mean"] == pytest.approx(0.2)


@pytest.mark.parametrize("driver", [chains, frontier, gullible, rare, restarts, s2r, satori, srl])
def test_every_row_that_is_compared_was_predicted(driver: ModuleType) -> None:
    rows = driver.STUDY.said if hasattr(driver, "STUDY") else driver.ROWS
    assert [name for name, arm in rows.items() if arm.against and not arm.prediction] == []
    assert {arm.against for arm in rows.values() if arm.against} <= set(rows)


@pytest.mark.parametrize("driver", [chains, frontier, gullible, rare, restarts, s2r])
def test_the_arms_of_a_study_are_configs_of_its_domain(driver: ModuleType) -> None:
    study = driver.STUDY
    domain = load_config(study.config).data
    for name, arm in study.arms.items():
        changes = (*study.overrides, *arm.overrides)
        assert load_config(study.configs.get(name, study.config), changes).data == domain


@pytest.mark.parametrize("arm", satori.ARMS)
def test_the_arms_of_satori_are_configs(arm: str) -> None:
    config = load_config(satori.CONFIG, [*satori.ARMS[arm].overrides, *EVALUATED])
    evaluations = config.reinforce.num_steps // config.reinforce.evaluate_every
    assert evaluations >= NUM_LATE_EVALUATIONS
    # What is tuned differs where the arm says so, and nowhere else.
    full = load_config(satori.CONFIG)
    tuning = [(c.model, c.data, c.synthesize, c.supervised) for c in (config, full)]
    assert (tuning[0] == tuning[1]) == (arm in {*satori.REINFORCED, "distilled_small"})


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
    lines = [{"step": number, **line} for number, line in enumerate(lines)]
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / name / "solutions").mkdir()
    solutions = [{"response_ids": [1, 2, 3]}, {"response_ids": [4, 5, 6, 7]}]
    write_sealed_records(folder / name / "solutions" / "model.jsonl", solutions)


def test_the_frontier_is_read_off_one_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_frontier(tmp_path, "tuned-0", "supervised", 0.1, 0.2)
    summary = tmp_path / "tuned-0" / "summary.json"
    stages = json.loads(summary.read_text())["stages"]
    # A stage without an evaluation comes first, as the synthesis does.
    summary.write_text(json.dumps({"stages": [{"stage": "synthesize"}, *stages]}))
    for repeat in range(2):
        for arm in frontier.ARMS:
            finish_frontier(tmp_path, f"{arm}-0-{repeat}", "reinforce", 0.1, 0.2, 0.3, 0.35)
    result = table_of(frontier, tmp_path, monkeypatch, "--seeds", "0", "--repeats", "2")
    table = result["arms"]
    assert list(table) == ["format_tuning", "no_restart", "once", "refreshed", "whole_long"]
    means = {name: table["refreshed"][name]["mean"] for name in frontier.FIELDS}
    assert (means["accuracy_3"], means["accuracy_6"], means["accuracy_20"]) == (0.3, 0.35, 0.35)
    # Of the last ten steps two have D- restarts; twelve steps and one buffer.
    assert (means["accuracy_restart_incorrect"], means["generated_tokens"]) == (0.5, 1207.0)
    assert table["format_tuning"]["accuracy_12"]["mean"] == 0.2
    assert table["format_tuning"]["generated_tokens"]["mean"] is None
    assert table["once"]["difference"]["accuracy"]["mean"] == 0.0
    assert table["once"]["accuracy"]["noise_of_a_run"] == 0.0


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
    assert frontier.ARMS["whole_long"].overrides[-1] == str(room)


def test_verdicts_are_told_apart_by_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(tmp_path, "tuned-0", gullible.FIELDS, supervised=0.4)
    for arm, accuracy in zip(gullible.ARMS, (0.4, 0.3, 0.2, 0.6), strict=True):
        finish(tmp_path, f"{arm}-0-0", gullible.FIELDS, reinforce=accuracy)
    result = table_of(gullible, tmp_path, monkeypatch, "--seeds", "0", "--repeats", "1")
    table = result["arms"]
    assert list(table) == ["format_tuning", "none", "right_only", "wrong_only", "both"]
    assert table["both"]["difference"]["accuracy"]["mean"] == pytest.approx(0.2)
    assert set(gullible.FIELDS) <= set(table["right_only"])


def test_the_step_in_which_an_arm_takes_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path, "first-0", supervised=0.1)
    finish(tmp_path, "tuned-0", supervised=0.2)
    for arm, accuracy in zip(rare.ARMS, (0.4, 0.55, 0.7, 0.9), strict=True):
        finish(tmp_path, f"{arm}-0-0", reinforce=accuracy)
    table = table_of(rare, tmp_path, monkeypatch, "--seeds", "0", "--repeats", "1")["arms"]
    assert table["format_tuning"]["accuracy"]["mean"] == 0.2
    # Evaluations of steps 10 to 15: none right, four 0.1 below the last one, the last one.
    steps = {name: table[name]["takes_off"]["mean"] for name in rare.ARMS}
    assert steps == {"whole": 16, "whole_96": 15, "in_place": 11, "on_top": 11}
    assert table["format_tuning"]["takes_off"]["mean"] is None


def test_the_arms_of_rare_reflection_have_the_problems_that_they_are_named_after() -> None:
    shares: dict[str, tuple[int, bool]] = {}
    for name, arm in rare.ARMS.items():
        config = load_config(rare.CONFIG, arm.overrides)
        shares[name] = (config.reinforce.problems_per_step, config.restarts_enabled)
    assert shares == {
        "whole": (32, False), "whole_96": (96, False), "in_place": (32, True), "on_top": (96, True),
    }  # fmt: skip


def test_the_arms_of_the_gullible_have_the_buffers_that_they_are_named_after() -> None:
    shares: dict[str, tuple[float, ...] | None] = {}
    for name, arm in gullible.ARMS.items():
        config = load_config(gullible.CONFIG, arm.overrides)
        own = config.reinforce.restarts
        weights = (own.original_weight, own.correct_weight, own.incorrect_weight)
        shares[name] = weights if config.restarts_enabled else None
    assert shares == {
        "none": None, "right_only": (0.25, 1, 0), "wrong_only": (0.25, 0, 1), "both": (0.25, 1, 1),
    }  # fmt: skip
