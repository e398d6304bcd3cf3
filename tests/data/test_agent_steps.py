# SPDX-License-Identifier: Apache-2.0
"""Trajectories of software agents as step-wise problems: three published forms, and bad rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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
from tests.data.agent_runs import (
    FORMS,
    PYTHON,
    RUNS,
    Act,
    Message,
    Run,
    bash,
    empty,
    messages_of,
    prose,
    question,
    submit,
)

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


@pytest.mark.parametrize(
    ("form", "reasons"),
    [
        ("tool", {"a turn without an action": 2, "an empty action": 1}),
        ("xml", {"a turn without an action": 1, "an empty action": 1}),
        ("ticks", {"a turn without an action": 1, "an empty action": 2}),
    ],
)
def test_turns_without_an_action_are_counted_with_an_example(
    tmp_path: Path, form: Form, reasons: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    _, report = load(tmp_path, [run.row(form) for run in RUNS])
    assert report.actions.reasons == reasons
    assert report.actions.first["a turn without an action"].startswith("row 7: message 5")
    assert report.actions.first["an empty action"] == "row 8: message 3"
    assert report.actions.num_rows == report.actions.num_used + sum(reasons.values())
    rows, actions = caplog.messages
    assert rows.endswith("runs.jsonl: 2 of 20 rows skipped: 2 x not resolved (row 3)")
    assert f" {sum(reasons.values())} of {report.actions.num_rows} actions left out: " in actions


def test_rounds_are_marked_and_in_order() -> None:
    assert render_rounds([]) == ""
    assert render_rounds([Round("ls", "a.py\nb.py"), Round("cat a.py", "")]) == (
        "<action>\nls\n</action>\n<observation>\na.py\nb.py\n</observation>\n"
        "<action>\ncat a.py\n</action>\n<observation>\n\n</observation>\n"
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_prompt_holds_the_two_rounds_before_the_action(tmp_path: Path, form: Form) -> None:
    acts = [bash("ls", "a.py"), bash("cat a.py", "x = 1"), bash("pytest", "1 failed"), submit()]
    problems, _ = load_one(tmp_path, form, acts)
    targets = [target_of(problem) for problem in problems]
    answers = ["a.py", "x = 1", "1 failed"]
    rounds = [Round(t, a) for t, a in zip(targets, answers, strict=False)]
    shown = [rounds[:0], rounds[:1], rounds[:2], rounds[1:3]]
    assert [prefix_of(p).text for p in problems] == [render_rounds(r) for r in shown]
    for number, start in ((0, 3), (1, 2)):
        problems, _ = load_one(tmp_path, form, acts, AgentStepOptions(num_rounds=number))
        assert prefix_of(problems[3]).text == render_rounds(rounds[start:])


def test_a_turn_without_an_action_is_no_round(tmp_path: Path) -> None:
    acts = [bash("ls", "a.py"), prose("I see.", "No action found."), bash("pwd", "/"), submit()]
    problems, _ = load_one(tmp_path, "ticks", acts)
    assert [p.problem_id for p in problems] == [
        f"runs/owner__repo.a.8qa84d2e/{number}" for number in (1, 3, 4)
    ]
    assert prefix_of(problems[2]).text == render_rounds([Round("ls", "a.py"), Round("pwd", "/")])


@pytest.mark.parametrize(("form", "call"), list(SUBMIT.items()))
def test_the_thought_stands_before_the_action_where_it_is_asked_for(
    tmp_path: Path, form: Form, call: str
) -> None:
    acts = [bash("ls", "a.py", thought=PYTHON), submit()]
    problems, _ = load_one(tmp_path, form, acts, AgentStepOptions(include_thought=True))
    assert target_of(problems[0]).startswith(PYTHON + "\n\n")
    assert target_of(problems[1]) == f"Let me go on.\n\n{call}"
    assert prefix_of(problems[1]).text == render_rounds([Round(target_of(problems[0]), "a.py")])


def test_unresolved_trajectories_are_taken_where_it_is_asked_for(tmp_path: Path) -> None:
    rows = [run.row("tool") for run in RUNS]
    del rows[0]["resolved"]  # it is not read then
    _, report = load(tmp_path, rows, AgentStepOptions(include_unresolved=True))
    assert (report.rows.num_used, report.actions.num_used) == (20, 45 + 4)


# --- lengths -------------------------------------------------------------------------------------


def test_shortening_takes_the_middle_and_says_how_much() -> None:
    assert shorten("a" * 100, 100) == "a" * 100
    text = "".join(chr(ord("a") + i % 26) for i in range(1000))
    short = shorten(text, 100)
    mark = "\n[... 936 characters left out ...]\n"  # 35 characters and room for one more
    assert mark in short and len(short) <= 100
    head, tail = short.split(mark)
    assert text.startswith(head) and text.endswith(tail)
    assert (len(head), len(tail)) == (32, 32)


def test_a_long_observation_is_shortened_and_counted(tmp_path: Path) -> None:
    acts = [bash("cat a.py", "x" * 301), bash("pwd", "y" * 300), submit()]
    options = AgentStepOptions(max_observation_characters=300)
    problems, report = load_one(tmp_path, "tool", acts, options)
    assert report.num_shortened == 1
    shown = prefix_of(problems[2]).text
    assert shorten("x" * 301, 300) in shown and "x" * 200 not in shown and "y" * 300 in shown


def test_a_prompt_above_the_limit_is_left_out_and_never_cut(tmp_path: Path) -> None:
    acts = [bash("cat a.py", "x" * 500), bash("pwd", "/"), bash("ls", "a.py"), submit()]
    whole, _ = load_one(tmp_path, "xml", acts)
    length = len(question("a")) + len(prefix_of(whole[1]).text)
    options = AgentStepOptions(max_prompt_characters=length)
    problems, report = load_one(tmp_path, "xml", acts, options)
    assert problems == [whole[0], whole[1], whole[3]]
    longer = len(question("a")) + len(prefix_of(whole[2]).text)
    assert report.actions.first == {
        "the prompt is too long": f"row 1: message 7: {longer} characters"
    }
    with pytest.raises(ValueError, match=r"no step in 1 rows: the prompt is too long \(row 1"):
        load_one(tmp_path, "xml", acts, AgentStepOptions(max_prompt_characters=10))


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_rounds", -1), ("max_observation_characters", 99), ("max_prompt_characters", 0)],
)
def test_limits_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least {value + 1}, it is {value}"):
        AgentStepOptions(**{name: value})


# --- bad rows ------------------------------------------------------------------------------------

ACTS = [bash("ls", "a.py"), bash("pwd", "/"), submit()]


def with_messages(change: Callable[[list[Message]], Any], form: Form = "tool") -> dict[str, Any]:
    return Run("a", ACTS).row(form) | {"messages": json.dumps(change(messages_of(form, "a", ACTS)))}


def mixed(first: Form, second: Form) -> dict[str, Any]:
    """The opening and the first round in one form, what follows in another."""
    return with_messages(lambda m: m[:4] + messages_of(second, "a", ACTS)[4:], first)


MIX = "messages mix forms"
BAD_ROWS: list[tuple[Any, str, str]] = [
    ("{", "not valid JSON", ""),
    (Run("a", ACTS).row("xml") | {"messages": "[{'role'"}, "messages is not JSON", "Expecting"),
    (with_messages(lambda m: "text"), "messages is not a list of messages", "'text'"),
    (with_messages(lambda m: []), "messages is not a list of messages", "[]"),
    (with_messages(lambda m: [*m, "submit"]), "messages is not a list of messages", "[{"),
    ({"resolved": True}, "no field 'messages'", ""),
    (Run("a", ACTS, columns={"resolved": None}).row("xml"), "empty field 'resolved'", ""),
    (Run("a", ACTS, columns={"resolved": "yes"}).row("xml"), "resolved is not true or false", "'y"),
    (Run("a", ACTS, resolved=False).row("xml"), "not resolved", ""),
    (mixed("tool", "xml"), MIX, "message 3 is tool, message 5 is xml"),
    (mixed("xml", "ticks"), MIX, "message 3 is xml, message 5 is ticks"),
    (mixed("ticks", "tool"), MIX, "message 3 is ticks, message 5 is tool"),
    (
        with_messages(lambda m: [*m[:3], m[3] | {"role": "user"}, *m[4:]]),
        MIX,
        "message 3: a user turn answers a tool call",
    ),
    (
        with_messages(lambda m: [*m[:3], m[3] | {"role": "tool"}, *m[4:]], "ticks"),
        MIX,
        "message 3 is ticks, message 3 is tool",
    ),
    (with_messages(lambda m: m[:2]), "no action", "no assistant turn"),
    (Run("a", [empty("")]).row("ticks"), "no action", "message 3: an empty action"),
    (with_messages(lambda m: m[2:]), "no problem before the first action", ""),
    (with_messages(lambda m: m[:3] + m[4:]), "an action without an observation", "message 3"),
    (with_messages(lambda m: [{"role": "critic"}, *m]), "a message of an unexpected role", "mess"),
    (with_messages(lambda m: [{"role": "user", "content": 5}, *m]), "content that is not text", ""),
]


@pytest.mark.parametrize(("row", "reason", "detail"), BAD_ROWS)
def test_a_bad_row_is_named_with_file_row_and_reason(
    tmp_path: Path, row: Any, reason: str, detail: str
) -> None:
    good = Run("good", ACTS).row("tool")
    problems, report = load(tmp_path, [good, row])
    assert len(problems) == 3
    assert report.rows.reasons == {reason: 1}
    assert report.rows.first[reason].startswith("row 2")
    assert detail in report.rows.first[reason]
    with pytest.raises(ValueError) as caught:
        load(tmp_path, [row])
    message = str(caught.value)
    assert f"runs.jsonl: no step in 1 rows: {reason} (row 1" in message and "\n" not in message


def test_no_row_at_all(tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no row"):
        load_agent_steps(tmp_path / "runs.json")


def call(function: Any) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}


def says(text: str) -> Message:
    return {"role": "assistant", "content": text}


BAD_ACTIONS = [
    ("tool", call({"name": "bash", "arguments": "{'command'"}), "arguments that are not JSON"),
    ("tool", call({"name": "bash", "arguments": "[1]"}), "arguments that are not an object"),
    ("tool", call({"name": " ", "arguments": "{}"}), "an empty action"),
    ("tool", call(None), "a tool call without a function"),
    ("tool", call({"name": "bash", "arguments": '{"a": "\\ud800"}'}), "messages has a lone surr"),
    ("tool", says("") | {"tool_calls": {"a": 1}}, "a tool call without a function"),
    ("xml", says("a\n\n<function=bash>\n<parameter=command>ls"), "a function block that is not cl"),
    ("xml", says("I call <function=submit></function> soon."), "a turn without an action"),
    ("ticks", says("```\nls"), "a turn without an action"),
    ("ticks", says("```\nls\n```\nand then ```"), "a fenced block that is not closed"),
    ("ticks", says("```\nls\n```\nor\n\n```\npwd\n```"), "several fenced blocks without a lang"),
]


@pytest.mark.parametrize(("form", "turn", "reason"), BAD_ACTIONS)
def test_an_action_that_cannot_be_read_is_left_out_with_its_reason(
    tmp_path: Path, form: Form, turn: Message, reason: str
) -> None:
    answer = {"role": "user", "content": "What do you mean?"}
    row = with_messages(lambda m: [*m[:2], turn, answer, *m[2:]], form)
    problems, report = load(tmp_path, [row])
    assert len(problems) == 3
    ((found, where),) = report.actions.first.items()
    assert found.startswith(reason) and where.startswith("row 1: message 3")


# --- containers and names ------------------------------------------------------------------------


def test_json_parquet_and_nested_messages_equal_jsonl(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [run.row("ticks") for run in RUNS]
    expected, _ = load(tmp_path, rows)
    (tmp_path / "runs.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "runs.parquet")
    for ending in ("json", "parquet"):
        assert load_agent_steps(tmp_path / f"runs.{ending}")[0] == expected
    nested = [row | {"messages": json.loads(row["messages"])} for row in rows]
    assert load(tmp_path, nested)[0] == expected


def test_a_split_of_the_hub_is_read_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def hub_rows(*arguments: Any) -> Any:
        asked.append(arguments[:3])
        return enumerate([Run("a", ACTS).row("xml")], start=1)

    monkeypatch.setattr("satori_fast.data.agent_steps.hub_rows", hub_rows)
    problems, _ = load_agent_steps("SWE-bench/SWE-smith-trajectories", split="xml")
    assert asked == [("SWE-bench/SWE-smith-trajectories", None, "xml")]
    assert problems[0].problem_id == "SWE-smith-trajectories/owner__repo.a.8qa84d2e/1"


def test_ids_name_the_trajectory_else_the_task_else_the_row(tmp_path: Path) -> None:
    run = Run("a", [submit()])
    rows = [run.row("xml") for _ in range(4)]
    del rows[2]["traj_id"]
    del rows[3]["traj_id"], rows[3]["instance_id"]
    problems, _ = load(tmp_path, rows, name="n")
    assert [p.problem_id for p in problems] == [
        "n/owner__repo.a.8qa84d2e/1",
        "n/owner__repo.a.8qa84d2e#2/1",
        "n/owner__repo.a/1",
        "n/4/1",
    ]


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    problems, report = load(tmp_path, [run.row("xml") for run in RUNS], limit=3)
    assert report.rows.num_used == 3  # the first, the second and the fourth
    assert (report.rows.num_rows, len(problems)) == (4, 3 + 2 + 4)


def test_one_text_for_calls_that_do_the_same() -> None:
    text = tool_call_text("bash", {"timeout": 5, "command": "echo é"})
    assert text == 'bash {"command": "echo é", "timeout": 5}'
    assert tool_call_text("bash", {"command": "echo é", "timeout": 5}) == text
