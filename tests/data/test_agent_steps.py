# SPDX-License-Identifier: Apache-2.0
"""Trajectories of software agents as step-wise problems: the three published forms, and bad rows.

The rows are written after SWE-bench/SWE-smith-trajectories: keys, roles and marks are those of its
splits, the little repositories are made up.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from satori_fast.data.agent_steps import (
    AgentStepOptions,
    AgentStepReport,
    Form,
    Round,
    load_agent_steps,
    render_rounds,
    shorten,
    tool_call_text,
)
from satori_fast.types import Prefix, Problem

Message = dict[str, Any]
FORMS: tuple[Form, ...] = ("tool", "xml", "ticks")
SYSTEM = "You are a helpful assistant that can interact with a computer to solve tasks."
NO_OUTPUT = "Your command ran successfully and did not produce any output."


# --- a trajectory, and how each split writes it --------------------------------------------------


@dataclass(frozen=True)
class Act:
    """One turn: a call with its arguments, the command line that does the same, and the answer.

    name is "" for a turn of prose, and for an action that was left empty (`line` is "" too).
    """

    name: str
    arguments: dict[str, Any]
    line: str | None
    answer: str | None = NO_OUTPUT
    thought: str = "Let me go on."


def bash(command: str, answer: str | None = NO_OUTPUT, **more: Any) -> Act:
    return Act("bash", {"command": command}, command, answer, **more)


def view(path: str, answer: str | None = NO_OUTPUT) -> Act:
    arguments = {"command": "view", "path": path}
    return Act("str_replace_editor", arguments, f"str_replace_editor view {path}", answer)


def edit(path: str, old: str, new: str, answer: str | None = "The file has been edited.") -> Act:
    arguments = {"command": "str_replace", "path": path, "old_str": old, "new_str": new}
    line = f"str_replace_editor str_replace {path} --old_str '{old}' --new_str '{new}'"
    return Act("str_replace_editor", arguments, line, answer)


def submit(answer: str | None = None) -> Act:
    return Act("submit", {}, "submit", answer)


def prose(text: str, answer: str | None) -> Act:
    return Act("", {}, None, answer, text)


def empty(answer: str) -> Act:
    return Act("", {}, "", answer)


# What SWE-smith's export leaves of a run that was ended for its cost: a fixed text as "tool", a call
# of submit as "xml", an empty block as "ticks".
COST = Act("exit", {}, "", None, "Exit due to cost limit")


def tool_messages(acts: Sequence[Act]) -> list[Message]:
    messages: list[Message] = []
    for number, act in enumerate(acts):
        turn: Message = {"role": "assistant", "content": act.thought, "thought": act.thought}
        turn |= {"action": act.line or "", "agent": "main", "message_type": "action"}
        call_id = f"toolu_{number}"
        if act is not COST and act.line is not None:
            function = {"name": act.name, "arguments": json.dumps(act.arguments)}
            turn["tool_calls"] = [{"function": function, "id": call_id, "type": "function"}]
        messages.append(turn)
        if act.answer is not None:
            answer = [{"type": "text", "text": act.answer}]
            observation: Message = {"content": answer, "message_type": "observation"}
            if "tool_calls" in turn:
                observation |= {"role": "tool", "tool_call_ids": [call_id]}
            messages.append({"role": "user", "agent": "main"} | observation)
    return messages


def xml_text(act: Act) -> str:
    if act is COST:
        return "Since it works, let's submit the changes:\n\n<function=submit>\n</function>"
    if act.line is None:
        return act.thought
    lines = [f"<function={act.name}>"]
    for key, value in act.arguments.items():
        breaks = "\n" if key in ("old_str", "new_str", "file_text") else ""
        lines.append(f"<parameter={key}>{breaks}{value}{breaks}</parameter>")
    return "\n".join([f"{act.thought}\n", *lines, "</function>"]).strip()


def ticks_text(act: Act) -> str:
    return act.thought if act.line is None else f"{act.thought}\n\n```\n{act.line}\n```"


def text_messages(acts: Sequence[Act], write: Callable[[Act], str]) -> list[Message]:
    messages: list[Message] = []
    for act in acts:
        messages.append({"role": "assistant", "content": write(act)})
        if act.answer is not None:
            messages.append({"role": "user", "content": act.answer})
    return messages


def question(name: str) -> str:
    return (
        "<uploaded_files>\n/testbed\n</uploaded_files>\n"
        f"<pr_description>\n{name} is broken\n</pr_description>\nCan you help me?"
    )


def messages_of(form: Form, name: str, acts: Sequence[Act]) -> list[Message]:
    """The whole conversation; every answer has SWE-agent's mark, as published."""
    marked = [
        Act(a.name, a.arguments, a.line, a.answer and f"OBSERVATION:\n{a.answer}", a.thought)
        if a is not COST and a.answer != NO_OUTPUT
        else a
        for a in acts
    ]
    problem: Any = question(name)
    if form == "tool":
        opening: list[Message] = [
            {"role": "system", "content": SYSTEM, "message_type": "system_prompt"},
            {"role": "user", "content": [{"type": "text", "text": problem}], "agent": "main"},
        ]
        return opening + tool_messages(marked)
    opening = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": problem}]
    return opening + text_messages(marked, xml_text if form == "xml" else ticks_text)


