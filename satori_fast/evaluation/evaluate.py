# SPDX-License-Identifier: Apache-2.0
"""Greedy pass@1 on held-out problems, and self-correction counted on the same responses.

It grades with the same `Grader` that rewards use. It does not choose problems (`data.sources`)
and does not sample by itself (`rollout.engine.collect`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from satori_fast.data.formats import ResponseFormat
from satori_fast.data.prompts import answered_text, full_response
from satori_fast.evaluation.analysis import (
    REFLECTIONS,
    Attempt,
    SelfCorrection,
    VerdictQuality,
    analyse,
    self_correction,
    verdict_quality,
)
from satori_fast.evaluation.verification import VerificationCounts, count_verifications
from satori_fast.grading import Grader
from satori_fast.rewards.outcome import OutcomeReward
from satori_fast.rewards.process import ProcessReward
from satori_fast.rewards.terms import Reward, score
from satori_fast.rollout.engine import Engine, SamplingParams, collect
from satori_fast.types import Problem, RolloutResult, Trajectory


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """accuracy in [0, 1]; standard_error of it; response tokens and the format's counts are means.

    format:           of the responses. format_metrics: means of what it, or the domain, counts.
    rollout:          its trajectories have their verdict as rule reward, and where the format has
                      verifications the verdict on each action.
    correct, attempts: the verdict on each answer, and the answers that stood on the way to it.
    benchmarks:       figures of those that were asked as well, by name.
    """

    accuracy: float
    standard_error: float
    num_problems: int
    format: ResponseFormat
    format_metrics: Mapping[str, float]
    mean_response_tokens: float
    truncated: float
    rollout: RolloutResult
    correct: tuple[bool, ...]
    attempts: tuple[tuple[Attempt, ...], ...]
    benchmarks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Any])

    @property
    def reflections_per_answer(self) -> float | None:
        """Mean number of reflections, None for a format without them."""
        return self.format_metrics.get(REFLECTIONS)

    @property
    def no_answer(self) -> float:
        """Share of responses without a final answer; they count as wrong."""
        return float(np.mean([not own or not own[-1].answer for own in self.attempts]))

    @property
    def self_correction(self) -> SelfCorrection:
        return self_correction(self.attempts)

    @property
    def verdict_quality(self) -> VerdictQuality:
        return verdict_quality(self.attempts)

    @property
    def verification(self) -> VerificationCounts:
        """Counts of verdicts, all 0 for a format without verifications."""
        return count_verifications(self.rollout.trajectories)

    def analysis(self, earlier: Sequence[Mapping[str, bool]] = ()) -> dict[str, Any]:
        """See `analysis.analyse`."""
        return analyse(
            self.rollout.trajectories,
            self.attempts,
            self.correct,
            format=self.format,
            earlier=earlier,
        )

    def samples(self, num_samples: int) -> Sequence[Trajectory]:
        """The first answers, for samples.jsonl."""
        return self.rollout.trajectories[:num_samples]

    def corrections(self) -> dict[str, float | None]:
        """Shares of answers that were judged and changed, by name; None where the format has none,
        or where there was nothing to judge.

        Of a format with verifications they are `VerificationCounts.rates`. Elsewhere
        "eval/error_recall" and "eval/right_kept" in the metrics are those of `VerdictQuality`, and
        changes are shares of all problems.
        """
        if self.format.has_verifications:
            return {"wrong_to_wrong": None, "right_kept": None, **self.verification.rates()}
        changed, verdicts = self.self_correction, self.verdict_quality
        changes: dict[str, float | None] = {
            "wrong_to_right": changed.wrong_to_right / self.num_problems,
            "right_to_wrong": changed.right_to_wrong / self.num_problems,
            "wrong_to_wrong": changed.wrong_to_wrong / self.num_problems,
        }
        if not self.format.self_corrects:
            changes = dict.fromkeys(changes)
        judged = {"error_recall": verdicts.error_recall, "right_kept": verdicts.right_kept}
        return changes | judged

    def metrics(self) -> dict[str, float]:
        """Scalars under their metric names; those of `corrections` that are not None."""
        corrections = {
            f"eval/{name}": share for name, share in self.corrections().items() if share is not None
        }
        if self.format.has_verifications:
            corrections = self.verification.metrics("eval")
        return corrections | {
            "eval/accuracy": self.accuracy,
            **{f"eval/{name}": mean for name, mean in self.format_metrics.items()},
            "eval/mean_response_tokens": self.mean_response_tokens,
            "eval/truncated": self.truncated,
            "eval/no_answer": self.no_answer,
            **{
                f"benchmark/{name}/{key}": float(figures[key]["value"])
                for name, figures in self.benchmarks.items()
                for key in ("accuracy", "truncated", "no_answer")
            },
        }


def evaluate(
    engine: Engine,
    problems: Sequence[Problem],
    *,
    max_new_tokens: int,
    pool: Grader,
    right: float = 0.0,
    wrong: float = -1.0,
    counts: Callable[[str, str], Mapping[str, float]] | None = None,
    finished: Callable[[Trajectory], None] | None = None,
) -> EvaluationResult:
    """One greedy response per problem, graded. Raises ValueError when there is no problem.

    right, wrong: rule rewards of the answers. counts: of a question and a response, what is counted
    beside what the format counts. finished: see `rollout.engine.collect`.
    """
    if not problems:
        raise ValueError("evaluation has no problem: check data.eval_source")
    sampling = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens)
    rollout = collect(engine, problems, sampling, finished=finished)
    format = engine.renderer.format
    rewards: list[Reward] = [OutcomeReward(pool, reflection_bonus=0.0, right=right, wrong=wrong)]
    if format.has_verifications:
        rewards.append(ProcessReward(pool))
    trajectories = tuple(score(rollout.trajectories, rewards))
    correct = tuple(t.reward is not None and t.reward.correct is True for t in trajectories)
    accuracy = float(np.mean(correct))
    own = [counts(t.problem.question, full_response(t)) for t in trajectories] if counts else []
    return EvaluationResult(
        accuracy=accuracy,
        standard_error=float(np.sqrt(accuracy * (1 - accuracy) / len(problems))),
        num_problems=len(problems),
        format=format,
        format_metrics=mean_metrics(trajectories, engine.renderer.format_of) | _means(own),
        mean_response_tokens=rollout.num_generated_tokens / len(problems),
        truncated=float(np.mean([t.finish == "length" for t in trajectories])),
        rollout=replace(rollout, trajectories=trajectories),
        correct=correct,
        attempts=attempts_of(trajectories, correct, pool, format=format),
    )


def mean_metrics(
    trajectories: Sequence[Trajectory], format_of: Callable[[Problem], ResponseFormat]
) -> dict[str, float]:
    """Means of what the format of each response counts, by its names, over those that have it."""
    return _means([format_of(t.problem).metrics(t) for t in trajectories])


def _means(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each count over those that have it."""
    names = dict.fromkeys(name for own in counts for name in own)
    return {name: float(np.mean([own[name] for own in counts if name in own])) for name in names}


