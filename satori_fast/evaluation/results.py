# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation for each benchmark: figures and lists, fit for evaluation.json.

Every problem of a set is in its result, whatever became of it. Pure functions over judged
responses; sampling and files are `stages.benchmark`, statistics `statistics`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from satori_fast.evaluation.analysis import accuracy_by
from satori_fast.evaluation.benchmark_sets import BenchmarkSet, Item
from satori_fast.evaluation.budgets import (
    BoxedAnswer,
    ScalingPoint,
    accuracy_by_boxes,
    accuracy_by_budget,
)
from satori_fast.evaluation.contamination import ContaminationReport
from satori_fast.evaluation.judging import Judge, Judgement
from satori_fast.evaluation.responses import Key, Response
from satori_fast.evaluation.statistics import (
    Share,
    bootstrap_average,
    bootstrap_mean,
    pass_at_k,
)
from satori_fast.grading.spelling import clean, key

NOT_ASKED = "prompt_too_long"
_SHOWN = 200  # characters of an answer in a list


@dataclass(frozen=True, slots=True)
class Judged:
    """A response with its verdicts. boxes: those of the answers that stood on the way."""

    item: Item
    response: Response
    judgement: Judgement
    boxes: tuple[BoxedAnswer, ...]


def judge_responses(
    benchmark: BenchmarkSet, responses: Sequence[Response], judge: Judge
) -> list[Judged]:
    """Judge responses to a benchmark, and every answer that a box of theirs holds."""
    items = {item.problem.problem_id: item for item in benchmark.items}
    own = [items[response.problem_id] for response in responses]
    judgements = judge.judge(
        [(item, response.answered_text) for item, response in zip(own, responses, strict=True)]
    )
    # The same answer is often boxed again: it is compared once.
    answers = {
        (item.problem.problem_id, answer): item
        for item, response in zip(own, responses, strict=True)
        for answer, _ in response.boxes
    }
    verdicts = judge.right([(item, answer) for (_, answer), item in answers.items()])
    right = dict(zip(answers, verdicts, strict=True))
    return [
        Judged(
            item,
            response,
            judgement,
            tuple(
                BoxedAnswer(answer, token, right[item.problem.problem_id, answer])
                for answer, token in response.boxes
            ),
        )
        for item, response, judgement in zip(own, responses, judgements, strict=True)
    ]


def judgement_record(judged: Judged) -> dict[str, Any]:
    """A line of judgements.jsonl."""
    names = ("benchmark", "problem_id", "sample")
    return {
        **{name: getattr(judged.response, name) for name in names},
        "gold": judged.item.problem.answer,
        **asdict(judged.judgement),
    }


