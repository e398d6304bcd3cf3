# SPDX-License-Identifier: Apache-2.0
"""NAME-seeds.json from run folders that are there, and what is read back of it."""

import json

import pytest
from rich.console import Console

from satori_fast.profiling.seed_table import (
    print_seed_table,
    read_seeds,
    run_folders,
    stage_cells,
    table_path,
    write_seed_table,
)
from satori_fast.profiling.summary import build_summary, write_summary


def finish(output_dir, seed, accuracy, *, evaluations=()):
    """The run of a seed: a stage without accuracy, and one that ended with `accuracy`."""
    folder = output_dir / f"toy-seed-{seed}"
    folder.mkdir()
    stages = [
        {"stage": "synthesize", "wall_s": 2.0},
        {"stage": "reinforce", "wall_s": 10.0 + seed, "accuracy": accuracy, "num_problems": 40},
    ]
    summary = build_summary(folder.name, "0.1.0", device={}, wall_s=20.0, stages=stages)
    write_summary(summary, folder / "summary.json")
    lines = [
        {"stage": "reinforce", "step": i, "eval/accuracy": share}
        for i, share in enumerate(evaluations)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_table_has_the_seeds_that_are_finished(tmp_path, capsys):
    finish(tmp_path, 0, 0.5, evaluations=[0.0, 0.3, 0.4, 0.5, 0.6, 0.7])
    finish(tmp_path, 1, 0.7, evaluations=[0.6, 0.8])
    (tmp_path / "toy-seed-2").mkdir()  # cut off
    write_seed_table(tmp_path, "toy", [0, 1, 2])
    path = table_path(tmp_path, "toy")
    assert path == tmp_path / "toy-seeds.json"
    table = json.loads(path.read_text())
    assert table["runs"] == {"0": "toy-seed-0", "1": "toy-seed-1"}
    assert read_seeds(path) == [0, 1, 2]
    assert run_folders(path) == [tmp_path / "toy-seed-0", tmp_path / "toy-seed-1"]
    synthesize, reinforce = table["stages"]
    assert synthesize["accuracy"]["mean"] is None and synthesize["wall_s"]["mean"] == 2.0
    accuracy = reinforce["accuracy"]
    assert accuracy["values"] == [0.5, 0.7]
    # Half the difference of two values is the error of their mean.
    assert (accuracy["mean"], accuracy["standard_error"]) == pytest.approx((0.6, 0.1))
    late = reinforce["late_accuracy"]
    assert (late["evaluations"], late["mean"]) == ([5, 2], pytest.approx((0.5 + 0.7) / 2))
    cells = stage_cells(reinforce)
    assert cells[:5] == ["reinforce", "2", "60.0", "14.1", "10.0"]
    assert cells[-2:] == ["60.0 (of 2-5)", "10.5"]
    print_seed_table(table, Console(width=120))
    assert "toy: 2 seeds, 20 s a run" in capsys.readouterr().out


def test_a_file_that_is_no_table_is_named(tmp_path):
    path = tmp_path / "summary.json"
    for text, reason in (("{}", "no table of seeds"), ("[", "is not JSON")):
        path.write_text(text)
        with pytest.raises(ValueError, match=reason) as caught:
            run_folders(path)
        assert str(path) in str(caught.value)
    write_seed_table(tmp_path, "none", [0])
    with pytest.raises(ValueError, match="no finished run"):
        run_folders(table_path(tmp_path, "none"))
