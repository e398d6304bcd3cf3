# SPDX-License-Identifier: Apache-2.0
"""The page of samples: everything on it, nothing from elsewhere, no reply taken for markup."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from satori_fast.synthesis.outcomes import Outcome
from satori_fast.synthesis.page import write_page
from satori_fast.synthesis.stats import SynthesisStats
from satori_fast.types import Demonstration, Problem


def page(folder: Path, count: int) -> str:
    stats = SynthesisStats({}, None)
    made: list[Demonstration] = []
    for i in range(count):
        problem = Problem(f"p{i}", f"Is {i} < 5 & <b>bold</b>?", "yes")
        response = f"a{i} < b<|continue|> c<|reflect|> But wait.<|explore|> This time,"
        made.append(Demonstration(problem, response, ("I", "III-I")[i % 2]))
        counts = Counter({"dropped/critic_no_step": 2, f"trajectories/{('I', 'III-I')[i % 2]}": 1})
        stats.add(Outcome(problem, made[-1:], counts, {"critic_no_step": "<script>x"}))
    write_page(folder / "synthesis.html", made, stats, title="a run: synthesis")
    return (folder / "synthesis.html").read_text(encoding="utf-8")


def test_page_shows_actions_in_colours_and_escapes_text(tmp_path: Path) -> None:
    text = page(tmp_path, 3)
    assert "Is 1 &lt; 5 &amp; &lt;b&gt;bold" in text and "a1 &lt; b" in text
    assert "<script>x" not in text and "&lt;script&gt;x" in text
    for kind in ("continue", "reflect", "explore"):
        assert text.count(f'<div class="action {kind}"><span class="token">&lt;|{kind}|&gt;') == 3
    assert "critic_no_step" in text and re.search(r"<td>critic_no_step</td><td>6</td>", text)
    assert re.search(r"<tr><td>III-I</td>.*?<td>1</td><td>1</td></tr>", text)
    assert "a run: synthesis" in text and list(tmp_path.glob("*.partial")) == []


def test_page_is_offline(tmp_path: Path) -> None:
    assert re.findall(r"(?:src|href)=\"(?!data:)", page(tmp_path, 2)) == []


def test_samples_are_spread_over_the_types_and_problems(tmp_path: Path) -> None:
    text = page(tmp_path, 200)
    shown = re.findall(r'<article data-kind="([\w-]+)">', text)
    assert Counter(shown) == {"I": 20, "III-I": 20}
    numbers = [int(n) for n in re.findall(r"<span>p(\d+)</span>", text)]
    assert numbers == sorted(numbers) and numbers[-1] >= 180


def test_page_of_nothing(tmp_path: Path) -> None:
    assert "0 of 0 demonstrations" in page(tmp_path, 0)
