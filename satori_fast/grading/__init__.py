# SPDX-License-Identifier: Apache-2.0
"""Final answers: finding them in a response and deciding whether they equal the gold answer.

Training rewards and evaluation call the same functions. Where the answer of a response stands is
one `AnswerFinder` for a whole run: in its last ``\\boxed{}``, unless `reward.answer` says
otherwise; there is no fallback to the last number. Two graders beside it (`lenient`) say what other
evaluators would have counted; nothing is rewarded by them.

Not here: rewards (`rewards.outcome`) and running code that a model wrote (`evaluation.sandbox`).
"""

from satori_fast.grading.boxes import extract_answer, extract_answers, standing_answers
from satori_fast.grading.finders import BOXED, AnswerFinder, answer_finder
from satori_fast.grading.lenient import lenient_answer, lenient_equal, strict_equal
from satori_fast.grading.pool import GradingPool
from satori_fast.grading.verdict import (
    Grader,
    Reason,
    Verdict,
    check_gold,
    equivalent,
    gold_fault,
    grade,
)
from satori_fast.grading.version import grader_version

__all__ = [
    "BOXED",
    "AnswerFinder",
    "Grader",
    "GradingPool",
    "Reason",
    "Verdict",
    "answer_finder",
    "check_gold",
    "equivalent",
    "extract_answer",
    "extract_answers",
    "gold_fault",
    "grade",
    "grader_version",
    "lenient_answer",
    "lenient_equal",
    "standing_answers",
    "strict_equal",
]
