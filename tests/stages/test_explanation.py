# SPDX-License-Identifier: Apache-2.0
"""What explain prints for people. Its JSON: tests/stages/test_explain.py."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from satori_fast.stages.explain import explain
from tests.stages.test_explain import PUZZLE, RIGHT, WRONG, config_of, row, written


def test_colours_are_for_terminals_alone() -> None:
    explanation = explain(config_of(), PUZZLE)
    texts: dict[bool, str] = {}
    for terminal in (True, False):
        file = io.StringIO()
        explanation.show(Console(file=file, force_terminal=terminal, width=120))
        texts[terminal] = file.getvalue()
    assert "\x1b[" in texts[True] and "\x1b" not in texts[False]
    assert "1.5000" in texts[False]
    assert [line for line in texts[False].splitlines() if line != line.rstrip()] == []


def test_prefix_steps_reasons_and_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    file = written(
        tmp_path / "r.jsonl",
        row(RIGHT, prefix="[bold]<|reflect|>", step=2, stage="reinforce"),
        row(WRONG, step=2, stage="reinforce", finish="length"),
    )
    shown = io.StringIO()
    explain(config_of(), file).show(Console(file=shown))
    text = shown.getvalue()
    assert "reinforce step 2: p 1 q 9" in text and "from: [bold]<|reflect|>" in text
    assert "row 1: right, reward 0 = rule 0 + reflection 0, dropped: alone in its group" in text
    assert "row 2: wrong, cut off at the limit, reward -1 = rule -1" in text