def benchmark_result(
    benchmark: BenchmarkSet,
    judged: Sequence[Judged],
    *,
    num_samples: int,
    unreadable: Mapping[str, str],
    rewards: Mapping[Key, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """The result of one benchmark.

    judged: in any order; problems without a response were not asked and count as wrong.
    num_samples: responses per problem. unreadable: why some golds cannot be read, by id.
    rewards: scores of responses, for the best of n; empty without a reward model.
    """
    by_problem: defaultdict[str, list[Judged]] = defaultdict(list)
    for each in sorted(judged, key=lambda each: each.response.sample):
        by_problem[each.item.problem.problem_id].append(each)
    ids = [item.problem.problem_id for item in benchmark.items]
    counts = {name: sum(each.judgement.house for each in by_problem[name]) for name in ids}
    scores = {name: counts[name] / num_samples for name in ids}
    return {
        **_identity(benchmark, unreadable),
        "num_samples": num_samples,
        "accuracy": _accuracy(list(scores.values()), num_samples),
        "strict": _accuracy(_scores(by_problem, ids, "strict", num_samples), num_samples),
        "lenient": _accuracy(_scores(by_problem, ids, "lenient", num_samples), num_samples),
        "pass_at_k": _pass_at_k(list(counts.values()), num_samples),
        "majority": _majority(by_problem, ids) if num_samples > 1 else None,
        "best_of_n": _best_of(by_problem, ids, rewards) if rewards else None,
        **_shares(judged),
        "not_asked": [name for name in ids if not by_problem[name]],
        **_curves(judged),
        "by_level": _by_level(judged),
        "self_correction": _self_correction(judged),
        "disagreements": [_disagreement(each) for each in judged if not each.judgement.agrees],
        "scores": scores,
    }


def contamination_result(result: Mapping[str, Any], report: ContaminationReport) -> dict[str, Any]:
    """Overlaps of one benchmark's questions with training files, and its accuracy without them.

    result: of `benchmark_result`. The accuracy is None where every question was found.
    """
    scores = result["scores"]
    clean_scores = [score for name, score in scores.items() if name not in report.problem_ids]
    num_samples = result["num_samples"]
    return {
        "overlaps": [asdict(each) for each in report.overlaps if each.problem_id in scores],
        "too_short": [name for name in report.too_short if name in scores],
        "accuracy_without": _accuracy(clean_scores, num_samples) if clean_scores else None,
    }


def average(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The mean accuracy over benchmarks, each of which counts the same, with its interval."""
    sets = [list(result["scores"].values()) for result in results.values()]
    low, high = bootstrap_average(sets)
    return {
        "benchmarks": list(results),
        "accuracy": float(np.mean([np.mean(scores) for scores in sets])),
        "interval": [low, high],
    }


def _identity(benchmark: BenchmarkSet, unreadable: Mapping[str, str]) -> dict[str, Any]:
    row = benchmark.benchmark
    ids = {item.problem.problem_id for item in benchmark.items}
    without = {item.problem.problem_id: item.fault for item in benchmark.without_gold}
    unread = {name: fault for name, fault in unreadable.items() if name in ids}
    return {
        "title": row.title,
        "source": benchmark.source,
        "num_problems": len(benchmark.items),
        "published_size": row.size,
        "partial": benchmark.is_partial,
        "faults": list(benchmark.faults),
        "note": row.note,
        "questions_sha256": benchmark.digest,
        "golds_sha256": benchmark.golds,
        "without_gold": without,
        "unreadable_golds": unread,
    }


def _scores(
    by_problem: Mapping[str, Sequence[Judged]], ids: Sequence[str], grader: str, num_samples: int
) -> list[float]:
    return [
        sum(getattr(each.judgement, grader) for each in by_problem[name]) / num_samples
        for name in ids
    ]


def _accuracy(scores: Sequence[float], num_samples: int) -> dict[str, Any]:
    """Mean over problems: Wilson's interval for single responses, the bootstrap for several.

    Wilson's also where every response is right, or none: problems that are all alike resample to
    an interval without width, which knows nothing of the problems that were not asked.
    """
    if num_samples == 1 or set(scores) in ({0.0}, {1.0}):
        return Share(int(sum(scores)), len(scores)).figures()
    low, high = bootstrap_mean(scores)
    return {"value": float(np.mean(scores)), "n": len(scores), "interval": [low, high]}


def _pass_at_k(counts: Sequence[int], num_samples: int) -> dict[str, float]:
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    return {
        str(k): float(np.mean([pass_at_k(num_samples, c, k) for c in counts]))
        for k in (*powers, num_samples)
    }


def _majority(by_problem: Mapping[str, Sequence[Judged]], ids: Sequence[str]) -> dict[str, Any]:
    """Share of problems whose most frequent answer is right; of equally frequent ones the first."""
    right = 0
    for name in ids:
        # All right answers are the same answer, however they are written.
        votes = Counter(
            "right" if each.judgement.house else ("wrong", key(clean(each.judgement.answer)))
            for each in by_problem[name]
            if each.judgement.answer is not None
        )
        right += bool(votes) and votes.most_common(1)[0][0] == "right"
    return Share(right, len(ids)).figures()


def _best_of(
    by_problem: Mapping[str, Sequence[Judged]], ids: Sequence[str], rewards: Mapping[Key, float]
) -> dict[str, Any]:
    """Share of problems whose best-scored response is right; of equal scores the first."""
    best = [
        max(own, key=lambda each: rewards[each.response.key])
        for name in ids
        if (own := by_problem[name])
    ]
    return Share(sum(each.judgement.house for each in best), len(ids)).figures()


def _shares(judged: Sequence[Judged]) -> dict[str, Any]:
    n = len(judged)
    reasons = Counter(each.judgement.reason for each in judged)
    lengths = [each.response.num_tokens for each in judged]
    return {
        "truncated": Share(sum(e.response.finish == "length" for e in judged), n).figures(),
        "no_answer": Share(reasons["no_answer"], n).figures(),
        "timeouts": Share(reasons["timeout"], n).figures(),
        "crashes": Share(reasons["crash"], n).figures(),
        "compared_as_text": Share(reasons["text"], n).figures(),
        "mean_tokens": float(np.mean(lengths)) if lengths else None,
    }


def _curves(judged: Sequence[Judged]) -> dict[str, Any]:
    boxes = [each.boxes for each in judged]
    lengths = [each.response.num_tokens for each in judged]
    return {
        "by_budget": [_point(point) for point in accuracy_by_budget(boxes, lengths)],
        "by_boxes": [_point(point) for point in accuracy_by_boxes(boxes)],
    }


def _point(point: ScalingPoint) -> dict[str, Any]:
    return {
        "budget": point.budget,
        "accuracy": point.right.figures(),
        "answered": point.answered.value,
        "reached": point.reached.value,
    }


def _by_level(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Accuracy and length by the level that the data set names."""
    groups = accuracy_by(
        [each.item.problem.level for each in judged],
        [each.judgement.house for each in judged],
        lengths=[each.response.num_tokens for each in judged],
    )
    return [asdict(group) for group in groups]


def _self_correction(judged: Sequence[Judged]) -> dict[str, Any]:
    """Share of responses with a wrong first box that end right; and the other way round.

    The end is the judgement on the whole response.
    """
    ends = [(each.boxes[0].correct, each.judgement.house) for each in judged if each.boxes]
    first_wrong = [last for first, last in ends if not first]
    first_right = [last for first, last in ends if first]
    return {
        "wrong_to_right": Share(sum(first_wrong), len(first_wrong)).figures(),
        "right_to_wrong": Share(first_right.count(False), len(first_right)).figures(),
    }


def _disagreement(each: Judged) -> dict[str, Any]:
    judgement = each.judgement
    return {
        "problem_id": each.item.problem.problem_id,
        "sample": each.response.sample,
        "gold": each.item.problem.answer,
        "answer": (judgement.answer or "")[:_SHOWN],
        "lenient_answer": (judgement.lenient_answer or "")[:_SHOWN],
        "house": judgement.house,
        "strict": judgement.strict,
        "lenient": judgement.lenient,
        "reason": judgement.reason,
    }
