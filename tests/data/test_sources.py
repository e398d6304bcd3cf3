# SPDX-License-Identifier: Apache-2.0
"""Reading data sets: every mapping, malformed rows, clear errors, and the real files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from satori_fast.data.sources import (
    FIELD_MAPPINGS,
    FieldMapping,
    load_demonstrations,
    load_problems,
)
from satori_fast.grading import check_gold, extract_answer, grade

GSM8K_ROW = {
    "question": "Weng earns $12 an hour for 100 hours. How much?",
    "answer": "She earns 12*100 = $<<12*100=1200>>1,200.\n#### 1,200",
}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_gsm8k(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "gsm8k_train.jsonl", [GSM8K_ROW])
    problems, report = load_problems(path, check_answer=check_gold)
    assert problems[0].problem_id == "gsm8k_train/1"
    assert problems[0].question == GSM8K_ROW["question"]
    assert problems[0].answer == "1200"
    assert (report.num_rows, report.num_used, report.num_skipped) == (1, 1, 0)
    demonstration = load_demonstrations(path, name="train")[0][0]
    assert demonstration.problem.problem_id == "train/1"
    assert demonstration.response == (
        "She earns 12*100 = $1,200.\nThe final answer is \\boxed{1200}."
    )


@pytest.mark.parametrize(
    ("mapping", "row", "question", "answer"),
    [
        (
            "math",
            {"problem": "q", "solution": r"\boxed{1} so \boxed{\frac{1}{2}}."},
            "q",
            r"\frac{1}{2}",
        ),
        ("numina_math_cot", {"problem": "q", "solution": r"so $\boxed{5}$"}, "q", "5"),
        (
            "open_math_instruct_2",
            {"problem": "q", "expected_answer": "7", "generated_solution": "s"},
            "q",
            "7",
        ),
        ("s1k_1_1", {"question": "q", "deepseek_attempt": r"\boxed{\{1\}}"}, "q", r"\{1\}"),
        ("amc23", {"id": 3, "problem": "q", "answer": 27.0}, "q", "27"),
        ("olympiadbench", {"id": 9, "question": "q", "final_answer": ["$2$", "3"]}, "q", "$2$, 3"),
        ("strategyqa", {"qid": "x", "question": "q", "answer": False}, "q", "No"),
        (
            "mmlu_stem",
            {"question": "q", "choices": ["one", "two"], "answer": 1},
            "q\nA. one\nB. two",
            "B",
        ),
        (
            "math500",
            {
                "problem": "q?\nPlease reason step by step, and put your final answer within "
                "\\boxed{}.",
                "answer": 3,
            },
            "q?",
            "3",
        ),
    ],
)
def test_known_mappings(
    tmp_path: Path, mapping: str, row: dict[str, Any], question: str, answer: str
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    problems, _ = load_problems(path, mapping)
    assert (problems[0].question, problems[0].answer) == (question, answer)


def test_explicit_fields_and_ids(tmp_path: Path) -> None:
    rows = [{"ask": "a", "gold": "1", "key": "k"}, {"ask": "b", "gold": "2", "key": "k"}]
    path = write_jsonl(tmp_path / "mine.jsonl", rows)
    problems, _ = load_problems(path, FieldMapping("ask", "gold", problem_id="key"), name="m")
    assert [p.problem_id for p in problems] == ["m/k", "m/k#2"]


def test_levels_are_in_the_words_of_the_data_set_or_absent(tmp_path: Path) -> None:
    rows = [
        {"problem": "a", "answer": "1", "level": 5},
        {"problem": "b", "answer": "2", "level": "Level 3"},
        {"problem": "c", "answer": "3", "level": None},
        {"problem": "d", "answer": "4"},
    ]
    problems, _ = load_problems(write_jsonl(tmp_path / "math500.jsonl", rows))
    assert [p.level for p in problems] == ["5", "Level 3", "", ""]


def test_json_and_parquet_equal_jsonl(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [GSM8K_ROW, {"question": "2+2?", "answer": "#### 4"}]
    write_jsonl(tmp_path / "gsm8k.jsonl", rows)
    (tmp_path / "gsm8k.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "gsm8k.parquet")
    loaded = [load_problems(tmp_path / f"gsm8k.{kind}")[0] for kind in ("jsonl", "json", "parquet")]
    assert loaded[0] == loaded[1] == loaded[2]
    assert len(loaded[0]) == 2


def test_malformed_rows_are_reported_counted_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        GSM8K_ROW,
        '{"question": "cut off',
        "[1, 2]",
        {"question": "no answer field"},
        {"question": "", "answer": "#### 3"},
        {"question": "no marker", "answer": "3"},
        "",
        {"question": "not gradable", "answer": "#### \\frac{1}{"},
        {"question": None, "answer": "#### 3"},
        {"question": 5, "answer": "#### 3"},
        GSM8K_ROW,
    ]
    path = write_jsonl(tmp_path / "gsm8k.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        problems, report = load_problems(path, check_answer=check_gold)
    assert [p.problem_id for p in problems] == ["gsm8k/1", "gsm8k/11"]
    assert (report.num_rows, report.num_used, report.num_skipped) == (10, 2, 8)
    assert report.reasons == {
        "not valid JSON": 1,
        "not a JSON object": 1,
        "no field 'answer'": 1,
        "empty field 'question'": 2,
        "no '####' answer in 'answer'": 1,
        "answer cannot be graded": 1,
        "field 'question' is not text": 1,
    }
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 6  # the first five and the count
    assert f"{path}, row 2 skipped: not valid JSON" in messages[0]
    assert "8 of 10 rows skipped" in messages[-1]


def test_not_utf8_is_a_malformed_row(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    path.write_bytes(b'{"question": "\xff"}\n' + json.dumps(GSM8K_ROW).encode())
    assert load_problems(path)[1].num_skipped == 1


def test_limit_stops_early(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "gsm8k.jsonl", [GSM8K_ROW] * 5)
    problems, report = load_problems(path, limit=2)
    assert (len(problems), report.num_rows) == (2, 2)


def test_field_in_no_row_names_file_field_and_fields(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "q", "target": "1"}] * 2)
    with pytest.raises(ValueError, match=r"rows\.jsonl.*'question'.*prompt, target"):
        load_problems(path, "gsm8k")
    with pytest.raises(ValueError, match="no row has the field 'answer'"):
        load_problems(path, FieldMapping("prompt", "answer"))


@pytest.mark.parametrize(
    ("name", "content", "mapping", "message"),
    [
        ("gsm8k.jsonl", None, None, "does not exist"),
        ("unknown.jsonl", "", None, "no field mapping known for it"),
        ("unknown.jsonl", "", "gsm9k", "no field mapping named 'gsm9k'"),
        ("gsm8k.csv", "", None, "must end in .jsonl, .json, .parquet"),
        ("gsm8k.json", "{", None, "is not valid JSON"),
        ("gsm8k.json", "{}", None, "must hold a JSON list"),
        ("gsm8k.parquet", "text", None, "is not valid parquet"),
    ],
)
def test_bad_files_get_one_clear_line(
    tmp_path: Path, name: str, content: str | None, mapping: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_problems(tmp_path / name, mapping)
    assert "\n" not in str(caught.value)


def test_no_demonstrations_without_a_response_field(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "amc23.jsonl", [{"problem": "q", "answer": 1}])
    with pytest.raises(ValueError, match="names no `response`"):
        load_demonstrations(path)


def test_hub_data_sets_are_mapped() -> None:
    hub_ids = {m.hub_id for m in FIELD_MAPPINGS.values()}
    assert hub_ids >= {
        "openai/gsm8k",
        "AI-MO/NuminaMath-CoT",
        "nvidia/OpenMathInstruct-2",
        "simplescaling/s1K-1.1",
    }


def test_real_gsm8k_training_set(data_dir: Path) -> None:
    path = data_dir / "train" / "gsm8k_train.jsonl"
    problems, report = load_problems(path, check_answer=check_gold)
    assert (report.num_rows, report.num_used) == (7473, 7473)
    assert all(p.answer is not None and p.answer.lstrip("-").isdigit() for p in problems)
    demonstrations, _ = load_demonstrations(path, limit=500)
    for demonstration in demonstrations:
        assert "<<" not in demonstration.response
        assert demonstration.problem.answer is not None
        assert grade(demonstration.response, demonstration.problem.answer).correct


@pytest.mark.parametrize(
    ("name", "num_rows", "num_used"),
    [
        ("gsm8k.jsonl", 1319, 1319),
        ("math500.jsonl", 500, 500),
        ("aime24.jsonl", 30, 30),
        ("aime25.jsonl", 30, 30),
        ("amc23.jsonl", 40, 40),
        ("olympiadbench.jsonl", 675, 675),
        ("minerva_math.jsonl", 272, 272),
        ("college_math.jsonl", 2818, 2818),
        ("gaokao2023en.jsonl", 385, 383),  # two rows have no answer
        ("mmlu_stem.jsonl", 3018, 3018),
        ("strategyqa.json", 229, 229),
    ],
)
def test_real_benchmarks(data_dir: Path, name: str, num_rows: int, num_used: int) -> None:
    problems, report = load_problems(data_dir / "benchmarks" / name)
    assert (report.num_rows, report.num_used) == (num_rows, num_used)
    assert len({p.problem_id for p in problems}) == num_used
    assert all(p.answer for p in problems)
    assert not any("step by step, and put your final" in p.question for p in problems)


def test_real_solutions_read_as_the_grader_reads_them(data_dir: Path) -> None:
    path = data_dir / "benchmarks" / "minerva_math.jsonl"
    demonstrations, _ = load_demonstrations(path)
    for demonstration in demonstrations:
        assert extract_answer(demonstration.response) == demonstration.problem.answer