@dataclass(frozen=True)
class Run:
    name: str
    acts: Sequence[Act]
    resolved: bool = True
    columns: dict[str, Any] = field(default_factory=lambda: {"patch": "diff --git a/a.py b/a.py"})

    def row(self, form: Form) -> dict[str, Any]:
        return {
            "messages": json.dumps(messages_of(form, self.name, self.acts)),
            "instance_id": f"owner__repo.{self.name}",
            "resolved": self.resolved,
            "model": "claude-3-7-sonnet-20250219",
            "traj_id": f"owner__repo.{self.name}.8qa84d2e",
            **self.columns,
        }


FAILING = "Traceback (most recent call last):\nKeyError: 'x'"
SCRIPT = "cat > run.py << 'EOF'\nimport app\nprint(app.f(2))\nEOF"
README = "cat > README.md << 'EOF'\n```python\nimport app\n```\nEOF"
PYTHON = "It reads\n\n```python\nf(2)\n```\n\nand I run it."
RUNS = [
    Run("a01", [bash("ls", "app.py\ntests"), view("/testbed/app.py", "1 x = 1"), submit()]),
    Run("a02", [bash("grep -n route app.py", "3: route"), submit()]),
    Run("a03", [bash("ls", "app.py"), submit()], resolved=False),
    Run("a04", [bash(SCRIPT), bash("python run.py", FAILING), edit("/a.py", "x", "y"), submit()]),
    Run("a05", [submit()]),
    Run("a06", [view("/testbed", "/testbed/app.py"), submit()], columns={}),
    Run("a07", [bash("ls", "a.py"), prose("I see the fault.", "No action found."), submit()]),
    Run("a08", [empty("Give an action."), bash("pwd", "/testbed"), submit()]),
    Run("a09", [bash("pytest", "1 failed"), edit("/a.py", "é = 'a'", 'ü = "b"'), COST]),
    Run("a10", [Act("bash", {"timeout": 9, "command": "pytest"}, "pytest -t 9"), submit()]),
    Run("b01", [bash("python -c 'f(2)'", FAILING, thought=PYTHON), submit()]),
    Run("b02", [bash("git status", "clean", thought=""), submit()]),
    Run("b03", [bash("ls", "app.py"), bash(README)]),
    Run("b04", [edit("/a.py", "</function>", "<function=f>"), submit()]),
    Run("b05", [*(bash(f"sed -n {n}p app.py", f"line {n}") for n in range(1, 8)), submit()]),
    Run("b06", [bash("ls"), bash("pytest", FAILING)], resolved=False),
    Run("b07", [bash("rm run.py"), submit("Review your changes."), submit()]),
    Run("b08", [bash("  python app.py", ""), submit()]),
    Run("b09", [bash("ls | head -1 && echo a", "a"), bash("echo done", "done")]),
    Run("b10", [bash("true"), submit()], columns={"patch": ""}),
]

SUBMIT = {"tool": "submit {}", "xml": "<function=submit>\n</function>", "ticks": "submit"}


