# SPDX-License-Identifier: Apache-2.0
"""Benchmarks as they are read: rows by hand after their published schemas, and the real sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from satori_fast.evaluation.benchmark_sets import BenchmarkSet, load_benchmark, questions_digest
from satori_fast.evaluation.benchmarks import BENCHMARKS, Benchmark

SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."


def write(folder: Path, name: str, rows: list[Any]) -> None:
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (folder / f"{BENCHMARKS[name].file}.jsonl").write_text(text, encoding="utf-8")


def load(folder: Path, name: str, rows: list[Any]) -> BenchmarkSet:
    write(folder, name, rows)
    return load_benchmark(BENCHMARKS[name], folder)


def asked(read: BenchmarkSet) -> list[tuple[str, str | None]]:
    return [(item.problem.question, item.problem.answer) for item in read.items]


def test_a_whole_number_written_as_a_decimal_and_a_suffix_in_the_text(tmp_path: Path) -> None:
    read = load(tmp_path, "amc23", [{"id": 3, "problem": "1+1?" + SUFFIX, "answer": 27.0}])
    assert asked(read) == [("1+1?", "27")]
    assert read.items[0].problem.problem_id == "amc23/3"


def test_context_unit_and_error_of_olympiadbench_are_read(tmp_path: Path) -> None:
    row = {"id": 1, "question": "How far?", "context": None, "final_answer": ["$166$"]}
    rows = [
        row | {"unit": None, "error": None},
        row | {"context": "A road.", "unit": "km", "error": "1e-1"},
        row | {"error": "about"},
    ]
    read = load(tmp_path, "olympiadbench", rows)
    assert asked(read) == [
        ("How far?", "$166$"),
        ("A road.\n\nHow far?", "$166$"),
        ("How far?", None),
    ]
    assert [(i.unit, i.tolerance) for i in read.items] == [("", 0.0), ("km", 0.1), ("", 0.0)]
    assert read.items[2].fault == "row 3 has no gold: the error of the answer is no number"


def test_options_become_letters(tmp_path: Path) -> None:
    row = {"question": "Which?", "choices": ["red", "blue "], "answer": 1}
    read = load(tmp_path, "mmlu_stem", [row, row | {"answer": 2}])
    assert asked(read) == [
        ("Which?\nA. red\nB. blue \n\nAnswer with the letter of the right choice.", "B"),
        ("Which?\nA. red\nB. blue \n\nAnswer with the letter of the right choice.", None),
    ]
    assert read.items[0].choices == ("red", "blue ")
    assert read.items[1].fault == "row 2 has no gold: no choice index in 'answer'"


def test_mmlu_pro_keeps_the_rows_of_its_subjects(tmp_path: Path) -> None:
    row = {
        "question_id": 70,
        "question": "Which?",
        "options": list("abcdefghij"),
        "answer": "J",
        "answer_index": 9,
        "cot_content": "",
        "category": "physics",
        "src": "ori_mmlu-x",
    }
    read = load(tmp_path, "mmlu_pro_stem", [row | {"category": "law"}, row])
    assert [item.problem.problem_id for item in read.items] == ["mmlu_pro_stem/70"]
    assert read.items[0].problem.answer == "J"
    assert "\nJ. j\n" in read.items[0].problem.question
    assert read.items[0].problem.level == "physics"


def test_folio_has_premises_and_three_labels(tmp_path: Path) -> None:
    row = {"premises": ["All A are B.", "x is A. "], "conclusion": "x is B.", "label": "True"}
    read = load(tmp_path, "folio", [row, row | {"label": "Uncertain"}])
    question, answer = asked(read)[0]
    assert question.startswith(
        "Premises:\nAll A are B.\nx is A.\n\nConclusion: x is B.\n\nBy the premises"
    )
    assert (answer, read.items[1].problem.answer) == ("True", "Uncertain")


def test_boardgameqa_asks_with_its_example(tmp_path: Path) -> None:
    row = {"example": "A few players are playing.", "label": "disproved", "goal": "(a, b, c)"}
    read = load(tmp_path, "boardgameqa", [row])
    assert asked(read) == [
        ("A few players are playing.\n\nAnswer with proved, disproved or unknown.", "disproved")
    ]


def test_tablebench_writes_its_table_row_by_row(tmp_path: Path) -> None:
    table = {"columns": ["year", "wins"], "data": [["1990", 3], ["1991", None]]}
    row = {
        "id": "t1",
        "qtype": "FactChecking",
        "instruction_type": "TCoT",
        "table": table,
        "question": "How many wins in 1990?",
        "answer": "3",
    }
    rows = [row, row | {"instruction_type": "DP"}, row | {"qtype": "Visualization"}]
    read = load(tmp_path, "tablebench", [*rows, row | {"table": json.dumps(table), "id": "t2"}])
    assert [item.problem.problem_id for item in read.items] == ["tablebench/t1", "tablebench/t2"]
    assert asked(read)[0] == asked(read)[1]
    assert asked(read)[0][0].startswith(
        "| year | wins |\n| 1990 | 3 |\n| 1991 | None |\n\nHow many"
    )


def test_python_text_stays_as_it_is(tmp_path: Path) -> None:
    row = {"code": "def f():\n    return ['a']", "input": "", "output": "['a', 'b']", "id": "s"}
    read = load(tmp_path, "cruxeval_output", [row, row | {"output": "None", "id": "t"}])
    assert [answer for _, answer in asked(read)] == ["['a', 'b']", "None"]
    assert "What does f() return?" in read.items[0].problem.question
    assert read.items[0].code == row["code"]
    backwards = load_benchmark(BENCHMARKS["cruxeval_input"], tmp_path)
    assert "For which arguments does it return ['a', 'b']?" in backwards.items[0].problem.question


def test_every_row_is_kept_and_what_is_wrong_is_named(tmp_path: Path) -> None:
    rows = [
        {"question": "1+1?", "answer": "$2$"},
        {"question": "2+2?", "answer": ""},
        {"answer": "5"},
        '{"question": "3+',
    ]
    read = load(tmp_path, "gaokao2023en", rows)
    place = tmp_path / "gaokao2023en.jsonl"
    assert asked(read) == [("1+1?", "$2$"), ("2+2?", None)]
    assert read.without_gold[0].fault == "row 2 has no gold: empty field 'answer'"
    assert read.is_partial
    assert read.faults[0] == (
        f"{place}: row 3 asks nothing: no field 'question' ('question' of answer)"
    )
    assert read.faults[1].startswith(f"{place}: row 4 asks nothing: not valid JSON")
    assert read.faults[2] == f"{place} is partial: 2 questions, 385 are published"
    with pytest.raises(ValueError, match=r"gaokao2023en \(--strict\): .*row 3 asks nothing"):
        load_benchmark(BENCHMARKS["gaokao2023en"], tmp_path, strict=True)


def one_question(text: str) -> Benchmark:
    return replace(BENCHMARKS["aime25"], size=1, questions=questions_digest([[text]]))


def test_other_questions_of_the_same_number_are_noticed(tmp_path: Path) -> None:
    write(tmp_path, "aime25", [{"problem": "1+1?", "answer": "2"}])
    assert load_benchmark(one_question("1+1?"), tmp_path, strict=True).faults == ()
    read = load_benchmark(one_question("1+2?"), tmp_path)
    assert "has other questions than the published set" in read.faults[0]
    with pytest.raises(ValueError, match=r"--strict.*other questions"):
        load_benchmark(one_question("1+2?"), tmp_path, strict=True)


def test_order_does_not_matter_to_the_digest_and_content_does() -> None:
    assert questions_digest([["a"], ["b", "c"]]) == questions_digest([["b", "c"], ["a"]])
    assert questions_digest([["a"], ["a"]]) != questions_digest([["a"]])
    assert questions_digest([["a", "b"]]) != questions_digest([["a b"]])


def test_a_set_that_was_limited_is_partial(tmp_path: Path) -> None:
    rows = [{"problem": f"{n}+1?", "answer": str(n + 1)} for n in range(30)]
    write(tmp_path, "aime25", rows)
    row = replace(BENCHMARKS["aime25"], questions=None)
    read = load_benchmark(row, tmp_path, limit=4)
    assert (len(read.items), read.is_partial) == (4, True)
    assert read.faults == ("partial: the first 4 of 30 questions were asked for",)
    whole = load_benchmark(row, tmp_path)
    assert (whole.faults, whole.digest) == ((), read.digest)
    assert whole.golds != read.golds


def test_a_benchmark_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"benchmark aime25: .* holds no aime25.jsonl"):
        load_benchmark(BENCHMARKS["aime25"], tmp_path)
    with pytest.raises(ValueError, match=r"aime25 is not on the hub: .*--data-dir"):
        load_benchmark(BENCHMARKS["aime25"], None)
    with pytest.raises(ValueError, match=r"holds no question: .*row 1 asks nothing"):
        load(tmp_path, "aime25", [{"text": "1+1?"}])


WITHOUT_GOLD = {"gaokao2023en/168", "gaokao2023en/193"}
NOT_HERE = {"boardgameqa", "tablebench", "mmlu_pro_stem"}


@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - NOT_HERE))
def test_real_sets_are_as_published(data_dir: Path, name: str) -> None:
    row = BENCHMARKS[name]
    read = load_benchmark(row, data_dir / "benchmarks")
    assert read.faults == ()
    assert len(read.items) == row.size
    assert len({item.problem.problem_id for item in read.items}) == row.size
    assert {item.problem.problem_id for item in read.without_gold} <= WITHOUT_GOLD
    assert len(read.without_gold) == (2 if name == "gaokao2023en" else 0)
    assert not any("put your final answer" in item.problem.question for item in read.items)
