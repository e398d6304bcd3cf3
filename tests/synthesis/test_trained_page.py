# SPDX-License-Identifier: Apache-2.0
"""The page of what is trained: marks of segments, nothing from elsewhere, text is no markup."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from satori_fast.data.formats.trials import TRIALS
from satori_fast.synthesis.trained_page import write_trained_page
from satori_fast.types import Problem, Segment, SegmentKind, Trajectory

SOLVE, VERIFY = SegmentKind.SOLVE, SegmentKind.VERIFY


def page(folder: Path, *, samples: int = 1) -> str:
    segments = (
        Segment(SOLVE, 0, 4, "3 < 4, \\boxed{1}"),
        Segment(VERIFY, 4, 11, "\n\nWait, <b>no</b>", verdict=False),
        Segment(SOLVE, 11, 16, "\\boxed{2}"),
        Segment(VERIFY, 16, 24, "yes", verdict=True),
    )
    problem = Problem("p1", "Is 1 < 5 & <script>x</script>?", None)
    tokens = np.arange(26, dtype=np.int32)
    made = Trajectory(problem, 0, tokens, 2, np.zeros(24, np.float32), -1, "stop", segments)
    path = folder / "trained_initialise.html"
    shown = [(made, (False, True, True, True))] * samples
    write_trained_page(path, shown, total=1200, colours=TRIALS.colours, title="a <run>: initialise")
    assert list(folder.glob("*.partial")) == []
    return path.read_text(encoding="utf-8")


def test_each_segment_says_whether_it_is_trained(tmp_path: Path) -> None:
    text = page(tmp_path)
    classes = re.findall(r'<div class="(segment[^"]*)">', text)
    assert classes == [
        "segment kind-solve untrained",
        "segment kind-verify",
        "segment kind-solve",
        "segment kind-verify",
    ]
    marks = re.findall(r"<span>(\d+ tokens, [a-z ]+)</span>", text)
    assert marks == [f"{n} tokens, {w}trained" for n, w in ((4, "not "), (7, ""), (5, ""), (8, ""))]
    assert re.findall(r"<span>says (\w+)</span>", text) == ["wrong", "right"]
    assert "20 of 24 tokens trained" in text and "1 of 1,200 demonstrations" in text
    for kind, colour in TRIALS.colours.items():
        assert f".kind-{kind}{{border-left-color:{colour}}}" in text


def test_text_is_no_markup_and_the_page_is_offline(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "<script" not in text and "&lt;script&gt;x" in text and "3 &lt; 4" in text
    assert "a &lt;run&gt;: initialise" in text and "answer none given" in text
    assert re.findall(r"(?:src|href)=\"(?!data:)|url\(", text) == []


def test_a_page_of_nothing(tmp_path: Path) -> None:
    assert "0 of 1,200 demonstrations" in page(tmp_path, samples=0)
