# SPDX-License-Identifier: Apache-2.0
"""Analysis of an evaluation beyond its accuracy: what reflections did to answers, accuracy by
number of attempts, by length, by number of reflections and by difficulty, and length by difficulty.

Pure functions over graded answers. Not for sampling or grading (`evaluate`), for verdicts that a
response gives (`verification`) nor for plots (`profiling.report_evaluation`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from satori_fast.data.formats import ResponseFormat
from satori_fast.evaluation.verification import trial_figures
from satori_fast.types import Trajectory

NUM_LENGTH_BINS = 8
# A format's count of them, in its metrics.
REFLECTIONS = "reflections_per_answer"
# Answers with more reflections than this share a bin.
MAX_REFLECTIONS = 3
# Which of the earlier evaluations solved a problem, hardest first.
PASS_RATES = NONE, SOME, ALL = "none", "some", "all"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The answer that stands at some point of a response. correct: does it match the gold one?"""

    answer: str
    correct: bool


@dataclass(frozen=True, slots=True)
class SelfCorrection:
    """Changes of answers by reflections, counted over responses that gave an answer before one.

    The answer before the first such reflection is compared with the final one.

    wrong_to_right, right_to_wrong: corrected and broken. wrong_to_wrong: from one wrong answer to
    another. right_unchanged, wrong_unchanged: the final answer is the first one.
    """

    wrong_to_right: int
    right_to_wrong: int
    wrong_to_wrong: int
    right_unchanged: int
    wrong_unchanged: int

    @property
    def num_reflected(self) -> int:
        """Responses that reflected on an answer."""
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True)
class VerdictQuality:
    """Quality of reflections as judges of the answers before them, measured by what came of these.

    num_on_wrong: reflections on a wrong answer; num_changed of them were followed by another one.
    num_on_right: reflections on a right answer; num_kept of them were followed by the same one.
    """

    num_on_wrong: int
    num_changed: int
    num_on_right: int
    num_kept: int

    @property
    def error_recall(self) -> float | None:
        """Share of wrong answers that were changed, None without one."""
        return self.num_changed / self.num_on_wrong if self.num_on_wrong else None

    @property
    def right_kept(self) -> float | None:
        """Share of right answers that were left alone, None without one."""
        return self.num_kept / self.num_on_right if self.num_on_right else None


@dataclass(frozen=True, slots=True)
class Group:
    """Accuracy of the answers that have something in common.

    mean: of the quantity that they were grouped by, None where it is a name.
    standard_error: of the share, sqrt(p (1 - p) / n).
    mean_tokens: of their responses, with its standard error; None where nobody asked for it.
    """

    label: str
    count: int
    accuracy: float
    standard_error: float
    mean: float | None = None
    mean_tokens: float | None = None
    tokens_standard_error: float | None = None


@dataclass(frozen=True, slots=True)
class AttemptAccuracy:
    """Accuracy of all responses, if each had ended with so many attempts.

    num_made: responses with so many attempts; the others stand by their last one, and one without
    any is wrong. standard_error: sqrt(p (1 - p) / n), n counting all responses.
    """

    attempts: int
    num_made: int
    accuracy: float
    standard_error: float


def self_correction(attempts: Iterable[Sequence[Attempt]]) -> SelfCorrection:
    """Compare the first attempt of each response with the last; see `SelfCorrection`.

    attempts: of each response, as `evaluate.attempts_of` gives them; fewer than two say that it
    reflected on no answer.
    """
    ends = [(a[0], a[-1]) for a in attempts if len(a) > 1]
    return SelfCorrection(
        wrong_to_right=sum(not a.correct and b.correct for a, b in ends),
        right_to_wrong=sum(a.correct and not b.correct for a, b in ends),
        wrong_to_wrong=sum(
            not a.correct and not b.correct and a.answer != b.answer for a, b in ends
        ),
        right_unchanged=sum(a.correct and b.correct for a, b in ends),
        wrong_unchanged=sum(
            not a.correct and not b.correct and a.answer == b.answer for a, b in ends
        ),
    )


