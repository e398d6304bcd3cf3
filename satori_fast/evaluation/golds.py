# SPDX-License-Identifier: Apache-2.0
"""Golds of benchmarks that cannot be read: checked once in workers, and remembered on disk.

Reading a gold can take as long as reading an answer (`grading`), so it is done under the same time
limit, and its outcome kept by gold and by version of the grader.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from satori_fast.evaluation.benchmark_sets import BenchmarkSet
from satori_fast.evaluation.code_answers import literal_fault
from satori_fast.evaluation.judging import label_of
from satori_fast.grading import GradingPool, grader_version
from satori_fast.storage import DamagedFile, read_sealed, write_sealed

logger = logging.getLogger(__name__)


def default_cache() -> Path:
    """File that faults of golds are kept in: golds.json in the user's folder of caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(caches) / "satori_fast" / "golds.json"


def unreadable_golds(
    sets: Sequence[BenchmarkSet], pool: GradingPool, *, cache: Path | None = None
) -> dict[str, str]:
    """Say which golds cannot be read, and why, by problem id; the others are not in it.

    Golds that a row lacks are not among them (`BenchmarkSet.without_gold`). cache: a file that is
    read and extended; one of another grader, or a damaged one, is written anew.
    """
    known = _read(cache, pool.timeout_s) if cache is not None else {}
    golds = {
        item.problem.answer: None
        for each in sets
        if each.benchmark.kind == "math"
        for item in each.items
        if item.problem.answer is not None
    }
    new = [gold for gold in golds if gold not in known]
    known |= {gold: fault or "" for gold, fault in zip(new, pool.check_golds(new), strict=True)}
    if cache is not None and new:
        _write(cache, pool.timeout_s, known)
    faults: dict[str, str] = {}
    for each in sets:
        for item in each.items:
            gold = item.problem.answer
            if gold is not None and (fault := _fault(each, gold, known)):
                faults[item.problem.problem_id] = fault
    return faults


def _fault(each: BenchmarkSet, gold: str, known: dict[str, str]) -> str:
    benchmark = each.benchmark
    if benchmark.kind == "math":
        return known[gold]
    if benchmark.kind in ("output", "input"):
        return literal_fault(gold)
    if benchmark.kind == "label" and label_of(gold, benchmark.labels) is None:
        return f"is none of {', '.join(names[0] for names in benchmark.labels)}"
    return ""


def _read(cache: Path, timeout_s: float) -> dict[str, str]:
    if not cache.exists():
        return {}
    try:
        kept = read_sealed(cache)
    except DamagedFile as error:
        logger.warning("%s: golds are checked anew", error)
        return {}
    is_same = (kept["grader"], kept["timeout_s"]) == (grader_version(), timeout_s)
    return kept["faults"] if is_same else {}


def _write(cache: Path, timeout_s: float, faults: dict[str, str]) -> None:
    kept = {"grader": grader_version(), "timeout_s": timeout_s, "faults": faults}
    try:
        write_sealed(cache, kept, indent=None)
    except OSError as error:  # a cache that cannot be written is no reason to stop
        logger.warning("%s cannot be written (%s): golds are checked anew each time", cache, error)
