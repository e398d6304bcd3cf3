# SPDX-License-Identifier: Apache-2.0
"""The scripted expert: its rows are read as published ones are, and what it does can be redone."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from satori_fast.data.agent_steps import AgentStepOptions, Form, load_agent_steps
from satori_fast.evaluation import sandbox
from satori_fast.evaluation.patches import apply_patch
from satori_fast.evaluation.repairs import expert_trajectories
from satori_fast.evaluation.repositories import small_repositories
from tests.data.agent_runs import FORMS

pytestmark = pytest.mark.skipif(
    sandbox.isolation_fault() is not None, reason=f"no isolation: {sandbox.isolation_fault()}"
)
PATIENT = sandbox.Limits(seconds=120.0, cpu_seconds=60)
BY_FORM = pytest.mark.parametrize("form", FORMS)
REPOSITORIES = {repository.name: repository for repository in small_repositories()}

# Look, open, edit, run, submit; more for a second file and for further edits.
NUM_ACTS = {
    "bill": 8,
    "calendar_rules": 5,
    "intervals": 5,
    "inventory": 5,
    "moving_average": 5,
    "quoted_fields": 7,
    "recent_cache": 5,
    "roman": 5,
    "task_order": 5,
    "word_wrap": 5,
}
# Actions over moving_average: the first, and the edit.
OLD = "    return [values[start : start + size] for start in range(len(values) - size)]"
NEW = "    return [values[start : start + size] for start in range(len(values) - size + 1)]"
LOOK = "grep -A 5 'def test_pairs(' test_moving_average.py"
ACTIONS = {
    "tool": (
        f'bash {{"command": "{LOOK}"}}',
        f'str_replace_editor {{"command": "str_replace", "new_str": "{NEW}", "old_str": "{OLD}", '
        '"path": "moving_average.py"}',
    ),
    "xml": (
        f"<function=bash>\n<parameter=command>{LOOK}</parameter>\n</function>",
        "<function=str_replace_editor>\n<parameter=command>str_replace</parameter>\n"
        f"<parameter=path>moving_average.py</parameter>\n<parameter=old_str>\n{OLD}\n</parameter>\n"
        f"<parameter=new_str>\n{NEW}\n</parameter>\n</function>",
    ),
    "ticks": (
        LOOK,
        f"str_replace_editor str_replace moving_average.py --old_str '{OLD}' --new_str '{NEW}'",
    ),
}


@functools.cache
def rows(form: Form) -> list[dict[str, Any]]:
    return expert_trajectories(form, limits=PATIENT)


def calls(row: dict[str, Any]) -> list[tuple[dict[str, str], str]]:
    """(arguments, observation) of the answered calls of a row in the form tool."""
    messages = json.loads(row["messages"])[2:]
    return [
        (
            json.loads(turn["tool_calls"][0]["function"]["arguments"]),
            answer["content"][0]["text"].removeprefix("OBSERVATION:\n"),
        )
        for turn, answer in zip(messages[0::2], messages[1::2], strict=False)
    ]


def written(rows: list[dict[str, Any]], folder: Path) -> Path:
    path = folder / "expert.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@BY_FORM
def test_rows_are_read_as_published_ones(form: Form, tmp_path: Path) -> None:
    problems, report = load_agent_steps(written(rows(form), tmp_path))
    names = [problem.problem_id.split("/")[1].removesuffix(f".{form}") for problem in problems]
    assert Counter(names) == NUM_ACTS
    assert report.forms == {form: 10}
    assert (report.rows.num_skipped, report.actions.num_skipped) == (0, 0)
    targets = [
        problem.prefix.target
        for problem, name in zip(problems, names, strict=True)
        if name == "moving_average" and problem.prefix is not None
    ]
    assert (targets[0], targets[2]) == ACTIONS[form]


@BY_FORM
def test_columns(form: Form) -> None:
    assert [row["instance_id"] for row in rows(form)] == sorted(NUM_ACTS)
    for row in rows(form):
        assert row["resolved"] is True
        assert row["patch"] == REPOSITORIES[row["instance_id"]].gold_patch


def test_edits_make_what_the_patch_makes() -> None:
    for row in rows("tool"):
        repository = REPOSITORIES[row["instance_id"]]
        files = dict(repository.files)
        for arguments, observation in calls(row):
            if arguments["command"] == "str_replace":
                path, old = arguments["path"], arguments["old_str"]
                assert files[path].count(old) == 1
                files[path] = files[path].replace(old, arguments["new_str"])
            elif arguments["command"].startswith("cat "):
                assert observation == files[arguments["command"].removeprefix("cat ")]
        assert files == apply_patch(repository, row["patch"])


def test_commands_print_what_the_expert_sees() -> None:
    row = next(row for row in rows("tool") if row["instance_id"] == "bill")
    repository = REPOSITORIES["bill"]
    (look, shown), *_, (run, printed) = calls(row)
    command = ["/bin/sh", "-c", look["command"]]
    assert sandbox.run(command, repository.tests, limits=PATIENT).output == shown
    assert run["command"] == "python -m unittest tests.test_bill"
    assert re.fullmatch(r"\.{4}\n-{70}\nRan 4 tests\n\nOK\n", printed)


def test_rows_are_the_same_again_and_short() -> None:
    assert expert_trajectories("xml", limits=PATIENT) == rows("xml")
    for row in rows("tool"):
        assert not re.search(r"/tmp|/sandbox|\d\.\d+s", row["messages"])
        assert max(len(observation) for _, observation in calls(row)) < 650


def test_a_patch_that_does_not_resolve(tmp_path: Path) -> None:
    repository = REPOSITORIES["roman"]
    fours = repository.gold_patch.replace('"XC"', '"LXXXX"')
    wrong = dataclasses.replace(repository, gold_patch=fours)
    [row] = expert_trajectories("tool", [wrong], limits=PATIENT)
    assert row["resolved"] is False
    printed = calls(row)[-1][1]
    assert 'File "test_roman.py", line ' in printed
    assert "AssertionError: 'MCMLXXXXIX' != 'MCMXCIX'" in printed
    source = written([row], tmp_path)
    with pytest.raises(ValueError, match="not resolved"):
        load_agent_steps(source)
    assert len(load_agent_steps(source, AgentStepOptions(include_unresolved=True))[0]) == 5


def test_a_patch_that_makes_a_file_is_an_error() -> None:
    repository = dataclasses.replace(
        REPOSITORIES["roman"],
        oracle_files=("new.py",),
        gold_patch="--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+x = 1\n",
    )
    with pytest.raises(ValueError, match=r"roman: its gold patch makes or deletes new.py"):
        expert_trajectories("xml", [repository], limits=PATIENT)