def graded(trajectories: Sequence[Trajectory], pool: Grader) -> list[bool]:
    """Whether the final answer of each response is right."""
    pairs = [(answered_text(t), _gold(t)) for t in trajectories]
    return [verdict.correct for verdict in pool.grade_many(pairs)]


def attempts_of(
    trajectories: Sequence[Trajectory],
    correct: Sequence[bool],
    pool: Grader,
    *,
    format: ResponseFormat,
) -> tuple[tuple[Attempt, ...], ...]:
    """The graded answers that stand in each response: the attempts that its format tells apart (in
    COAT before every reflection that follows an answer), and the last. Empty without any answer.

    correct: verdicts on the final answers.
    """
    answers = [format.attempts(full_response(t)) for t in trajectories]
    pairs = [
        (rf"\boxed{{{answer}}}", _gold(t))
        for t, own in zip(trajectories, answers, strict=True)
        for answer in own
    ]
    before = iter(pool.grade_many(pairs))
    attempts: list[tuple[Attempt, ...]] = []
    for trajectory, own, is_right in zip(trajectories, answers, correct, strict=True):
        verdicts = [next(before) for _ in own]
        standing = [Attempt(v.extracted or "", v.correct) for v in verdicts]
        is_cut = trajectory.finish == "length"
        final = pool.finder.answer(answered_text(trajectory), is_cut=is_cut)
        # A last box that was not closed takes the answer back.
        if standing or final is not None:
            standing.append(Attempt(final or "", is_right))
        attempts.append(tuple(standing))
    return tuple(attempts)


def _gold(trajectory: Trajectory) -> str:
    gold = trajectory.problem.answer
    if gold is None:
        raise ValueError(
            f"problem {trajectory.problem.problem_id!r} has no answer to grade against"
        )
    return gold