def xml_bash(command: str) -> str:
    return f"<function=bash>\n<parameter=command>{command}</parameter>\n</function>"


# Instances of each row, in the order of RUNS: how many, the target of the first and of the last.
TOOL = {
    "a01": (3, 'bash {"command": "ls"}', SUBMIT["tool"]),
    "a02": (2, 'bash {"command": "grep -n route app.py"}', SUBMIT["tool"]),
    "a04": (
        4,
        'bash {"command": "cat > run.py << \'EOF\'\\nimport app\\nprint(app.f(2))\\nEOF"}',
        SUBMIT["tool"],
    ),
    "a05": (1, SUBMIT["tool"], SUBMIT["tool"]),
    "a06": (2, 'str_replace_editor {"command": "view", "path": "/testbed"}', SUBMIT["tool"]),
    "a07": (2, 'bash {"command": "ls"}', SUBMIT["tool"]),
    "a08": (2, 'bash {"command": "pwd"}', SUBMIT["tool"]),
    "a09": (
        2,
        'bash {"command": "pytest"}',
        'str_replace_editor {"command": "str_replace", "new_str": "ü = \\"b\\"", '
        '"old_str": "é = \'a\'", "path": "/a.py"}',
    ),
    "a10": (2, 'bash {"command": "pytest", "timeout": 9}', SUBMIT["tool"]),
    "b01": (2, 'bash {"command": "python -c \'f(2)\'"}', SUBMIT["tool"]),
    "b02": (2, 'bash {"command": "git status"}', SUBMIT["tool"]),
    "b03": (
        2,
        'bash {"command": "ls"}',
        'bash {"command": "cat > README.md << \'EOF\'\\n```python\\nimport app\\n```\\nEOF"}',
    ),
    "b04": (
        2,
        'str_replace_editor {"command": "str_replace", "new_str": "<function=f>", '
        '"old_str": "</function>", "path": "/a.py"}',
        SUBMIT["tool"],
    ),
    "b05": (8, 'bash {"command": "sed -n 1p app.py"}', SUBMIT["tool"]),
    "b07": (3, 'bash {"command": "rm run.py"}', SUBMIT["tool"]),
    "b08": (2, 'bash {"command": "  python app.py"}', SUBMIT["tool"]),
    "b09": (2, 'bash {"command": "ls | head -1 && echo a"}', 'bash {"command": "echo done"}'),
    "b10": (2, 'bash {"command": "true"}', SUBMIT["tool"]),
}
XML = {
    "a01": (3, xml_bash("ls"), SUBMIT["xml"]),
    "a02": (2, xml_bash("grep -n route app.py"), SUBMIT["xml"]),
    "a04": (
        4,
        "<function=bash>\n<parameter=command>cat > run.py << 'EOF'\nimport app\nprint(app.f(2))\n"
        "EOF</parameter>\n</function>",
        SUBMIT["xml"],
    ),
    "a05": (1, SUBMIT["xml"], SUBMIT["xml"]),
    "a06": (
        2,
        "<function=str_replace_editor>\n<parameter=command>view</parameter>\n"
        "<parameter=path>/testbed</parameter>\n</function>",
        SUBMIT["xml"],
    ),
    "a07": (2, xml_bash("ls"), SUBMIT["xml"]),
    "a08": (2, xml_bash("pwd"), SUBMIT["xml"]),
    "a09": (3, xml_bash("pytest"), SUBMIT["xml"]),
    "a10": (
        2,
        "<function=bash>\n<parameter=timeout>9</parameter>\n<parameter=command>pytest</parameter>\n"
        "</function>",
        SUBMIT["xml"],
    ),
    "b01": (2, xml_bash("python -c 'f(2)'"), SUBMIT["xml"]),
    "b02": (2, xml_bash("git status"), SUBMIT["xml"]),
    "b03": (
        2,
        xml_bash("ls"),
        "<function=bash>\n<parameter=command>cat > README.md << 'EOF'\n```python\nimport app\n```\n"
        "EOF</parameter>\n</function>",
    ),
    "b04": (
        2,
        "<function=str_replace_editor>\n<parameter=command>str_replace</parameter>\n"
        "<parameter=path>/a.py</parameter>\n<parameter=old_str>\n</function>\n</parameter>\n"
        "<parameter=new_str>\n<function=f>\n</parameter>\n</function>",
        SUBMIT["xml"],
    ),
    "b05": (8, xml_bash("sed -n 1p app.py"), SUBMIT["xml"]),
    "b07": (3, xml_bash("rm run.py"), SUBMIT["xml"]),
    "b08": (2, xml_bash("  python app.py"), SUBMIT["xml"]),
    "b09": (2, xml_bash("ls | head -1 && echo a"), xml_bash("echo done")),
    "b10": (2, xml_bash("true"), SUBMIT["xml"]),
}
TICKS = {
    "a01": (3, "ls", SUBMIT["ticks"]),
    "a02": (2, "grep -n route app.py", SUBMIT["ticks"]),
    "a04": (4, "cat > run.py << 'EOF'\nimport app\nprint(app.f(2))\nEOF", SUBMIT["ticks"]),
    "a05": (1, SUBMIT["ticks"], SUBMIT["ticks"]),
    "a06": (2, "str_replace_editor view /testbed", SUBMIT["ticks"]),
    "a07": (2, "ls", SUBMIT["ticks"]),
    "a08": (2, "pwd", SUBMIT["ticks"]),
    "a09": (
        2,
        "pytest",
        "str_replace_editor str_replace /a.py --old_str 'é = 'a'' --new_str 'ü = \"b\"'",
    ),
    "a10": (2, "pytest -t 9", SUBMIT["ticks"]),
    "b01": (2, "python -c 'f(2)'", SUBMIT["ticks"]),
    "b02": (2, "git status", SUBMIT["ticks"]),
    "b03": (2, "ls", "cat > README.md << 'EOF'\n```python\nimport app\n```\nEOF"),
    "b04": (
        2,
        "str_replace_editor str_replace /a.py --old_str '</function>' --new_str '<function=f>'",
        SUBMIT["ticks"],
    ),
    "b05": (8, "sed -n 1p app.py", SUBMIT["ticks"]),
    "b07": (3, "rm run.py", SUBMIT["ticks"]),
    "b08": (2, "  python app.py", SUBMIT["ticks"]),
    "b09": (2, "ls | head -1 && echo a", "echo done"),
    "b10": (2, "true", SUBMIT["ticks"]),
}
TABLES: dict[Form, dict[str, tuple[int, str, str]]] = {"tool": TOOL, "xml": XML, "ticks": TICKS}


