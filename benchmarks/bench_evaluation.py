# SPDX-License-Identifier: Apache-2.0
"""What evaluation costs beside sampling: grading, contamination, the sandbox. One core each.

Grading goes by CPU time, from golds that nobody has read before: each call forgets what the grader
remembers. Its rival is the grader without `grading.enclosures`, which parses every pair.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from benchmarks.bench_step_similarity import real_text
from satori_fast.evaluation.contamination import find_overlaps
from satori_fast.evaluation.sandbox import PYTHON, run
from satori_fast.grading import algebra
from satori_fast.grading.verdict import equivalent, gold_fault

NUM_INTEGERS = 20_000
INTEGERS_PER_S = 158_000
CONTAMINATION_BYTES, BYTES_PER_S = 40_000_000, 20_000_000
SANDBOX_MS = 60.0


def forget() -> None:
    """Empty every cache of the grader."""
    for name, module in list(sys.modules.items()):
        if name.startswith("satori_fast.grading"):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def graded(pairs: list[tuple[str, str]]) -> int:
    """How many answers are right, as if none had been seen before."""
    forget()
    return sum(equivalent(answer, gold) for answer, gold in pairs)


def parsed(pairs: list[tuple[str, str]]) -> int:
    """The same by the parser alone."""
    with mock.patch.object(algebra, "surely_different", lambda a, b, ratio=1: False):
        return graded(pairs)


def test_math500_golds_against_their_neighbours(race: Any, data_dir: Path | None) -> None:
    if data_dir is None:
        pytest.skip("real data not given: pass --data-dir FOLDER")
    with (data_dir / "benchmarks" / "math500.jsonl").open(encoding="utf-8") as file:
        golds = [json.loads(line)["answer"] for line in file]
    pairs = [(gold, golds[place - 1]) for place, gold in enumerate(golds)]
    gold_fault(r"\sqrt{2}")  # loads the parser
    num_right = graded(pairs)
    assert num_right == parsed(pairs) == 3
    race(
        "math500, neighbours",
        {"ours": lambda: graded(pairs), "every pair parsed": lambda: parsed(pairs)},
        targets={"every pair parsed": 1.7},
        judged_by="cpu",
        amount={"answers": len(pairs)},
    )


def test_integers(race: Any) -> None:
    numbers = np.random.default_rng(20).integers(0, 10_000, (NUM_INTEGERS, 2)).astype(str)
    pairs = [(str(answer), str(gold)) for answer, gold in numbers]
    race(
        "integers",
        {"ours": lambda: graded(pairs)},
        targets={},
        judged_by="cpu",
        amount={"answers": NUM_INTEGERS},
        most_ms=1000.0 * NUM_INTEGERS / INTEGERS_PER_S,
    )


def test_contamination(race: Any, data_dir: Path | None, tmp_path: Path) -> None:
    text = real_text(data_dir)
    file = tmp_path / "training.jsonl"
    with file.open("w", encoding="utf-8") as training:
        written = 0
        while written < CONTAMINATION_BYTES:
            for start in range(0, len(text), 2000):
                written += training.write(json.dumps({"text": text[start : start + 2000]}) + "\n")
    questions = {f"q{n}": text[n * 211 : n * 211 + 300] for n in range(500)}
    size = file.stat().st_size
    assert find_overlaps(questions, [file])
    race(
        "contamination",
        {"ours": lambda: find_overlaps(questions, [file])},
        targets={},
        repeats=3,
        judged_by="cpu",
        amount={"bytes": size},
        most_ms=1000.0 * size / BYTES_PER_S,
    )


def test_a_trivial_program_in_the_sandbox(race: Any) -> None:
    command = [*PYTHON, "-c", "print(1)"]
    assert run(command, {"a": "1"}).output == "1\n"
    race(
        "sandbox",
        {"ours": lambda: run(command, {"a": "1"})},
        targets={},
        repeats=15,
        most_ms=SANDBOX_MS,
    )
