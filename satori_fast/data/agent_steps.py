# SPDX-License-Identifier: Apache-2.0
"""Step-wise problems from the trajectories of a software agent (SRL, arXiv 2510.25992).

A row is one trajectory as SWE-smith publishes them (SWE-bench/SWE-smith-trajectories on the hub):
`messages` (a list of messages, or its JSON text), `instance_id`, `resolved`, and `traj_id`, `model`
and `patch`, which nothing here depends on: published patches are empty in places, and in others
those of another run. Its three splits write the same thing in three forms:

    tool    the assistant's turn has `tool_calls`, a turn of role "tool" answers
    xml     the turn holds ``<function=bash>`` and ``<parameter=command>ls</parameter>`` lines,
            closed by ``</function>``; a user turn answers
    ticks   the turn ends in a fenced block that is the command; a user turn answers

Every action of the expert is one instance: the question is what the user wrote before the first
action, the prefix the last two rounds of action and observation, the target the action. As in the
paper the monologue is the model's own, so the expert's thought is neither shown nor a target unless
`include_thought` says so. What the paper leaves open is decided here: the system's turn is dropped,
the first action has an empty prefix, the last one ("submit") is asked like any other, and a turn
without an action that can be read is neither an instance nor a round.

Not here: containers (`rows`), where a prefix stands in the prompt (`formats`), tokens and their
limits (`prompts`), similarity (`rewards`).
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

from satori_fast.data.collection import SourceReport
from satori_fast.data.rows import GoodRow, Row, file_rows, file_stem, hub_rows, is_file_name
from satori_fast.data.sources import RowIds
from satori_fast.data.values import BadRow, check_text, field_value, is_missing, plain
from satori_fast.types import Prefix, Problem

logger = logging.getLogger(__name__)

Form = Literal["tool", "xml", "ticks"]

_COLUMNS = ("messages", "instance_id", "resolved", "traj_id")
_FUNCTION = re.compile(r"^[ \t]*(?=<function=[^<>\n]*>)", re.MULTILINE)
_FUNCTION_END = "</function>"
_FENCE = re.compile(r"^```[ \t]*(\S*)[ \t]*$", re.MULTILINE)
_OBSERVATION_MARK = "OBSERVATION:\n"  # of SWE-agent, before every output
_SHORTENED = "\n[... {} characters left out ...]\n"
_SMALLEST_OBSERVATION = 100  # characters: room for the mark and something around it


@dataclass(frozen=True, slots=True)
class AgentStepOptions:
    """Choice of instances from a trajectory. Lengths are in characters; the paper names none.

    num_rounds:         rounds before the action that are shown; the paper has 2.
    include_unresolved: also take trajectories whose patch did not resolve the task.
    include_thought:    an action, as target and in a round, has the expert's thought before it.
    max_observation_characters: a longer observation loses its middle, as in the agent's own
                        harness, and a mark says how much; left out, every look at a long file
                        would be missing.
    max_prompt_characters: an instance whose question and rounds are longer is left out, never cut.
    Errors: ValueError for a number out of range.
    """

    num_rounds: int = 2
    include_unresolved: bool = False
    include_thought: bool = False
    max_observation_characters: int = 8_000
    max_prompt_characters: int = 40_000

    def __post_init__(self) -> None:
        for name, smallest in (
            ("num_rounds", 0),
            ("max_observation_characters", _SMALLEST_OBSERVATION),
            ("max_prompt_characters", 1),
        ):
            value = getattr(self, name)
            if value < smallest:
                raise ValueError(f"{name} must be at least {smallest}, it is {value}")


@dataclass(frozen=True, slots=True)
class Round:
    """An action of an agent and what the environment answered."""

    action: str
    observation: str


@dataclass(slots=True)
class AgentStepReport:
    """Counts of one source of trajectories, with an example of every reason.

    rows:    trajectories read and left out.
    actions: turns of the assistant in the other rows: `num_rows` in all, `num_used` instances,
             the rest left out by reason.
    forms:   how many of the used trajectories are written in which form.
    num_shortened: observations that lost their middle.
    """

    rows: SourceReport
    actions: SourceReport
    forms: Counter[Form] = field(default_factory=Counter[Form])
    num_shortened: int = 0

    def finish(self) -> None:
        """Log what was left out; ValueError when no instance remains."""
        rows, actions = self.rows, self.actions
        if rows.num_rows and not actions.num_used:
            left_out = [counts.skipped() for counts in (rows, actions) if counts.num_skipped]
            raise ValueError(
                f"{rows.source}: no step in {rows.num_rows} rows: {'; '.join(left_out)}; correct "
                "the rows, raise the limits or include unresolved trajectories"
            )
        rows.finish()
        if actions.num_skipped:
            logger.warning(
                "%s: %d of %d actions left out: %s",
                rows.source,
                actions.num_skipped,
                actions.num_rows,
                actions.skipped(),
            )
        if self.num_shortened:
            logger.info("%s: %d observations shortened", rows.source, self.num_shortened)


def load_agent_steps(
    source: str | Path,
    options: AgentStepOptions | None = None,
    *,
    name: str | None = None,
    split: str = "tool",
    limit: int | None = None,
) -> tuple[list[Problem], AgentStepReport]:
    """Read trajectories as step-wise problems, in the order of the rows and of their actions.

    source: a .jsonl, .json (also .gz) or .parquet file, or a hub name.
    name:   start of the problem ids, "<name>/<traj_id or instance_id>/<number of the turn>", so
            that a split by trajectory can be read off them; default: the file's stem.
    split:  for the hub only: "tool", "xml" or "ticks".
    limit:  stop after so many trajectories that were used; the paper takes 5,000.
    Errors: ValueError for a missing or unreadable file, and when no instance is left; the reason of
    each row that was left out, and the first such row, are in its text and in the report.
    """
    options = options or AgentStepOptions()
    report = AgentStepReport(SourceReport(str(source)), SourceReport(str(source)))
    ids = RowIds(name or file_stem(source), "id")
    problems: list[Problem] = []
    for number, row in _rows(source, split):
        report.rows.num_rows += 1
        try:
            if isinstance(row, BadRow):
                raise row
            trajectory = _trajectory(row, options)
            own = next(
                (v for n in ("traj_id", "instance_id") if not is_missing(v := row.get(n))), ""
            )
            trajectory_id = ids.make({"id": own}, number)
        except BadRow as bad:
            report.rows.skip(number, bad)
            continue
        report.rows.num_used += 1
        report.forms[trajectory.form] += 1
        problems += _instances(trajectory, trajectory_id, number, options, report)
        if report.rows.num_used == limit:
            break
    report.finish()
    return problems, report


def render_rounds(rounds: Sequence[Round]) -> str:
    """Text of the rounds before an action, oldest first; "" for none. It ends in a line break.

    >>> print(render_rounds([Round("ls", "a.py\\nb.py"), Round("cat a.py", "x = 1")]), end="")
    <action>
    ls
    </action>
    <observation>
    a.py
    b.py
    </observation>
    <action>
    cat a.py
    </action>
    <observation>
    x = 1
    </observation>
    """
    return "".join(
        f"<action>\n{r.action}\n</action>\n<observation>\n{r.observation}\n</observation>\n"
        for r in rounds
    )


def tool_call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """The one text of a tool call: its name and its arguments as JSON, keys in order.

    The arguments of the published rows are JSON text in the order in which the model wrote them;
    two calls that do the same are the same target.

    >>> tool_call_text("bash", {"timeout": 5, "command": "ls"})
    'bash {"command": "ls", "timeout": 5}'
    """
    return f"{name} {json.dumps(arguments, sort_keys=True, ensure_ascii=False)}"


def shorten(text: str, max_characters: int) -> str:
    """The text, or its start and end with a mark between them: at most `max_characters` in all."""
    if len(text) <= max_characters:
        return text
    room = max_characters - len(_SHORTENED.format(len(text)))
    tail = room // 2
    head = room - tail
    return text[:head] + _SHORTENED.format(len(text) - room) + text[len(text) - tail :]


# --- instances -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Turn:
    """A turn of the assistant. number: of its message, from 1. action: why there is none."""

    number: int
    form: Form | None
    action: str | BadRow
    answers: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # role, text


@dataclass(frozen=True, slots=True)
class _Trajectory:
    question: str
    form: Form
    turns: Sequence[_Turn]


def _instances(
    trajectory: _Trajectory,
    trajectory_id: str,
    row_number: int,
    options: AgentStepOptions,
    report: AgentStepReport,
) -> Iterator[Problem]:
    rounds: deque[Round] = deque(maxlen=options.num_rounds)
    for number, turn in enumerate(trajectory.turns, start=1):
        report.actions.num_rows += 1
        where = f"message {turn.number}"
        if isinstance(turn.action, BadRow):
            detail = f": {turn.action.detail}" if turn.action.detail else ""
            report.actions.skip(row_number, BadRow(turn.action.reason, where + detail))
            continue
        shown = render_rounds(tuple(rounds))
        length = len(trajectory.question) + len(shown)
        if length > options.max_prompt_characters:
            bad = BadRow("the prompt is too long", f"{where}: {length} characters")
            report.actions.skip(row_number, bad)
        else:
            report.actions.num_used += 1
            prefix = Prefix(shown, "step", target=turn.action)
            yield Problem(f"{trajectory_id}/{number}", trajectory.question, None, prefix)
        observation = "\n".join(text for _, text in turn.answers)
        shortened = shorten(observation, options.max_observation_characters)
        report.num_shortened += shortened != observation
        rounds.append(Round(turn.action, shortened))


# --- rows ----------------------------------------------------------------------------------------


def _rows(source: str | Path, split: str) -> Iterator[tuple[int, Row]]:
    if is_file_name(source):
        return file_rows(Path(source).expanduser(), _COLUMNS)
    return hub_rows(str(source), None, split, _COLUMNS)


def _trajectory(row: GoodRow, options: AgentStepOptions) -> _Trajectory:
    """What a row holds; `BadRow` where it is not one trajectory in one form."""
    if not options.include_unresolved:
        resolved = field_value(row, "resolved")
        if not isinstance(resolved, bool):
            raise BadRow("resolved is not true or false", repr(resolved)[:80])
        if not resolved:
            raise BadRow("not resolved")
    question, turns = list[str](), list[_Turn]()
    for number, message in enumerate(_messages(row), start=1):
        role, text = message.get("role"), _text(message, number)
        if role == "assistant":
            turns.append(_turn(message, text, number, options))
        elif role in ("user", "tool") and turns:
            turns[-1].answers.append((role, text.removeprefix(_OBSERVATION_MARK)))
        elif role == "user":
            question.append(text.strip())
        elif role != "system":
            raise BadRow("a message of an unexpected role", f"message {number}: {role!r}")
    if not any(question):
        raise BadRow("no problem before the first action")
    return _Trajectory("\n\n".join(question), _only_form(turns), turns)


def _messages(row: GoodRow) -> Sequence[Mapping[str, Any]]:
    value = field_value(row, "messages")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRow("messages is not JSON", str(error)[:80]) from None
    messages = _list(value)
    if not messages or not all(isinstance(message, dict) for message in messages):
        raise BadRow("messages is not a list of messages", repr(messages or value)[:80])
    return messages


def _text(message: Mapping[str, Any], number: int) -> str:
    """A message's content: text, a list of parts of text, or null beside tool calls."""
    content = plain(message.get("content"), "content")
    parts = _list(content) or [content or ""]
    texts = [_object(part).get("text", part) for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise BadRow("content that is not text", f"message {number}: {repr(parts)[:80]}")
    text = "\n".join(texts)
    check_text(text, "messages")
    return text


def _only_form(turns: Sequence[_Turn]) -> Form:
    """The form of all turns. `BadRow` where they have several, none, or an answer is missing."""
    seen: dict[Form, int] = {}
    for turn in turns:
        roles = {role for role, _ in turn.answers}
        if turn.form == "tool" and "user" in roles:
            detail = f"message {turn.number}: a user turn answers a tool call"
            raise BadRow("messages mix forms", detail)
        if turn.form is not None:
            seen.setdefault(turn.form, turn.number)
        if "tool" in roles:
            seen.setdefault("tool", turn.number)
    if len(seen) > 1:
        listed = ", ".join(f"message {number} is {form}" for form, number in seen.items())
        raise BadRow("messages mix forms", listed)
    usable = [turn for turn in turns if isinstance(turn.action, str)]
    if not seen or not usable:
        first = next((f"message {t.number}: {t.action}" for t in turns), "no assistant turn")
        raise BadRow("no action", first)
    for turn, _ in pairwise(turns):
        if isinstance(turn.action, str) and not turn.answers:
            raise BadRow("an action without an observation", f"message {turn.number}")
    return next(iter(seen))


# --- actions -------------------------------------------------------------------------------------


def _turn(message: Mapping[str, Any], text: str, number: int, options: AgentStepOptions) -> _Turn:
    try:
        form, thought, action = _action(message, text.rstrip())
        check_text(action + thought, "messages")
    except BadRow as bad:
        return _Turn(number, None, bad)
    shown = f"{thought}\n\n{action}" if options.include_thought and thought else action
    return _Turn(number, form, shown)


def _action(message: Mapping[str, Any], text: str) -> tuple[Form, str, str]:
    """(form, thought, action) of a turn; `BadRow` for one without an action that can be read."""
    if calls := message.get("tool_calls"):
        thought = message.get("thought")
        return "tool", (thought if isinstance(thought, str) else text).strip(), _calls_text(calls)
    if text.endswith("```"):
        thought, action = _fenced_command(text)
        return "ticks", thought.strip(), action
    start = _FUNCTION.search(text)
    if start is None:
        raise BadRow("a turn without an action", repr(text)[:80])
    end = text.rfind(_FUNCTION_END)
    if end < start.end():
        raise BadRow("a function block that is not closed")
    action = text[start.end() : end + len(_FUNCTION_END)]
    if re.match(r"<function=\s*>", action):
        raise BadRow("an empty action")
    return "xml", text[: start.start()].strip(), action


def _fenced_command(text: str) -> tuple[str, str]:
    """The text before the last fenced block, and what is in it. A block may hold fenced blocks
    that name a language; where several do not, which of them is the command is a guess."""
    blocks: list[tuple[re.Match[str], re.Match[str]]] = []
    opened: list[re.Match[str]] = []
    for fence in _FENCE.finditer(text):
        if fence[1] or not opened:
            opened.append(fence)
            continue
        opening = opened.pop()
        if not opened:
            blocks.append((opening, fence))
    if opened or not blocks or blocks[-1][1].end() != len(text):
        raise BadRow("a fenced block that is not closed")
    if sum(not opening[1] for opening, _ in blocks) > 1:
        raise BadRow("several fenced blocks without a language")
    opening, closing = blocks[-1]
    command = text[opening.end() : closing.start()].strip("\n")
    if not command.strip():
        raise BadRow("an empty action")
    return text[: opening.start()], command


def _calls_text(calls: Any) -> str:
    """The calls of one turn, a line each (SWE-agent makes one)."""
    texts: list[str] = []
    for call in _list(calls):
        function = _object(_object(call).get("function"))
        name = function.get("name")
        if not isinstance(name, str):
            raise BadRow("a tool call without a function", repr(call)[:80])
        if not name.strip():
            raise BadRow("an empty action")
        texts.append(tool_call_text(name, _arguments(function.get("arguments"))))
    if not texts:
        raise BadRow("a tool call without a function", repr(calls)[:80])
    return "\n".join(texts)


def _arguments(value: Any) -> Mapping[str, Any]:
    """Arguments of a call, as an object or as its JSON text; nothing stands for none."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRow("arguments that are not JSON", str(error)[:80]) from None
    if isinstance(value, dict):
        return _object(value)
    if is_missing(value):
        return {}
    raise BadRow("arguments that are not an object", repr(value)[:80])


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _object(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
