# SPDX-License-Identifier: Apache-2.0
"""Reading data sets: every mapping, malformed rows, clear errors, and the real files."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from satori_fast.data.sources import (
    FIELD_MAPPINGS,
    FieldMapping,
    check_source,
    load_demonstrations,
    load_problems,
    source_digest,
)
from satori_fast.grading import check_gold, extract_answer, grade
from satori_fast.types import Problem

GSM8K_ROW = {
    "question": "Weng earns $12 an hour for 100 hours. How much?",
    "answer": "She earns 12*100 = $<<12*100=1200>>1,200.\n#### 1,200",
}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def check_answers(answers: Sequence[str]) -> list[str | None]:
    """In this process: these answers are ours."""

    def reason(answer: str) -> str | None:
        try:
            check_gold(answer)
        except ValueError as error:
            return str(error)
        return None

    return [reason(answer) for answer in answers]


def test_gsm8k(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "gsm8k_train.jsonl", [GSM8K_ROW])
    problems, report = load_problems(path, check_answers=check_answers)
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
        {"question": "half a character \ud83d", "answer": "#### 3"},
        {"question": "who knows", "answer": "#### N/A"},
        GSM8K_ROW,
    ]
    path = write_jsonl(tmp_path / "gsm8k.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        problems, report = load_problems(path, check_answers=check_answers)
    assert [p.problem_id for p in problems] == ["gsm8k/1", "gsm8k/13"]
    assert (report.num_rows, report.num_used, report.num_skipped) == (12, 2, 10)
    assert report.reasons == {
        "not valid JSON": 1,
        "not a JSON object": 1,
        "no field 'answer'": 1,
        "empty field 'question'": 2,
        "no '####' answer in 'answer'": 1,
        "answer cannot be graded": 1,
        "question is an int, not text": 1,
        "question has a lone surrogate": 1,
        "answer is a sentinel": 1,
    }
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert messages[0].startswith(
        f"{path}: 10 of 12 rows skipped: 2 x empty field 'question' (row 5), 1 x not valid JSON "
        "(row 2: Unterminated string"
    )
    assert "1 x question is an int, not text (row 10: 5)" in messages[0]


def test_another_encoding_is_refused_by_row(tmp_path: Path) -> None:
    """Skipping its rows would leave those without accents: another data set."""
    path = write_jsonl(tmp_path / "gsm8k.jsonl", [GSM8K_ROW] * 2)
    path.write_bytes(path.read_bytes() + '{"question": "d\u00e9j\u00e0"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"gsm8k\.jsonl, row 3: byte 0xe9 is not UTF-8"):
        load_problems(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ['{"problem": "a", "answer": "1"},'] * 12,
            "0 of 12 rows could be used: not valid JSON (row 1: trailing comma); correct the rows",
        ),
        (
            [{"problem": "a", "answer": {"value": 1}}, {"problem": "a", "answer": "-"}] * 2,
            "0 of 4 rows could be used: 2 x answer is a dict (row 1: {'value': 1}), "
            "2 x answer is a sentinel (row 2: '-'); correct the rows",
        ),
        (["", ""], "holds no row"),
        (
            [{"prompt": [{"role": "user", "content": "a"}], "reward_model": {"ground_truth": 1}}],
            "no row has the field 'problem'; its fields are: prompt, reward_model "
            "(data.fields reaches into nested ones: prompt[0].role, prompt[0].content, "
            "reward_model.ground_truth); name those of the question and of the answer",
        ),
    ],
)
def test_a_source_without_one_good_row(tmp_path: Path, rows: list[Any], message: str) -> None:
    path = write_jsonl(tmp_path / "math500.jsonl", rows)
    with pytest.raises(ValueError) as caught:
        load_problems(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_file_is_told_its_fields_and_what_fits(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "other.jsonl", [{"text": "a", "target": "1", "more": {}}])
    with pytest.raises(ValueError, match=r"known for it; its fields are: more, target, text"):
        load_problems(path)
    path = write_jsonl(tmp_path / "mine.jsonl", [{"problem": "a", "answer": "1", "more": {}}])
    with pytest.raises(ValueError, match=r"choose a mapping that fits: math500, aime24"):
        load_problems(path, "gsm9k")


def test_nested_fields_are_named_by_a_path(tmp_path: Path) -> None:
    """The layout of verl's data sets; a row without the place is skipped and says what it has."""
    rows: list[Any] = [
        {"prompt": [{"role": "user", "content": "1 + 1?"}], "reward_model": {"ground_truth": 2}},
        {"prompt": [], "reward_model": {"ground_truth": "3"}},
        {"prompt": [{"role": "user", "content": "b"}], "reward_model": {"style": "rule"}},
    ]
    nested = FieldMapping("prompt[-1].content", "reward_model.ground_truth", "any")
    problems, report = load_problems(write_jsonl(tmp_path / "a.jsonl", rows), nested)
    assert [(p.question, p.answer) for p in problems] == [("1 + 1?", "2")]
    assert report.skipped() == (
        "1 x no field 'prompt[-1].content' (row 2: [-1] of 0 entries), "
        "1 x no field 'reward_model.ground_truth' (row 3: 'ground_truth' of style)"
    )
    with pytest.raises(ValueError, match=r"no row has the field 'promt\[0\]\.content'; its fields"):
        load_problems(tmp_path / "a.jsonl", FieldMapping("promt[0].content", "reward_model.style"))