def verdict_quality(attempts: Iterable[Sequence[Attempt]]) -> VerdictQuality:
    """Compare each attempt with the next: one reflection lies between them.

    A right answer in other words is still kept: what counts is whether it is right.
    """
    turns = [turn for answers in attempts for turn in pairwise(answers)]
    on_wrong = [(a, b) for a, b in turns if not a.correct]
    on_right = [(a, b) for a, b in turns if a.correct]
    return VerdictQuality(
        num_on_wrong=len(on_wrong),
        num_changed=sum(b.correct or a.answer != b.answer for a, b in on_wrong),
        num_on_right=len(on_right),
        num_kept=sum(b.correct for _, b in on_right),
    )


def accuracy_by_attempts(attempts: Iterable[Sequence[Attempt]]) -> list[AttemptAccuracy]:
    """Accuracy after 1, 2, ... attempts, up to the most that a response has; none without any.

    attempts: of each response, as `evaluate.attempts_of` gives them. A last answer that confirms
    the one before it is no attempt of its own.

    >>> wrong, right = Attempt("5", False), Attempt("4", True)
    >>> found = accuracy_by_attempts([[wrong, wrong, right], [right, right]])
    >>> [(k.attempts, k.num_made, k.accuracy) for k in found]
    [(1, 2, 0.5), (2, 1, 0.5), (3, 1, 1.0)]
    """
    made = [own[:-1] if len(own) > 1 and own[-1] == own[-2] else own for own in attempts]
    found: list[AttemptAccuracy] = []
    for k in range(1, max(map(len, made), default=0) + 1):
        right = np.asarray([bool(own) and own[min(k, len(own)) - 1].correct for own in made])
        num_made = sum(len(own) >= k for own in made)
        found.append(AttemptAccuracy(k, num_made, *_share(right)))
    return found


def accuracy_by_length(
    lengths: Sequence[int], correct: Sequence[bool], *, num_bins: int = NUM_LENGTH_BINS
) -> list[Group]:
    """Accuracy of answers of like length, shortest first, in `num_bins` bins of about equal counts.

    lengths: response tokens. Equal lengths share a bin, so that there may be fewer bins.

    >>> [(g.label, g.accuracy) for g in accuracy_by_length([9, 5, 5, 7], [0, 1, 1, 1], num_bins=2)]
    [('5', 1.0), ('7-9', 0.5)]
    """
    if not lengths:
        return []
    tokens, right = np.asarray(lengths), np.asarray(correct, dtype=bool)
    edges = np.unique(np.quantile(tokens, np.linspace(0, 1, num_bins + 1), method="higher"))
    # A bin begins at its edge. The last edge is the longest response, with a bin of its own where
    # that is many responses: those that were cut.
    is_common = num_bins * np.count_nonzero(tokens == edges[-1]) >= len(tokens)
    last = max(0, len(edges) - (1 if is_common else 2))
    place = np.minimum(np.searchsorted(edges, tokens, side="right") - 1, last)
    groups: list[Group] = []
    for number in np.unique(place):
        own = tokens[place == number]
        low, high = int(own.min()), int(own.max())
        label = str(low) if low == high else f"{low}-{high}"
        groups.append(_group(label, right[place == number], mean=float(own.mean())))
    return groups


def accuracy_by(
    labels: Sequence[str],
    correct: Sequence[bool],
    *,
    order: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
) -> list[Group]:
    """Accuracy of the answers of each label; "" is no label.

    order: of the labels; by name without it, "Level 2" before "Level 10". lengths: response tokens,
    whose mean is wanted too.
    """
    right = np.asarray(correct, dtype=bool)
    groups = [(own, _group(name, right[own])) for name, own in _labelled(labels, order)]
    if lengths is None:
        return [group for _, group in groups]
    tokens = np.asarray(lengths)
    return [_with_tokens(group, tokens[own]) for own, group in groups]


def earlier_pass_rates(
    problem_ids: Sequence[str], earlier: Sequence[Mapping[str, bool]]
) -> list[str]:
    """Share of the earlier evaluations that solved each problem, in `PASS_RATES`; "" where none had
    it. A difficulty for problems that come without one.

    earlier: problem id to verdict, one mapping for each evaluation.
    """
    names: list[str] = []
    for problem_id in problem_ids:
        verdicts = [known[problem_id] for known in earlier if problem_id in known]
        solved = ALL if all(verdicts) else SOME if any(verdicts) else NONE
        names.append(solved if verdicts else "")
    return names


