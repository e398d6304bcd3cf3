# SPDX-License-Identifier: Apache-2.0
"""The table of known data sets: which field holds what. `sources` reads through it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

AnswerForm = Literal["plain", "boxed", "hashes", "choice", "any"]


@dataclass(frozen=True, slots=True)
class FieldMapping:
    """Field names, or paths into nested fields, under which a data set keeps what we need.

    answer_form: how the answer field holds the answer: "plain", the answer itself (text, number,
        truth value, or a list of them); "boxed", in the last ``\\boxed{}`` of a solution; "hashes",
        after ``####`` (GSM8K); "choice", an index into the field `choices`; "any", in a box or
        after ``####`` where a row has one, else the answer itself, if it is short.
    response:    a worked solution, for demonstrations.
    problem_id:  a field with an id, else rows are numbered from 1.
    level:       a field that says how hard a problem is; rows may lack it.
    grade:       a field that says whether `response` is right, Yes or No; rows may lack it.
    hub_id, hub_config: name on the Hugging Face hub.
    """

    question: str
    answer: str
    answer_form: AnswerForm = "plain"
    response: str | None = None
    choices: str | None = None
    problem_id: str | None = None
    level: str | None = None
    grade: str | None = None
    hub_id: str | None = None
    hub_config: str | None = None

    def fits(self, names: Collection[str]) -> bool:
        """Whether question and answer are among the fields of a data set."""
        return self.question in names and self.answer in names


FIELD_MAPPINGS: Mapping[str, FieldMapping] = MappingProxyType(
    {
        # What this project writes: demonstrations.jsonl of a run folder.
        "coat": FieldMapping(
            "question", "answer", response="response", problem_id="problem_id", level="level"
        ),
        # Training sets.
        "gsm8k": FieldMapping(
            "question",
            "answer",
            "hashes",
            response="answer",
            hub_id="openai/gsm8k",
            hub_config="main",
        ),
        "math": FieldMapping(
            "problem",
            "solution",
            "boxed",
            response="solution",
            level="level",
            hub_id="DigitalLearningGmbH/MATH-lighteval",
        ),
        "numina_math_cot": FieldMapping(
            "problem", "solution", "boxed", response="solution", hub_id="AI-MO/NuminaMath-CoT"
        ),
        "open_math_instruct_2": FieldMapping(
            "problem",
            "expected_answer",
            response="generated_solution",
            hub_id="nvidia/OpenMathInstruct-2",
        ),
        # The answer is DeepSeek-R1's, right or wrong as the grade says: `solution` holds the
        # reference as free text.
        "s1k_1_1": FieldMapping(
            "question",
            "deepseek_attempt",
            "boxed",
            response="deepseek_attempt",
            grade="deepseek_grade",
            hub_id="simplescaling/s1K-1.1",
        ),
        # Benchmarks.
        "math500": FieldMapping(
            "problem", "answer", level="level", hub_id="HuggingFaceH4/MATH-500"
        ),
        "aime24": FieldMapping("problem", "answer", response="solution", problem_id="id"),
        "aime25": FieldMapping("problem", "answer"),
        "amc23": FieldMapping("problem", "answer", problem_id="id"),
        "olympiadbench": FieldMapping("question", "final_answer", problem_id="id"),
        "minerva_math": FieldMapping("problem", "solution", "boxed", response="solution"),
        "college_math": FieldMapping("question", "answer"),
        "gaokao2023en": FieldMapping("question", "answer"),
        "mmlu_stem": FieldMapping("question", "answer", "choice", choices="choices"),
        "strategyqa": FieldMapping("question", "answer", problem_id="qid"),
    }
)

# Columns of files that no mapping is named for, the likeliest first.
_QUESTIONS = ("question", "problem", "prompt", "query", "instruction")
_ANSWERS = ("answer", "final_answer", "expected_answer", "ground_truth")
_RESPONSES = ("response", "solution", "reasoning")


def mapping_of_columns(names: Collection[str]) -> FieldMapping | None:
    """The mapping of a file with columns called question and answer, or nearly so, else None."""
    question = next((name for name in _QUESTIONS if name in names), None)
    answer = next((name for name in _ANSWERS if name in names), None)
    if question is None or answer is None:
        return None
    response = next((name for name in _RESPONSES if name in names), None)
    return FieldMapping(question, answer, "any", response=response, level="level")
