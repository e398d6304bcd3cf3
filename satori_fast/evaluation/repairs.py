# SPDX-License-Identifier: Apache-2.0
"""Trajectories of a scripted expert that repairs repositories, as rows for `data.agent_steps`.

The expert looks at the failing test, opens each faulty file and edits it, runs the tests and
submits; it knows the gold patch. What it is answered is real: text of the files, what the tests
print in the sandbox, the judge's verdict. Texts are short, for small models. Not for: reading rows
(`data.agent_steps`), or agents that a model drives.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from satori_fast.data.agent_steps import Form
from satori_fast.evaluation import sandbox
from satori_fast.evaluation.patches import apply_patch, judge
from satori_fast.evaluation.repositories import Repository, small_repositories

_SYSTEM = "You repair programs with a shell and an editor. Submit when the tests pass."
_MARK = "OBSERVATION:\n"  # of SWE-agent, before every output
_LINES_SHOWN = 5  # of a test below its name
_EDITOR = "str_replace_editor"
_BLOCKS = ("old_str", "new_str")  # parameters that stand on lines of their own in the form xml
_RUN_TESTS = (
    "import sys, unittest; sys.path.insert(0, ''); unittest.main(None, argv=['', *sys.argv[1:]])"
)
_SECONDS = re.compile(r"(?<=Ran )(\d+ tests?) in \S+")
_SCRATCH = re.compile(r'[^\s"]*/sandbox/copy/')

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Act:
    """One turn: a call of a function, the command line that does the same, and the answer."""

    thought: str
    name: str
    line: str
    arguments: Mapping[str, str] = field(default_factory=dict[str, str])
    observation: str | None = None


def expert_trajectories(
    form: Form,
    repositories: Sequence[Repository] | None = None,
    *,
    limits: sandbox.Limits | None = None,
    trusted: bool = False,
    num_at_once: int = 4,
) -> list[dict[str, Any]]:
    """Write the expert's trajectory over each repository, as a row of the published schema.

    form:         how turns are written: "tool", "xml" or "ticks" (`data.agent_steps`).
    repositories: default: the package's own (`small_repositories`).
    limits, trusted: of the tests, as for `judge`.

    Rows have `messages` (JSON text), `instance_id` and `traj_id`, `model`, `resolved` (what the
    judge says) and `patch` (the gold one); the same on every machine. IsolationError as for
    `judge`, ValueError for a gold patch that edits cannot write.
    """
    chosen = small_repositories() if repositories is None else repositories

    def row(repository: Repository) -> dict[str, Any]:
        return _row(form, repository, limits=limits, trusted=trusted)

    with ThreadPoolExecutor(num_at_once) as pool:
        return list(pool.map(row, chosen))


def _row(
    form: Form, repository: Repository, *, limits: sandbox.Limits | None, trusted: bool
) -> dict[str, Any]:
    verdict = judge(repository, repository.gold_patch, limits=limits, trusted=trusted)
    patched = apply_patch(repository, repository.gold_patch)
    names = [*repository.fail_to_pass, *repository.pass_to_pass]
    modules = list(dict.fromkeys(name.rsplit(".", 2)[0] for name in names))
    outcome = sandbox.run(
        [*sandbox.PYTHON, "-c", _RUN_TESTS, *modules],
        {**patched, **repository.tests},
        links=repository.links,
        limits=limits,
        trusted=trusted,
    )
    acts = [
        _look_at_test(repository),
        *_repair_files(repository, patched),
        _bash(
            "I run the tests.",
            f"python -m unittest {shlex.join(modules)}",
            _SCRATCH.sub("", _SECONDS.sub(r"\1", outcome.output)),
        ),
        _Act("I am done.", "submit", "submit"),
    ]
    return {
        "messages": json.dumps([*_opening(form, repository), *_WRITERS[form](acts)]),
        "instance_id": repository.name,
        "traj_id": f"{repository.name}.{form}",
        "model": "scripted",
        "resolved": verdict.reason == "resolved",
        "patch": repository.gold_patch,
    }


# --- acts ----------------------------------------------------------------------------------------


def _bash(thought: str, command: str, observation: str) -> _Act:
    return _Act(thought, "bash", command, {"command": command}, observation)


def _look_at_test(repository: Repository) -> _Act:
    """The act that shows the first failing test, as `grep` finds it."""
    module, _, test = repository.fail_to_pass[0].rsplit(".", 2)
    path = f"{module.replace('.', '/')}.py"
    lines = repository.tests[path].splitlines(keepends=True)
    start = next(place for place, line in enumerate(lines) if f"def {test}(" in line)
    shown = "".join(lines[start : start + 1 + _LINES_SHOWN])
    command = f"grep -A {_LINES_SHOWN} 'def {test}(' {path}"
    return _bash("I look at the failing test.", command, shown)


def _repair_files(repository: Repository, patched: Mapping[str, str]) -> Iterator[_Act]:
    """Acts that open and edit each file that the gold patch changes."""
    for path in repository.oracle_files:
        before, after = repository.files.get(path), patched.get(path)
        if before == after:
            continue
        if before is None or after is None:
            raise ValueError(f"{repository.name}: its gold patch makes or deletes {path}")
        yield _bash(f"I open {path}.", f"cat {path}", before)
        for old, new in _edits(before, after):
            words = ("--old_str", old, "--new_str", new)
            yield _Act(
                "I mend it.",
                _EDITOR,
                f"{_EDITOR} str_replace {path} {shlex.join(words)}",
                {"command": "str_replace", "path": path, "old_str": old, "new_str": new},
                f"The file {path} has been edited.",
            )


def _edits(before: str, after: str) -> list[tuple[str, str]]:
    """Replacements that make a text of another, in order, each of a part that is there once."""
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    for num_context in range(len(old) + 1):
        matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
        edits = [
            _without_last_break(
                "".join(old[group[0][1] : group[-1][2]]), "".join(new[group[0][3] : group[-1][4]])
            )
            for group in matcher.get_grouped_opcodes(num_context)
        ]
        if _edited(before, edits) == after:
            return edits
    raise ValueError("an empty file has no part that could be replaced")


def _edited(text: str, edits: Sequence[tuple[str, str]]) -> str | None:
    for part, replacement in edits:
        if not part or text.count(part) != 1:
            return None
        text = text.replace(part, replacement)
    return text


def _without_last_break(old: str, new: str) -> tuple[str, str]:
    both = old.endswith("\n") and new.endswith("\n")
    return (old[:-1], new[:-1]) if both else (old, new)


# --- forms ---------------------------------------------------------------------------------------


def _opening(form: Form, repository: Repository) -> list[Message]:
    failing = "\n".join(repository.fail_to_pass)
    question: Any = f"{repository.problem.strip()}\nFailing tests:\n{failing}"
    if form == "tool":
        question = [{"type": "text", "text": question}]
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]


def _tool_messages(acts: Sequence[_Act]) -> Iterator[Message]:
    for number, act in enumerate(acts):
        call_id = f"call_{number}"
        function = {"name": act.name, "arguments": json.dumps(act.arguments)}
        yield {
            "role": "assistant",
            "content": act.thought,
            "thought": act.thought,
            "action": act.line,
            "tool_calls": [{"function": function, "id": call_id, "type": "function"}],
        }
        if act.observation is not None:
            content = [{"type": "text", "text": f"{_MARK}{act.observation}"}]
            yield {"role": "tool", "content": content, "tool_call_ids": [call_id]}


def _xml_messages(acts: Sequence[_Act]) -> Iterator[Message]:
    return _text_messages(acts, _xml_action)


def _xml_action(act: _Act) -> str:
    lines = [f"<function={act.name}>"]
    for key, value in act.arguments.items():
        text = f"\n{value}\n" if key in _BLOCKS else value
        lines.append(f"<parameter={key}>{text}</parameter>")
    return "\n".join([*lines, "</function>"])


def _ticks_messages(acts: Sequence[_Act]) -> Iterator[Message]:
    return _text_messages(acts, lambda act: f"```\n{act.line}\n```")


def _text_messages(acts: Sequence[_Act], write: Callable[[_Act], str]) -> Iterator[Message]:
    for act in acts:
        yield {"role": "assistant", "content": f"{act.thought}\n\n{write(act)}"}
        if act.observation is not None:
            yield {"role": "user", "content": f"{_MARK}{act.observation}"}


_WRITERS: Mapping[Form, Callable[[Sequence[_Act]], Iterator[Message]]] = {
    "tool": _tool_messages,
    "xml": _xml_messages,
    "ticks": _ticks_messages,
}