# --- reading -------------------------------------------------------------------------------------


def load(
    tmp_path: Path, rows: Sequence[Any], options: AgentStepOptions | None = None, **more: Any
) -> tuple[list[Problem], AgentStepReport]:
    path = tmp_path / "runs.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return load_agent_steps(path, options, **more)


def load_one(
    tmp_path: Path, form: Form, acts: Sequence[Act], options: AgentStepOptions | None = None
) -> tuple[list[Problem], AgentStepReport]:
    return load(tmp_path, [Run("a", acts).row(form)], options)


def prefix_of(problem: Problem) -> Prefix:
    assert problem.prefix is not None
    return problem.prefix


def target_of(problem: Problem) -> str:
    target = prefix_of(problem).target
    assert target is not None
    return target


@pytest.mark.parametrize("form", FORMS)
def test_the_twenty_rows_of_each_form_give_these_instances(tmp_path: Path, form: Form) -> None:
    assert len(RUNS) == 20
    problems, report = load(tmp_path, [run.row(form) for run in RUNS])
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        _, trajectory, _ = problem.problem_id.split("/")
        found.setdefault(trajectory.split(".")[1], []).append(problem)
    assert list(found) == list(TABLES[form])
    for name, (count, first, last) in TABLES[form].items():
        targets = [target_of(problem) for problem in found[name]]
        assert (len(targets), targets[0], targets[-1]) == (count, first, last), name
        assert {p.question for p in found[name]} == {question(name)}
    assert all(p.answer is None and prefix_of(p).kind == "step" for p in problems)
    assert all(prefix_of(p).correct is None for p in problems)
    assert report.forms == {form: 18}
    assert report.rows.skipped() == "2 x not resolved (row 3)"
