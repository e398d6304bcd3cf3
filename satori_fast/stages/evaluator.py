# SPDX-License-Identifier: Apache-2.0
"""Evaluation inside a run: the held-out problems, asked of the engine that serves the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from satori_fast.config import EvaluationConfig, RewardConfig
from satori_fast.data.domains import Counts
from satori_fast.evaluation.evaluate import EvaluationResult, evaluate
from satori_fast.grading import Grader
from satori_fast.rollout.engine import Engine
from satori_fast.rollout.restarting import Restarting, ServedWeights
from satori_fast.stages.books import Books
from satori_fast.types import Problem, Trajectory


@dataclass(frozen=True, slots=True)
class Validation:
    """Worth of a policy in the middle of a stage.

    value:      what `reinforce.keep = "best"` goes by. evaluation: of whole problems, if that was
                it.
    """

    value: float
    metrics: dict[str, float]
    evaluation: EvaluationResult | None = None


class Validator(Protocol):
    """A measure of the policy in a stage of reinforcement."""

    def validate(self, engine: Restarting, policy: ServedWeights, *, step: int) -> Validation:
        """Measure the weights after a step; samples of it are written."""
        ...


@dataclass(frozen=True)
class Evaluator:
    """Greedy accuracy on the held-out problems of a run. Implements `Validator`.

    max_new_tokens: response limit where `config` has none. reward: of right and of wrong answers.
    counts: what the problems' domain counts in a response, if anything.
    benchmarks: asks an engine the benchmarks that are evaluated as well.
    """

    problems: Sequence[Problem]
    config: EvaluationConfig
    max_new_tokens: int
    grader: Grader
    books: Books
    reward: RewardConfig
    counts: Counts | None
    benchmarks: Callable[[Engine], Mapping[str, Mapping[str, Any]]]

    def evaluate(
        self, engine: Restarting, finished: Callable[[Trajectory], None] | None = None
    ) -> EvaluationResult:
        """Evaluate what `engine` serves; span "evaluate". finished: is given each response."""
        limit = self.config.max_new_tokens or self.max_new_tokens
        with self.books.spans.span("evaluate"):
            result = evaluate(
                engine,
                self.problems,
                max_new_tokens=limit,
                pool=self.grader,
                right=self.reward.right,
                wrong=self.reward.wrong,
                counts=self.counts,
                finished=finished,
            )
        with self.books.spans.span("benchmarks"):
            result = replace(result, benchmarks=self.benchmarks(engine))
        self.books.spans.count("evaluate", result.rollout.num_generated_tokens)
        return result

    def evaluate_policy(
        self, engine: Restarting, policy: ServedWeights, *, version: int
    ) -> EvaluationResult:
        """Evaluate the weights of now; the engine is synced where it has those of another step."""
        if engine.policy_version != version:
            engine.sync(policy, version=version)
        return self.evaluate(engine)

    def validate(self, engine: Restarting, policy: ServedWeights, *, step: int) -> Validation:
        """Measure the weights after a step by their accuracy."""
        result = self.evaluate_policy(engine, policy, version=step + 1)
        return Validation(result.accuracy, self.record(step, result), result)

    def record(self, step: int, result: EvaluationResult) -> dict[str, float]:
        """Write sample answers; returns the metrics of the result."""
        num_samples = self.config.num_logged_samples
        return self.books.record_evaluation(step, result, num_samples=num_samples)
