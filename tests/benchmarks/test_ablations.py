# SPDX-License-Identifier: Apache-2.0
"""The tables of accuracy, from run folders that are finished already."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.ablations import s2r, satori
from benchmarks.ablations.runs import FIELDS, noise_of_a_run

VERIFYING = ("verification_accuracy", "accuracy_on_right", "error_recall", "correct_precision")


def _verifying(stage: str) -> float | None:
    """Plain solutions have no verification."""
    return None if stage == "supervised" else 0.75


def finish(folder: Path, name: str, **accuracies: float) -> None:
    """A run folder whose stages ended with these accuracies; its other figures are 1."""
    fields = dict.fromkeys({*FIELDS, "wall_s"}, 1.0)
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


def test_the_noise_of_runs_without_a_figure_is_not_known() -> None:
    assert noise_of_a_run([None, 0.5], 2) is None