def test_files_with_a_question_and_an_answer_need_no_mapping(tmp_path: Path) -> None:
    """One name may be a known one by accident; answers may be marked row by row."""
    path = tmp_path / "math_of_mine.csv"
    path.write_text(
        'question,answer,level\n1 + 1?,2,easy\n2 + 2?,"2 + 2 = 4\n#### 4",\n'
        f'3 + 3?,It is \\boxed{{6}}.,hard\n4?,"{"so " * 200}",hard\n'
    )
    problems, report = load_problems(path)
    assert [(p.problem_id, p.answer, p.level) for p in problems] == [
        ("math_of_mine/1", "2", "easy"),
        ("math_of_mine/2", "4", ""),
        ("math_of_mine/3", "6", "hard"),
    ]
    assert report.skipped() == (
        "1 x answer is a long text without a box or '####' (row 4: 600 characters)"
    )
    rows = [{"problem": "1 + 1?", "final_answer": 2, "solution": "It is \\boxed{2}."}]
    demonstrations, _ = load_demonstrations(write_jsonl(tmp_path / "b.jsonl", rows))
    assert (demonstrations[0].problem.answer, demonstrations[0].response) == (
        "2",
        "It is \\boxed{2}.",
    )


def test_rows_of_a_file_that_no_mapping_is_named_for(tmp_path: Path) -> None:
    """Faults are of the rows, not of the fields."""
    path = write_jsonl(tmp_path / "mine.jsonl", ['{"question": "a", "answer": "1"},'] * 3)
    with pytest.raises(ValueError, match=r"0 of 3 rows could be used: not valid JSON \(row 1: tra"):
        load_problems(path)
    rows: list[Any] = [{"question": "a", "answer": {"value": 1}}, {"question": "b", "answer": "2"}]
    problems, report = load_problems(write_jsonl(tmp_path / "mixed.jsonl", rows))
    assert [problem.answer for problem in problems] == ["2"]
    assert report.skipped() == "1 x answer is a dict (row 1: {'value': 1})"


def test_choices_are_of_the_list(tmp_path: Path) -> None:
    rows = [
        {"question": "a", "choices": ["x", 2], "answer": 1},
        {"question": "b", "choices": ["x", "y"], "answer": 2},
        {"question": "c", "choices": ["x", "y"], "answer": True},
        {"question": "d", "choices": ["x", "y"], "answer": "B"},
        {"question": "e", "choices": ["x", None], "answer": 0},
        {"question": "f", "choices": "xy", "answer": 0},
    ]
    problems, report = load_problems(write_jsonl(tmp_path / "mmlu_stem.jsonl", rows))
    assert [(p.question, p.answer) for p in problems] == [("a\nA. x\nB. 2", "B")]
    assert report.num_skipped == 5


def test_ids_are_words_or_row_numbers(tmp_path: Path) -> None:
    rows = [{"problem": "q", "answer": 1, "id": i} for i in ("a", 7, None, {"x": 1}, "a", "\ud83d")]
    problems, report = load_problems(write_jsonl(tmp_path / "amc23.jsonl", rows))
    assert [p.problem_id for p in problems] == [f"amc23/{i}" for i in ("a", 7, 3, 4, "a#5")]
    assert report.reasons == {"id has a lone surrogate": 1}


