# SPDX-License-Identifier: Apache-2.0
"""Output of the verb explain, as JSON and as text for people. Its content is `explain`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from satori_fast.data.formats.steps import StepResponse
from satori_fast.data.rollout_rows import RolloutRow
from satori_fast.rewards.similarity import TERM
from satori_fast.types import Prefix, SegmentKind, SegmentSignal, Trajectory

_PIPED_WIDTH = 100  # columns, where the output is no terminal


@dataclass(frozen=True)
class ExplainedRow:
    """A row of the file, with its signal.

    trajectory: that of the row, scored. dropped: why its group is not trained on, "" where it is.
    step:       what was read as monologue and step; None where no step was asked for.
    """

    row: RolloutRow
    trajectory: Trajectory
    signal: SegmentSignal
    dropped: str
    step: StepResponse | None = None


@dataclass(frozen=True)
class Explanation:
    """Explanation of a file: its rows in order, the counts of the whole, and what was left out.

    absent: terms of the reward that need a model. colours: of the kinds of segments.
    """

    rows: Sequence[ExplainedRow]
    summary: Mapping[str, Any]
    notes: Sequence[str]
    absent: Sequence[str]
    colours: Mapping[SegmentKind, str]

    def json_lines(self) -> list[str]:
        """A line of JSON for each row, and a last one, ``{"summary": {...}}``."""
        records = [self._record(row) for row in self.rows]
        summary = {**self.summary, "notes": list(self.notes)}
        return [json.dumps(record) for record in (*records, {"summary": summary})]

    def _record(self, row: ExplainedRow) -> dict[str, Any]:
        reward = row.trajectory.reward
        assert reward is not None
        record = {
            "segments": _segment_records(row),
            "terms": {**reward.terms, **dict.fromkeys(self.absent)},
            "total": reward.total,
            "correct": reward.correct,
            "kept": not row.dropped,
        }
        if row.step is not None:
            record |= {"similarity": reward.terms[TERM], "fault": row.step.fault}
        return record | ({"reason": row.dropped} if row.dropped else {})

    def show(self, console: Console) -> None:
        """Print it for people: in colours on a terminal, as plain text elsewhere."""
        if console.is_terminal:
            self._show(console)
            return
        plain = Console(width=_PIPED_WIDTH, color_system=None)
        with plain.capture() as capture:
            self._show(plain)
        for line in capture.get().splitlines():
            _print(console, line.rstrip())

    def _show(self, console: Console) -> None:
        question = None
        for row in self.rows:
            problem = row.trajectory.problem
            if question != (question := (row.row.step, problem.question, problem.prefix)):
                if row is not self.rows[0]:
                    console.print()
                _print(console, f"{_where(row.row.step)}{problem.question}")
                if problem.prefix is not None:
                    self._show_prefix(console, problem.prefix, is_partial=row.step is not None)
            _print(console, f"\n{self._heading(row)}")
            console.print(_table(row, self.colours))
        console.print()
        for name, value in self.summary.items():
            _print(console, f"{name:<28} {_shown(value)}")
        for note in self.notes:
            _print(console, f"note: {note}")

    def _show_prefix(self, console: Console, prefix: Prefix, *, is_partial: bool) -> None:
        """is_partial: a partial solution, whose next step was asked for."""
        if is_partial:
            _print(console, f"so far: {prefix.text.strip() or 'nothing'}")
            _print(console, f"expert's step: {prefix.target}")
        else:
            _print(console, f"from: {prefix.text}")

    def _heading(self, row: ExplainedRow) -> str:
        reward = row.trajectory.reward
        assert reward is not None
        verdict = {True: "right", False: "wrong", None: "not graded"}[reward.correct]
        if row.step is not None:
            verdict = "a step" if row.step.fault is None else f"no step ({row.step.fault})"
        terms = [f"{name} {value:g}" for name, value in reward.terms.items()]
        terms += [f"{name} null" for name in self.absent]
        given = f" = {' + '.join(terms)}" if terms else ""
        kept = f"dropped: {row.dropped}" if row.dropped else "kept"
        cut = ", cut off at the limit" if row.trajectory.finish == "length" else ""
        return f"row {row.row.number}: {verdict}{cut}, reward {reward.total:g}{given}, {kept}"


def loss_shares(rows: Sequence[ExplainedRow]) -> dict[str, float]:
    """Share of each kind of segment in the loss weight of all tokens, over the steps together."""
    sums: Counter[str] = Counter()
    for row in rows:
        for segment in _segment_records(row):
            sums[segment["kind"]] += segment["weight"] * segment["num_tokens"]
    total = sum(sums.values())
    return {kind: _number(share / total) for kind, share in sums.items() if total > 0}


def _segment_records(row: ExplainedRow) -> list[dict[str, Any]]:
    signal = row.signal
    columns = (signal.rewards, signal.baselines, signal.advantages, signal.weights)
    return [
        {
            "kind": str(segment.kind),
            "text": segment.text,
            "verdict": segment.verdict,
            "reward": _number(reward, 7),  # divided and multiplied in float32
            "baseline": _number(baseline, 7),
            "advantage": _number(advantage),
            "num_tokens": segment.stop - segment.start,
            "weight": _number(weight),
        }
        for segment, reward, baseline, advantage, weight in zip(
            row.trajectory.segments, *columns, strict=True
        )
    ]


def _number(value: float, digits: int = 9) -> float:
    """Rounded; nine digits tell every float32 apart. No negative zero."""
    return float(f"{value:.{digits}g}") + 0.0


def _table(row: ExplainedRow, colours: Mapping[SegmentKind, str]) -> Table:
    segments = _segment_records(row)
    names = ["reward", "baseline", "advantage", "num_tokens", "weight"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    has_verdicts = any(segment["verdict"] is not None for segment in segments)
    table.add_column("kind")
    for name in names:
        table.add_column(name.removeprefix("num_"), justify="right")
    if has_verdicts:
        table.add_column("verdict")
    table.add_column("text", overflow="fold")
    for segment in segments:
        cells = [Text(segment["kind"], style=colours.get(SegmentKind(segment["kind"]), ""))]
        cells += [Text(_shown(segment[name])) for name in names]
        if has_verdicts:
            cells.append(Text(_shown(segment["verdict"])))
        table.add_row(*cells, Text(segment["text"]))
    return table


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "null" if value is None else str(value)


def _where(step: tuple[str, int]) -> str:
    stage, number = step
    return f"{stage}{' ' * bool(stage)}step {number}: "


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
