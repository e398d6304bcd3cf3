# SPDX-License-Identifier: Apache-2.0
"""Pages of evaluations: what was judged stands in them, and two are compared problem by problem."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from satori_fast.evaluation.benchmark_sets import problem_set
from satori_fast.evaluation.code_answers import CallRunner
from satori_fast.evaluation.judging import Judge
from satori_fast.evaluation.pages import (
    EVALUATION,
    JUDGEMENTS,
    RESPONSES,
    comparisons,
    differences,
    write_evaluation_comparison,
    write_evaluation_pages,
)
from satori_fast.evaluation.responses import Response, ResponseFile
from satori_fast.evaluation.results import (
    average,
    benchmark_result,
    judge_responses,
    judgement_record,
)
from satori_fast.grading import GradingPool
from satori_fast.storage import read_sealed, write_sealed, write_sealed_records
from satori_fast.types import Problem

NUM = 40


def evaluation(folder: Path, wrong: set[int], **changes: Any) -> Path:
    """An evaluation on 40 problems, some answered wrong, as `stages.benchmark` leaves it."""
    problems = [Problem(f"made/{n}", f"{n}+0?", str(n), level="Level 1") for n in range(NUM)]
    benchmark = problem_set("made", problems)
    file = ResponseFile(folder / RESPONSES, {})
    for n in range(NUM):
        answer = str(n + (n in wrong))
        segments = (("continue", "so <b>"), ("reflect", rf"\boxed{{{answer}}}"))
        boxes = ((answer, 7),)
        file.add(Response("made", f"made/{n}", 0, f"{n}+0?\n", segments, 9, "stop", boxes))
    file.close()
    judge = Judge(benchmark, GradingPool(num_workers=0), {}, CallRunner())
    judged = judge_responses(benchmark, list(file.responses.values()), judge)
    write_sealed_records(folder / JUDGEMENTS, map(judgement_record, judged))
    results = {"made": benchmark_result(benchmark, judged, num_samples=1, unreadable={})}
    result = {
        "versions": {"satori_fast": "1", "grader": "g"},
        "model_path": "models/tiny",
        "protocol": {"name": "satori", "format": "coat", "max_new_tokens": 9},
        "temperature": 0.0,
        "engine": "embedded",
        "dtype": "float32",
        "num_samples": 1,
        "missing": {"aime25": "not there"},
        "benchmarks": results,
        "average": average(results),
    }
    write_sealed(folder / EVALUATION, result | changes)
    return folder


def text_of(page: Path) -> str:
    """What a reader sees of a page's tables."""
    body = re.sub(r"(?s)<(script|style).*?</\1>", "", page.read_text(encoding="utf-8"))
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_every_response_is_in_its_page(tmp_path: Path) -> None:
    index = write_evaluation_pages(evaluation(tmp_path, {3, 4}))
    assert "95.0 %" in text_of(index)
    assert "Not there benchmark why aime25 not there" in text_of(index)
    page = (tmp_path / "made.html").read_text(encoding="utf-8")
    data = re.search(r'id="sample-data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    samples = json.loads(data[1])
    assert len(samples) == NUM
    assert [s["verdict"] for s in samples[2:6]] == ["right", "wrong", "wrong", "right"]
    assert [s["stage"] for s in samples[2:4]] == ["match", "mismatch"]
    assert samples[0]["segments"][0] == {"kind": "continue", "text": "so <b>"}
    assert "so <b>" not in page
    colours = re.search(r'id="sample-colours">(.*?)</script>', page)
    assert colours is not None
    assert {"continue", "reflect", "explore"} <= set(json.loads(colours[1]))


def test_two_evaluations_are_compared_problem_by_problem(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", set(range(10)))
    second = evaluation(tmp_path / "b", set(range(8)) | {20}, temperature=1.0)
    a, b = (read_sealed(folder / EVALUATION) for folder in (first, second))
    found = comparisons(a, b)["made"]
    assert (found.better, found.worse) == (("made/8", "made/9"), ("made/20",))
    assert found.p_value == pytest.approx(1.0)
    assert differences(a, b) == ["their temperature differ"]
    assert differences(a, a) == []
    page = write_evaluation_comparison([first, second], output=tmp_path / "compare.html")
    text = text_of(page)
    assert "made 40 +2.5 " in text
    assert "made made/8, made/9 made/20" in text
    assert "Not the same in both: their temperature differ." in text
