# SPDX-License-Identifier: Apache-2.0
"""Trajectories written as the splits of SWE-bench/SWE-smith-trajectories write them.

Keys, roles and marks are those of the published rows; the little repositories are made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from satori_fast.data.agent_steps import Form

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


# What SWE-smith's export leaves of a run that was ended for its cost: a fixed text as "tool", a
# call of submit as "xml", an empty block as "ticks".
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
