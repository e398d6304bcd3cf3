# SPDX-License-Identifier: Apache-2.0
"""Runs beside each other: names, cells, ratios, settings."""

import json

import pytest

from satori_fast.profiling.report_compare import (
    config_rows,
    differ_by_seed,
    distinct_names,
    fact_lists,
    mean_lines,
    mean_times,
    rate_rows,
    result_rows,
)
from satori_fast.profiling.report_runs import read_run
from satori_fast.profiling.summary import build_summary, write_summary


def make_run(folder, name, *, stages=(), config=""):
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'name = "{name}"\noutput_dir = "{folder}"\n{config}')
    summary = build_summary(name, "0.1.0", device={}, wall_s=10.0, stages=stages)
    write_summary(summary, folder / "summary.json")
    return read_run(folder)


def stage(name, accuracy=None, **rates):
    return {"stage": name, "wall_s": 5.0, "accuracy": accuracy, "tokens_per_s": rates}


def test_names_are_distinct(tmp_path):
    runs = [
        make_run(tmp_path / "monday" / "toy", "toy"),
        make_run(tmp_path / "tuesday" / "toy", "toy"),
        make_run(tmp_path / "other", "other"),
    ]
    assert distinct_names(runs) == ["toy (monday/toy)", "toy (tuesday/toy)", "other"]
    assert distinct_names([*runs[:1], make_run(tmp_path / "copy", "toy")]) == [
        "toy (toy)",
        "toy (copy)",
    ]
    with pytest.raises(ValueError, match="is given twice"):
        distinct_names([runs[0], runs[0]])


def test_results_stand_by_stage(tmp_path):
    runs = [
        make_run(tmp_path / "a", "a", stages=[stage("sft", 0.25), stage("rl", 0.5)]),
        make_run(tmp_path / "b", "b", stages=[stage("rl", 0.75), stage("more")]),
    ]
    columns, rows = result_rows(runs)
    # No stage reflects or counts tokens: a column of dashes says nothing.
    assert columns == ["accuracy", "seconds"]
    assert [(group["stage"], [row["run"] for row in group["rows"]]) for group in rows] == [
        ("sft", [0]),
        ("rl", [0, 1]),
        ("more", [1]),
    ]
    assert rows[1]["rows"][1]["cells"][0] == "75.0 %"
    assert rows[1]["rows"][1]["cells"][-1] == "5.0"


def test_rates_are_ratios_to_the_first_run(tmp_path):
    runs = [
        make_run(tmp_path / "a", "a", stages=[stage("rl", step=1000.0, rollout=2000.0)]),
        make_run(tmp_path / "b", "b", stages=[stage("rl", step=1500.0, sync=float("nan"))]),
    ]
    rollout, step = rate_rows(runs)
    assert (rollout["span"], step["span"], step["stage"]) == ("rollout", "step", "rl")
    assert [cell["text"] for cell in rollout["cells"]] == ["2,000", "-"]
    assert [cell["text"] for cell in step["cells"]] == ["1,000", "1.50 x"]
    assert step["cells"][1] == {"text": "1.50 x", "rate": "1,500", "ratio": 1.5}


def test_what_only_a_later_run_has_is_shown_as_it_is(tmp_path):
    runs = [
        make_run(tmp_path / "a", "a"),
        make_run(tmp_path / "b", "b", stages=[stage("rl", update=10.0)]),
    ]
    assert [cell["text"] for cell in rate_rows(runs)[0]["cells"]] == ["-", "10"]


def test_only_settings_that_differ_are_listed(tmp_path):
    runs = [
        make_run(tmp_path / "a", "a", config="seed = 1\n[reinforce]\nnum_steps = 3\nbeta = 0.5\n"),
        make_run(tmp_path / "b", "b", config="seed = 1\n[reinforce]\nnum_steps = 4\n"),
    ]
    assert config_rows(runs) == {
        "changed": [{"key": "reinforce.num_steps", "values": ["3", "4"]}],
        "missing": [{"key": "reinforce.beta", "values": ["0.5", "-"]}],
    }
    assert config_rows(runs[:1]) == {"changed": [], "missing": []}


def test_facts_are_parted_into_shared_and_own():
    first, second = [("model", "m"), ("seed", "1")], [("model", "m"), ("seed", "2")]
    assert fact_lists([first, second]) == (
        [("model", "m")],
        [[("seed", "1")], [("seed", "2")]],
    )


def test_seeds_of_one_config_have_a_mean(tmp_path):
    runs = [
        make_run(tmp_path / name, name, stages=[stage("rl", 0.5)], config=f"seed = {seed}\n")
        for seed, name in enumerate(["a", "b"])
    ]
    assert differ_by_seed(config_rows(runs))
    other = make_run(tmp_path / "c", "c", config="seed = 2\nmodel.hidden_size = 64\n")
    assert not differ_by_seed(config_rows([*runs, other]))
    assert not differ_by_seed(config_rows(runs[:1]))


def test_mean_lines_are_of_what_every_run_has(tmp_path):
    first = [
        {"stage": "rl", "step": 0, "a": 1.0, "b": None, "spans_s": {}},
        {"stage": "rl", "step": 1, "a": 3.0, "c": 1.0},
        {"stage": "rl", "step": 2, "a": 9.0},
    ]
    second = [
        {"stage": "rl", "step": 0, "a": 2.0, "b": 4.0, "spans_s": {}},
        {"stage": "rl", "step": 1, "a": 5.0},
    ]
    runs = []
    for name, lines in (("a", first), ("b", second)):
        folder = tmp_path / name
        folder.mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        runs.append(read_run(folder))
    assert mean_lines(runs) == [
        {"stage": "rl", "step": 0, "a": 1.5, "b": 4.0},
        {"stage": "rl", "step": 1, "a": 4.0},
    ]


def test_mean_times(tmp_path):
    stages = ([stage("sft"), stage("rl")], [{**stage("sft"), "wall_s": 7.0}, stage("rl")])
    runs = [
        make_run(tmp_path / name, name, stages=own) for name, own in zip("ab", stages, strict=True)
    ]
    assert [(t.stage, t.start_s, t.wall_s) for t in mean_times(runs)] == [
        ("sft", 0.0, 6.0),
        ("rl", 6.0, 5.0),
    ]
