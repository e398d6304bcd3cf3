# SPDX-License-Identifier: Apache-2.0
"""Golds that cannot be read: named, remembered, and checked anew by another grader."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from satori_fast.evaluation.benchmark_sets import BenchmarkSet, load_benchmark
from satori_fast.evaluation.benchmarks import BENCHMARKS
from satori_fast.evaluation.golds import default_cache, unreadable_golds
from satori_fast.grading import GradingPool
from satori_fast.storage import read_sealed, write_sealed

GOLDS = ["$x+1$", "The sum converges, because [x of all; y", "5", ""]


def college(folder: Path, golds: list[str]) -> BenchmarkSet:
    rows = [json.dumps({"question": f"{n}?", "answer": gold}) for n, gold in enumerate(golds)]
    (folder / "college_math.jsonl").write_text("\n".join(rows))
    return load_benchmark(BENCHMARKS["college_math"], folder)


class CountingPool(GradingPool):
    """A pool that says which golds it was asked for."""

    def __init__(self) -> None:
        super().__init__(num_workers=0)
        self.asked: list[str] = []

    def check_golds(self, golds):
        self.asked += golds
        return super().check_golds(golds)


def test_faults_are_remembered(tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "golds.json"
    expected = {"college_math/2": "cannot be read as an expression"}
    sets = [college(tmp_path, GOLDS)]
    pool = CountingPool()
    assert unreadable_golds(sets, pool, cache=cache) == expected
    assert pool.asked == GOLDS[:3]
    assert unreadable_golds(sets, pool, cache=cache) == expected
    assert pool.asked == GOLDS[:3]
    assert unreadable_golds([college(tmp_path, [*GOLDS, "7", "5"])], pool, cache=cache) == expected
    assert pool.asked == [*GOLDS[:3], "7"]


def test_another_grader_and_a_damaged_cache_check_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "golds.json"
    sets = [college(tmp_path, GOLDS)]
    pool = CountingPool()
    found = unreadable_golds(sets, pool, cache=cache)
    write_sealed(cache, read_sealed(cache) | {"grader": "0" * 16, "faults": {"5": "wrong"}})
    assert unreadable_golds(sets, pool, cache=cache) == found
    cache.write_text("{")
    assert unreadable_golds(sets, pool, cache=cache) == found
    assert len(pool.asked) == 9
    assert "golds are checked anew" in caplog.text


def test_golds_of_other_kinds(tmp_path: Path) -> None:
    folio = [{"premises": ["A."], "conclusion": "B.", "label": label} for label in ("True", "Y")]
    code = [
        {"code": "def f(): ...", "input": "", "output": text, "id": text} for text in ("1", "<")
    ]
    (tmp_path / "folio.jsonl").write_text("\n".join(map(json.dumps, folio)))
    (tmp_path / "cruxeval.jsonl").write_text("\n".join(map(json.dumps, code)))
    names = ("folio", "cruxeval_output")
    sets = [load_benchmark(BENCHMARKS[name], tmp_path) for name in names]
    assert unreadable_golds(sets, CountingPool()) == {
        "folio/2": "is none of True, False, Uncertain",
        "cruxeval_output/<": "is no literal of Python",
    }


def test_the_cache_lies_where_caches_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "satori_fast" / "golds.json"


@pytest.mark.slow
def test_real_golds_that_cannot_be_read(data_dir: Path, tmp_path: Path) -> None:
    names = ("gsm8k", "math500", "olympiadbench", "minerva_math", "college_math", "gaokao2023en")
    sets = [load_benchmark(BENCHMARKS[name], data_dir / "benchmarks") for name in names]
    with GradingPool(num_workers=2) as pool:
        found = unreadable_golds(sets, pool, cache=tmp_path / "golds.json")
    counts = Counter(name.partition("/")[0] for name in found)
    assert counts == {
        "college_math": 241,
        "minerva_math": 5,
        "olympiadbench": 2,
        "gaokao2023en": 1,
    }
