# SPDX-License-Identifier: Apache-2.0
"""The result of a stage, and its entry in summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from satori_fast.evaluation.evaluate import EvaluationResult
from satori_fast.profiling.spans import StepTimes, token_rates


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """The models, the evaluation and the times that a stage leaves.

    models:     folders of the models it made, by role: "policy" (the next stage goes on with it),
                "reward" (an outcome reward model). Empty for a stage that trains none.
    evaluation: of its policy, None without one.
    figures:    further scalars of its entry in summary.json.
    """

    models: Mapping[str, Path]
    evaluation: EvaluationResult | None
    times: StepTimes
    figures: Mapping[str, float] = field(default_factory=dict[str, float])


def stage_entry(stage: str, outcome: StageOutcome, setup_times: StepTimes) -> dict[str, Any]:
    """The entry of a stage in summary.json."""
    total = setup_times + outcome.times
    entry: dict[str, Any] = {
        "stage": stage,
        "wall_s": total.wall_s,
        "tokens_per_s": token_rates(setup_times) | token_rates(outcome.times),
        "seconds": total.spans_s,
        **outcome.figures,
    }
    result = outcome.evaluation
    if result is None:
        return entry
    return entry | {
        "accuracy": result.accuracy,
        "accuracy_standard_error": result.standard_error,
        "num_problems": result.num_problems,
        **result.corrections(),
        "reflections_per_answer": result.reflections_per_answer,
        "mean_response_tokens": result.mean_response_tokens,
        "truncated": result.truncated,
        "no_answer": result.no_answer,
        **({"benchmarks": dict(result.benchmarks)} if result.benchmarks else {}),
    }
