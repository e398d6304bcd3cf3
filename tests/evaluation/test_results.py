# SPDX-License-Identifier: Apache-2.0
"""Results of benchmarks, from responses that were worked out by hand."""

from __future__ import annotations

import json

import pytest

from satori_fast.evaluation.benchmark_sets import BenchmarkSet, problem_set
from satori_fast.evaluation.code_answers import CallRunner
from satori_fast.evaluation.judging import Judge
from satori_fast.evaluation.responses import Response
from satori_fast.evaluation.results import Judged, average, benchmark_result, judge_responses
from satori_fast.evaluation.statistics import wilson
from satori_fast.grading import GradingPool
from satori_fast.types import Problem

GOLDS = {"a": "5", "b": "0.5", "c": None, "d": "7", "e": "8"}
BENCHMARK = problem_set(
    "made", [Problem(name, "?", gold, level="Level 1") for name, gold in GOLDS.items()]
)


def response(name: str, *answers: tuple[str, int], number: int = 0, cut: bool = False) -> Response:
    text = " ".join(rf"\boxed{{{answer}}}" for answer, _ in answers) or "nothing"
    finish = "length" if cut else "stop"
    return Response("made", name, number, "?", (("whole", text),), 64, finish, tuple(answers))


def judged(responses: list[Response], benchmark: BenchmarkSet = BENCHMARK) -> list[Judged]:
    judge = Judge(benchmark, GradingPool(num_workers=0), {}, CallRunner())
    return judge_responses(benchmark, responses, judge)


GREEDY = [
    response("a", ("4", 18), ("6", 40), ("5", 62)),
    response("b", ("50", 12), cut=True),
    response("c", ("1", 20)),
    response("d"),
]


def test_one_response_a_problem() -> None:
    found = benchmark_result(BENCHMARK, judged(GREEDY), num_samples=1, unreadable={"d": "odd"})
    assert found["scores"] == {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 0.0}
    low, high = wilson(1, 5)
    assert found["accuracy"] == {"value": 0.2, "k": 1, "n": 5, "interval": [low, high]}
    assert (found["strict"]["k"], found["lenient"]["k"]) == (1, 2)
    assert [found[name]["k"] for name in ("truncated", "no_answer")] == [1, 1]
    assert found["not_asked"] == ["e"]
    assert found["unreadable_golds"] == {"d": "odd"}
    assert [(d["problem_id"], d["lenient"]) for d in found["disagreements"]] == [("b", True)]
    assert found["self_correction"]["wrong_to_right"]["k"] == 1
    assert found["self_correction"]["wrong_to_right"]["n"] == 3
    assert found["majority"] is None
    assert found["pass_at_k"] == {"1": 0.2}
    budgets = {point["budget"]: point["accuracy"]["k"] for point in found["by_budget"]}
    assert budgets == {64: 1}
    assert [p["accuracy"]["k"] for p in found["by_boxes"]] == [0, 0, 1]
    assert found["by_level"][0]["mean_tokens"] == 64
    json.dumps(found, allow_nan=False)


def test_several_responses_a_problem() -> None:
    answers = {"a": ["5", "5.0", "4", "4"], "b": ["0.5", "1", "1", "2"], "d": ["7"] * 4}
    responses = [
        response(name, (answer, 9), number=n)
        for name, own in answers.items()
        for n, answer in enumerate(own)
    ]
    found = benchmark_result(BENCHMARK, judged(responses), num_samples=4, unreadable={})
    assert found["scores"] == {"a": 0.5, "b": 0.25, "c": 0.0, "d": 1.0, "e": 0.0}
    assert found["accuracy"]["value"] == pytest.approx(0.35)
    assert found["accuracy"]["interval"][0] < 0.35 < found["accuracy"]["interval"][1]
    # 1 - C(n - c, k) / C(n, k): 0.5, 0.25 and 1 for one; 5/6, 1/2 and 1 for two; 1, 1 and 1.
    assert found["pass_at_k"] == pytest.approx({"1": 0.35, "2": 7 / 15, "4": 0.6})
    # a: two votes each, and the first is right; b: 1 has most; d: all.
    assert found["majority"]["k"] == 2 and found["best_of_n"] is None
    # The best-scored one of a is wrong, of b right, of d as the others; e was not asked.
    scores = {"a": [0.1, 0.2, 0.9, 0.3], "b": [2.0, 1.0, -1.0, 0.0], "d": [0.0] * 4}
    rewards = {("made", name, n): x for name, own in scores.items() for n, x in enumerate(own)}
    found = benchmark_result(
        BENCHMARK, judged(responses), num_samples=4, unreadable={}, rewards=rewards
    )
    assert (found["best_of_n"]["k"], found["best_of_n"]["n"]) == (2, 5)


def test_responses_that_are_all_wrong_leave_room_for_a_right_one() -> None:
    wrong = [response(name, ("1", 9), number=n) for name in "abde" for n in range(4)]
    found = benchmark_result(BENCHMARK, judged(wrong), num_samples=4, unreadable={})
    assert found["accuracy"]["interval"] == list(wilson(0, 5))


def test_every_box_is_judged() -> None:
    (found,) = judged(GREEDY[:1])
    assert [(box.answer, box.token, box.correct) for box in found.boxes] == [
        ("4", 18, False),
        ("6", 40, False),
        ("5", 62, True),
    ]


def test_sets_count_the_same_in_an_average() -> None:
    found = average({"x": {"scores": {"a": 1.0}}, "y": {"scores": {"a": 0.0, "b": 1.0}}})
    assert (found["accuracy"], found["benchmarks"]) == (0.75, ["x", "y"])
    assert found["interval"] == [0.5, 1.0]