def analyse(
    trajectories: Sequence[Trajectory],
    attempts: Sequence[Sequence[Attempt]],
    correct: Sequence[bool],
    *,
    format: ResponseFormat,
    earlier: Sequence[Mapping[str, bool]] = (),
) -> dict[str, Any]:
    """Everything above for one evaluation, fit for JSON.

    The arguments go together, one entry for each answer. format: of the responses; "by_reflections"
    is empty where it counts none. Where it has verifications their actions are judged: "verdicts"
    counts nothing, because "verification" says what verdicts are worth (`trial_figures`), in all
    and by difficulty; None elsewhere. earlier: the key "correct" of what this function returned for
    earlier evaluations on the same problems.
    """
    ids = [t.problem.problem_id for t in trajectories]
    counts = [format.metrics(t).get(REFLECTIONS) for t in trajectories]
    numbers = ["" if n is None else _reflections_label(int(n)) for n in counts]
    lengths = [t.num_response_tokens for t in trajectories]
    solved = earlier_pass_rates(ids, earlier)
    levels = [t.problem.level for t in trajectories]
    changes = self_correction(attempts)
    verdicts = verdict_quality(() if format.has_verifications else attempts)
    return {
        "changes": asdict(changes) | {"num_reflected": changes.num_reflected},
        "verdicts": asdict(verdicts)
        | {"error_recall": verdicts.error_recall, "right_kept": verdicts.right_kept},
        "by_attempts": [asdict(k) for k in accuracy_by_attempts(attempts)],
        "by_length": _rows(accuracy_by_length(lengths, correct)),
        "by_reflections": _rows(accuracy_by(numbers, correct)),
        "by_level": _rows(accuracy_by(levels, correct, lengths=lengths)),
        "by_earlier": _rows(accuracy_by(solved, correct, order=PASS_RATES, lengths=lengths)),
        "verification": _verification(trajectories, levels=levels, solved=solved)
        if format.has_verifications
        else None,
        "correct": {name: bool(c) for name, c in zip(ids, correct, strict=True)},
    }


def _verification(
    trajectories: Sequence[Trajectory], *, levels: Sequence[str], solved: Sequence[str]
) -> dict[str, Any]:
    def rows(labels: Sequence[str], order: Sequence[str] | None = None) -> list[dict[str, Any]]:
        return [
            {"label": name, **trial_figures(trajectories[i] for i in np.flatnonzero(own).tolist())}
            for name, own in _labelled(labels, order)
        ]

    return {
        **trial_figures(trajectories),
        "by_level": rows(levels),
        "by_earlier": rows(solved, PASS_RATES),
    }


def _labelled(
    labels: Sequence[str], order: Sequence[str] | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Each label but "" in order, and which entries have it, bool [N]."""
    own = np.asarray(labels)
    for name in sorted({*labels} - {""}, key=_natural_key if order is None else order.index):
        yield name, own == name


def _reflections_label(number: int) -> str:
    return str(number) if number < MAX_REFLECTIONS else f"{MAX_REFLECTIONS}+"


def _natural_key(label: str) -> list[tuple[int, str]]:
    """Runs of digits compare as numbers."""
    pieces = re.findall(r"\d+|\D+", label)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _group(label: str, correct: np.ndarray, *, mean: float | None = None) -> Group:
    return Group(label, len(correct), *_share(correct), mean)


def _share(correct: np.ndarray) -> tuple[float, float]:
    """Share of the right ones, and its standard error."""
    share = float(correct.mean())
    return share, float(np.sqrt(share * (1 - share) / len(correct)))


def _with_tokens(group: Group, tokens: np.ndarray) -> Group:
    error = float(tokens.std() / np.sqrt(len(tokens)))
    return replace(group, mean_tokens=float(tokens.mean()), tokens_standard_error=error)


def _rows(groups: Iterable[Group]) -> list[dict[str, Any]]:
    return [asdict(group) for group in groups]