def test_answers_are_checked_in_batches_and_a_refused_one_takes_no_place(tmp_path: Path) -> None:
    rows = [{"problem": f"q{i}", "answer": i // 2} for i in range(3000)]
    path = write_jsonl(tmp_path / "math500.jsonl", rows)
    asked: list[list[str]] = []

    def odd(answers: Sequence[str]) -> list[str | None]:
        asked.append(list(answers))
        return [None if int(answer) % 2 else "it is even" for answer in answers]

    problems, report = load_problems(path, limit=600, check_answers=odd)
    assert [p.answer for p in problems] == [str(i // 2) for i in range(3000) if i // 2 % 2][:600]
    assert report.reasons == {"answer cannot be graded": report.num_rows - 600}
    assert report.first["answer cannot be graded"] == "row 1: it is even"
    everything = [answer for answers in asked for answer in answers]
    assert len(everything) == len(set(everything)) == 600
    assert len(asked) < 12


@pytest.mark.parametrize(
    ("answers", "warns"),
    [
        (["\\pi"] * 30 + [str(i) for i in range(50)], True),
        (["\\pi"] * 19 + [str(i) for i in range(50)], False),
        (["\\pi"] * 30 + [str(i) for i in range(150)], False),
        (["2"] * 30 + [str(i) for i in range(50)], False),
        (["2"] * 95 + ["3"] * 5, True),
        (["Yes"] * 60 + ["No"] * 40, False),
    ],
)
def test_an_answer_of_many_rows_is_spoken_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answers: list[str], warns: bool
) -> None:
    rows = [{"problem": f"q{i}", "answer": answer} for i, answer in enumerate(answers)]
    load_problems(write_jsonl(tmp_path / "math500.jsonl", rows))
    said = [m for m in caplog.messages if "does it stand for a missing answer" in m]
    assert len(said) == warns


def test_problems_of_every_container_are_the_same(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"problem": f"q{i}", "answer": i + 0.5, "level": "hard"} for i in range(3)]
    loaded: list[list[Problem]] = []
    for ending in (".jsonl", ".json", ".parquet"):
        path = write_jsonl(tmp_path / f"math500{ending}", rows)
        if ending == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        loaded.append(load_problems(path, name="x")[0])
    assert loaded[0] == loaded[1] == loaded[2]
    assert [p.answer for p in loaded[0]] == ["0.5", "1.5", "2.5"]


def test_source_digests_are_of_contents(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [1])
    first = source_digest(str(path))
    write_jsonl(path, [2])
    assert first != source_digest(str(path)) and source_digest("openai/gsm8k") is None
    with pytest.raises(ValueError, match="does not exist"):
        source_digest(str(tmp_path / "b.jsonl"))


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
        ("unknown.jsonl", "{}", None, "no field mapping known for it"),
        ("unknown.jsonl", "{}", "gsm9k", "no field mapping named 'gsm9k'"),
        ("gsm8k.tsv", "", None, "must end in .jsonl, .json, .csv, .parquet"),
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


def test_attempts_graded_as_wrong_are_no_experts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grades: list[Any] = ["Yes", "No", None, "no", True, False, "Perhaps", "Yes"]
    rows: list[dict[str, Any]] = [
        {
            "question": f"What is {number} + 1?",
            "solution": f"By counting it is {number + 1}.",
            "deepseek_attempt": f"1. **Answer** \\boxed{{{number + 1}}}",
            "deepseek_grade": grade,
        }
        for number, grade in enumerate(grades)
    ]
    del rows[-1]["deepseek_grade"]
    path = write_jsonl(tmp_path / "s1k_1_1.jsonl", rows)
    right, report = load_demonstrations(path, only_right=True)
    assert [d.problem.problem_id for d in right] == [f"s1k_1_1/{n}" for n in (1, 3, 5, 8)]
    assert [d.problem.answer for d in right] == ["1", "3", "5", "8"]
    assert report.reasons == {
        "deepseek_grade says that the solution is wrong": 3,
        "deepseek_grade is neither Yes nor No": 1,
    }
    assert (
        "is wrong (row 2: 'No'), 1 x deepseek_grade is neither Yes nor No (row 7: 'Perhaps')"
        in (caplog.text)
    )
    first, _ = load_demonstrations(path, only_right=True, limit=2)
    assert first == right[:2]
    # Whoever imitates, or asks for problems, gets all of them.
    assert len(load_demonstrations(path)[0]) == len(load_problems(path)[0]) == len(rows)
    wrong = write_jsonl(tmp_path / "s1k_1_1_wrong.jsonl", rows[1:2])
    with pytest.raises(ValueError, match=r"0 of 1 rows could be used: deepseek_grade says that"):
        load_demonstrations(wrong, only_right=True)
    # A mapping without a grade takes every solution for right.
    plain = FieldMapping("question", "solution", response="solution")
    assert len(load_demonstrations(path, plain, only_right=True)[0]) == len(rows)


def test_grades_of_a_parquet_file_are_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {
        "question": ["a?", "b?"],
        "deepseek_attempt": ["\\boxed{1}", "\\boxed{2}"],
        "deepseek_grade": ["No", "Yes"],
        "other": [1, 2],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "s1k_1_1.parquet")
    right, _ = load_demonstrations(tmp_path / "s1k_1_1.parquet", only_right=True)
    assert [d.problem.question for d in right] == ["b?"]


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
    problems, report = load_problems(path, check_answers=check_answers)
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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "arithmetc",
            "'arithmetc' is neither a built-in domain, nor a data file, nor .*'arithmetic'$",
        ),
        ("gsm8", "the nearest is 'gsm8k'$"),
        ("sums", "the nearest is 'sums.jsonl'$"),
        ("/", "data file / is a folder"),
        (
            "sum.jsonl",
            "data file sum.jsonl does not exist; the nearest in its folder is sums.jsonl$",
        ),
        ("no/such/folder.jsonl", "data file no/such/folder.jsonl does not exist$"),
    ],
)
def test_what_is_no_source_names_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    (tmp_path / "sums.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        check_source(source, ("arithmetic",))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["arithmetic", "gsm8k", "owner/name", "sums.jsonl"])
def test_sources_that_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (tmp_path / "sums.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    check_source(source, ("arithmetic",))
